"""Runs a script that tells which images each training step sees: python tell_images.py FOLDER main.py [OPTION ...].

Each rank appends lines `step label digest` to FOLDER/RANK.txt, one an image, in the order of its share. The digest is
of the pixels as they were before they were normalised: bytes, so nothing depends on rounding.
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
    from lib.trainer import step

    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    take_step, file = step._step, folder / f'{os.environ.get("RANK", 0)}.txt'

    def telling(learner, mixed, global_step):
        pixels = ((mixed.images * std + mean) * 255).round().to(torch.uint8)
        lines = [
            f'{global_step} {label} {hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()}\n'
            for image, label in zip(pixels, mixed.targets.hard.tolist(), strict=True)
        ]
        with open(file, 'a') as out:
            out.writelines(lines)
        return take_step(learner, mixed, global_step)

    step._step = telling
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
