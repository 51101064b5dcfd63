"""A small CIFAR-10 archive in the original file format, and the checksums by which torchvision accepts it."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np


def write_small_cifar(folder: Path) -> None:
    """Write an archive of 200 training and 40 test images; the red value of the first pixel is the class."""
    random = np.random.default_rng(0)
    files = {}
    for name in [f'data_batch_{number}' for number in range(1, 6)] + ['test_batch']:
        labels = random.permutation(np.repeat(np.arange(10), 4)).tolist()
        data = random.integers(0, 256, (40, 3072), dtype=np.uint8)
        data[:, 0] = labels
        files[name] = pickle.dumps({'data': data, 'labels': labels})
    files['batches.meta'] = pickle.dumps({'label_names': [f'class {number}' for number in range(10)]})
    with tarfile.open(folder / 'cifar-10-python.tar.gz', 'w:gz') as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f'cifar-10-batches-py/{name}')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def torchvision_checksums(folder: Path) -> dict:
    """Return the attributes of torchvision's CIFAR10 with the checksums of these files."""
    from torchvision import datasets

    sums = {}
    with tarfile.open(folder / 'cifar-10-python.tar.gz') as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member).read()
            sums[Path(member.name).name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return {
        'train_list': [[name, value] for name, value in sums.items() if name.startswith('data')],
        'test_list': [['test_batch', sums['test_batch']]],
        'meta': datasets.CIFAR10.meta | {'md5': sums['batches.meta']},
    }
