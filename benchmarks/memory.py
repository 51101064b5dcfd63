"""Growth of memory over 100 epochs of the training loader with two workers.

python benchmarks/memory.py [--json FILE]

Resident memory of this process and of each worker after epoch 3 and after the last epoch of a small data set. Results:
main_growth_ratio and workers_growth_ratio, last epoch / epoch 3 (the largest of the workers); 1 is no growth.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import multiprocessing

import numpy as np
import torch

from benchmarks.harness import finish, parse_arguments
from lib.commands.cli import cli_main
from lib.dataset.augment import Augment
from lib.dataset.image_walk import ImageWalk
from lib.dataset.images import FileImages
from lib.dataset.index import ClassIndex
from lib.dataset.loader import TrainLoader
from lib.dataset.normalize import Normalize
from lib.dataset.reader import BatchReader
from lib.dataset.sampler import Sampler, class_balance
from lib.dataset.transforms import RandomResizedCrop
from lib.demo.generate import generate_demo

NUM_IMAGES, NUM_CLASSES, BATCH_SIZE, WORKERS = 512, 16, 32, 2


def resident(pid: int) -> int:
    """Return the resident memory of a process in kB."""
    lines = Path(f'/proc/{pid}/status').read_text(encoding='ascii').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS'))


def loader_of(folder: Path) -> TrainLoader:
    """Return a loader of the demo images with augmentations and class-balanced sampling."""
    paths = list(ImageWalk(folder).images())[:NUM_IMAGES]
    labels = (np.arange(len(paths)) % NUM_CLASSES).astype(np.int32)
    index = ClassIndex(labels, NUM_CLASSES)
    reader = BatchReader(
        FileImages(paths, str(folder)),
        labels,
        RandomResizedCrop(112),
        0,
        'replace',
        index,
        Augment(policy='trivial_augment'),
    )
    plan = Sampler(class_balance, index, 0, 100)
    return TrainLoader(
        reader,
        plan,
        len(index),
        BATCH_SIZE,
        device=torch.device('cpu'),
        normalize=Normalize(),
        num_workers=WORKERS,
    )


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], epochs=(100, 'epochs'))
    with tempfile.TemporaryDirectory() as folder:
        generate_demo(Path(folder), seed=0)
        loader = loader_of(Path(folder))
        memory: list[list[int]] = []
        for epoch in range(arguments.epochs):
            for _ in loader.batches(epoch):
                pass
            workers = [child.pid for child in multiprocessing.active_children()]
            memory.append([resident(pid) for pid in ('self', *workers)])
    third, last = memory[2], memory[-1]
    growth = [after / before for before, after in zip(third, last, strict=True)]
    finish(
        {
            'main_resident_mb': last[0] / 1024,
            'worker_resident_mb': max(last[1:]) / 1024,
            'main_growth_ratio': growth[0],
            'workers_growth_ratio': max(growth[1:]),
        },
        arguments.json,
    )


if __name__ == '__main__':
    cli_main(main)
