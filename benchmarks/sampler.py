"""Time to compute the order of an epoch for 3 million images in 50,030 classes, for each sampler.

python benchmarks/sampler.py [--images N] [--classes N] [--rounds N] [--json FILE]

Long-tailed labels in random order; the rows are already sorted by class, as in the cache of the annotations. One
thread; medians over the epochs, the samplers alternate.
Results: NAME_plan_s for every sampler and for batches of several images per class, slowest_plan_s.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.harness import finish, parse_arguments
from lib.builders.sampler import SAMPLERS
from lib.commands.cli import cli_main
from lib.dataset.index import ClassIndex
from lib.dataset.sampler import ClassBatches, Sampler

MAX_EPOCH = 120


def long_tailed_index(num_images: int, num_classes: int) -> ClassIndex:
    """Return a shuffled index whose class sizes fall as 1 / (rank + 30)."""
    random = np.random.default_rng(0)
    weights = 1 / (np.arange(num_classes) + 30)
    labels = random.choice(num_classes, num_images, p=weights / weights.sum()).astype(np.int32)
    index = ClassIndex(labels, num_classes)
    print(f'{len(index.by_class):,} images, {index.class_counts.min()} to {index.class_counts.max():,} per class')
    return index


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        images=(3_000_000, 'images'),
        classes=(50_030, 'classes'),
        rounds=(7, 'epochs of each sampler'),
    )
    index = long_tailed_index(arguments.images, arguments.classes)
    samplers = {
        name: Sampler(weights, index, 0, MAX_EPOCH, systematic=name == 'repeat_factor')
        for name, weights in SAMPLERS.items()
    }
    samplers['class_batches'] = ClassBatches(index, 0, batch_size=512, images_per_class=4)
    seconds = {name: [] for name in samplers}
    for epoch in range(arguments.rounds + 1):
        for name, sampler in samplers.items():
            started = time.perf_counter()
            sampler.epoch_rows(epoch)
            seconds[name].append(time.perf_counter() - started)
    # The first epoch is a warm-up.
    results = {f'{name}_plan_s': statistics.median(values[1:]) for name, values in seconds.items()}
    finish({**results, 'slowest_plan_s': max(results.values())}, arguments.json)


if __name__ == '__main__':
    cli_main(main)
