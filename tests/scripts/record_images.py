"""Runs main.py and records the images of each training step: python record_images.py FOLDER main.py [OPTION ...].

Each rank appends lines `step label digest` to FOLDER/RANK.txt, one per image, in order. The digest is that of the bytes
before normalization, so it does not depend on rounding.
"""

import hashlib
import os
import runpy
import sys
from pathlib import Path

import torch


def main() -> None:
    """Patch the step, then become the script."""
    folder, script = Path(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(Path(script).parent))
    from lib.dataset.normalize import IMAGENET_MEAN, IMAGENET_STD
    from lib.trainer.step import TrainStep

    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    take_step, file = TrainStep.__call__, folder / f'{os.environ.get("RANK", 0)}.txt'

    def recording(self, mixed, global_step):
        pixels = ((mixed.images * std + mean) * 255).round().to(torch.uint8)
        lines = [
            f'{global_step} {label} {hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()}\n'
            for image, label in zip(pixels, mixed.targets.hard.tolist(), strict=True)
        ]
        with open(file, 'a') as out:
            out.writelines(lines)
        return take_step(self, mixed, global_step)

    TrainStep.__call__ = recording
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
