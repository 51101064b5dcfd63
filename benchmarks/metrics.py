"""Time and memory of all metrics of 150,000 predictions in 50,030 classes, and of 1,000 bootstrap draws.

python benchmarks/metrics.py [--images N] [--classes N] [--rounds N] [--json FILE]

Long-tailed training counts (5 to 8,000), 1 to 5 valid images per class, a product tree of three levels, 70 % of the
predictions correct. Every round is a new process: `megabytes` is its peak resident memory minus the memory before the
metrics, which includes predictions and imports. Medians of the rounds. `compare_seconds` is the paired comparison of
two models; `worst_draws_seconds` the bootstrap if all classes have different counts.
"""

import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.harness import finish, parse_arguments
from lib.commands.cli import cli_main
from lib.metrics.class_report import class_table, detailed_metrics
from lib.metrics.intervals import NUM_DRAWS, accuracy_draws
from lib.metrics.paired import compare
from lib.metrics.predictions import Predictions


def make_predictions(labels: np.ndarray, num_classes: int, seed: int) -> Predictions:
    """Return top-5 predictions: 70 % have the label first, and some others have it among the five."""
    random = np.random.default_rng(seed)
    topk = random.integers(0, num_classes, (len(labels), 5))
    position = np.minimum(random.geometric(0.7, len(labels)) - 1, 5)
    in_topk = position < 5
    topk[np.flatnonzero(in_topk), position[in_topk]] = labels[in_topk]
    topk[random.random(len(labels)) < 0.001] = -1
    readable = topk[:, 0] >= 0
    confidence = np.where(readable, random.beta(4, 1, len(labels)), 0).astype(np.float32)
    losses = np.where(readable, random.exponential(1.0, len(labels)), np.nan).astype(np.float32)
    probabilities = np.stack([confidence, *[(1 - confidence) / 5] * 4], axis=1)
    probabilities[~readable] = 0
    return Predictions(labels, topk, probabilities, losses)


def resident_megabytes(name: str) -> float:
    """Return VmRSS (current memory) or VmHWM (peak) of this process in MB; needs Linux."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f'/proc/self/status has no {name}')


def measure(images: int, classes: int, sink) -> None:
    """Measure once, and send the results."""
    random = np.random.default_rng(0)
    train_counts = np.geomspace(8000, 5, classes).astype(np.int64)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, max(0, images - classes))])[:images]
    predictions, other = (make_predictions(labels, classes, seed) for seed in (1, 2))
    parents = [[f'aisle {c % 40}', f'shelf {c % 800}', f'brand {c % 4000}'] for c in range(classes)]
    results = {}
    detailed_metrics(predictions.at(np.arange(100)), train_counts)  # loads what is loaded at first use
    before = resident_megabytes('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    started = time.perf_counter()
    detailed_metrics(predictions, train_counts, parents=parents)
    table = class_table(predictions, classes)
    results['seconds'] = time.perf_counter() - started
    results['megabytes'] = resident_megabytes('VmHWM') - before
    started = time.perf_counter()
    accuracy_draws(table.correct, table.images, num_draws=NUM_DRAWS)
    results['bootstrap_seconds'] = time.perf_counter() - started
    started = time.perf_counter()
    compare(predictions, other, classes)
    results['compare_seconds'] = time.perf_counter() - started
    total = np.arange(2, classes + 2)
    started = time.perf_counter()
    accuracy_draws(total // 2, total, num_draws=NUM_DRAWS)
    results['worst_draws_seconds'] = time.perf_counter() - started
    sink.send(json.dumps(results))


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        images=(150_000, 'predictions'),
        classes=(50_030, 'classes'),
        rounds=(5, 'rounds, a new process each'),
    )
    rounds = []
    context = multiprocessing.get_context('spawn')
    for _ in range(arguments.rounds):
        source, sink = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(arguments.images, arguments.classes, sink))
        process.start()
        sink.close()  # so that the pipe is closed if the process dies
        rounds.append(json.loads(source.recv()))
        process.join()
    results = {name: statistics.median(values[name] for values in rounds) for name in rounds[0]}
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
