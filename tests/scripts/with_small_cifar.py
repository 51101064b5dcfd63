"""Runs a script on a small CIFAR-10 instead of the real one: python with_small_cifar.py FOLDER main.py [OPTION ...]"""

import runpy
import sys
from pathlib import Path

from torchvision import datasets

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.small_cifar import torchvision_checksums

if __name__ == '__main__':
    folder, script = sys.argv[1:3]
    for name, value in torchvision_checksums(Path(folder)).items():
        setattr(datasets.CIFAR10, name, value)
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(script, run_name='__main__')
