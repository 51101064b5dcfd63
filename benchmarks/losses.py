"""Time and memory of each loss with 50,030 classes, compared with F.cross_entropy.

python benchmarks/losses.py [--batch N] [--classes N] [--rounds N] [--json FILE]

Forward and backward of the loss built from LOSS, averaged over the batch, from float32 logits to their gradient; the
other side is F.cross_entropy (mean) of the same logits. Neither has huge pages, unless THP_MEM_ALLOC_ENABLE is 1. Time:
each loss and F.cross_entropy alternately, ratio of medians. Memory: growth of the peak by the loss, including the
gradient: on a GPU, that of the allocator; on a CPU, the resident memory of a new process for each loss. On the GPU if
there is one.
Results: worst_time_ratio and worst_memory_ratio of all losses but Seesaw and influence-balanced, which have
heavy_time_ratio and heavy_memory_ratio; NAME_time_ratio and NAME_memory_ratio of each loss.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# With huge pages, as in our scripts, F.cross_entropy takes half the time; by default PyTorch uses none.
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '0')

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.harness import alternate, finish, parse_arguments
from lib.builders.loss import LOSSES, build_loss
from lib.commands.cli import cli_main
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node
from lib.errors import UserError
from lib.loss.targets import Targets

NUM_FEATURES = 2048
HEAVY = ('seesaw', 'influence_balanced', 'influence_differentiated')
PLAIN = 'F.cross_entropy'
# Measured in addition to each LOSS.TYPE with its default options.
VARIANTS = {
    'label_smoothing': {'LOSS.LABEL_SMOOTHING': 0.1},
    'class_weighted': {'LOSS.CLASS_WEIGHTS': 'effective_number'},
    'sigmoid_focal_half': {'LOSS.TYPE': 'sigmoid_focal', 'LOSS.GAMMA': 0.5},
    'influence_differentiated': {'LOSS.TYPE': 'influence_balanced', 'LOSS.INFLUENCE': 'differentiated'},
}
NAMES = (*LOSSES, *VARIANTS)


def long_tailed_counts(num_classes: int) -> np.ndarray:
    """Return class counts that fall as a power of the rank, from 8,000 to 5."""
    group = np.arange(1, num_classes + 1)
    return np.maximum(8000 * group**-0.6, 5).astype(np.int64)


def step_of(name: str, batch: int, num_classes: int, device: torch.device) -> Callable[[int], None]:
    """Return a function (rows): forward and backward of a loss on the first rows of a batch."""
    torch.manual_seed(0)
    logits = torch.randn(batch, num_classes, device=device)
    labels = torch.randint(num_classes, (batch,), device=device)
    features = torch.randn(batch, NUM_FEATURES, device=device)
    if name == PLAIN:

        def value(rows: int, leaf: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(leaf, labels[:rows])

    else:
        values = {key: entry.default for key, entry in KEYS.items()} | VARIANTS.get(name, {'LOSS.TYPE': name})
        loss = build_loss(as_node(values), long_tailed_counts(num_classes)).to(device)

        def value(rows: int, leaf: torch.Tensor) -> torch.Tensor:
            return loss(leaf, Targets(labels[:rows]), features[:rows])

    def step(rows: int) -> None:
        leaf = logits[:rows].requires_grad_()  # a new tensor, whose gradient is freed with it
        value(rows, leaf).backward()

    return step


def time_ratio(name: str, batch: int, num_classes: int, device: torch.device, rounds: int) -> float:
    """Return the time of a loss / the time of F.cross_entropy."""

    def side(name: str) -> Callable[[], int]:
        step = step_of(name, batch, num_classes, device)

        def run() -> int:
            step(batch)
            if device.type == 'cuda':
                torch.cuda.synchronize()
            return batch

        return run

    rates = alternate({PLAIN: side(PLAIN), name: side(name)}, rounds)
    return rates[PLAIN] / rates[name]


def peak_memory(name: str, batch: int, num_classes: int, device: torch.device) -> int:
    """Return the peak memory of forward and backward beyond the logits, in bytes."""
    step = step_of(name, batch, num_classes, device)
    step(2)  # creates threads, kernels and constants
    if device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(batch)
        return torch.cuda.max_memory_allocated() - before
    before = _resident('VmRSS')
    step(batch)
    return _resident('VmHWM') - before


def _resident(which: str) -> int:
    """Return the resident memory of this process (VmRSS) or its peak (VmHWM), in bytes."""
    lines = Path('/proc/self/status').read_text(encoding='ascii').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def peak_memories(batch: int, num_classes: int, device: torch.device) -> dict[str, int]:
    """Return the peak memory of each loss in bytes; on a CPU, in a new process each, because a peak never falls."""
    if device.type == 'cuda':
        return {name: peak_memory(name, batch, num_classes, device) for name in (PLAIN, *NAMES)}
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), max_tasks_per_child=1) as pool:
        running = {name: pool.submit(peak_memory, name, batch, num_classes, device) for name in (PLAIN, *NAMES)}
        return {name: future.result() for name, future in running.items()}


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        batch=(256, 'images per batch'),
        classes=(50_030, 'classes'),
        rounds=(15, 'rounds of each side'),
    )
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cpu' and not Path('/proc/self/status').exists():
        raise UserError('peak memory is read from /proc: run this benchmark on Linux or with a GPU')
    size = (arguments.batch, arguments.classes, device)
    times = {name: time_ratio(name, *size, arguments.rounds) for name in NAMES}
    memories = peak_memories(*size)
    ratios = {'time': times, 'memory': {name: memories[name] / memories[PLAIN] for name in NAMES}}
    logits_bytes = 4 * arguments.batch * arguments.classes
    print(f'{PLAIN}: {memories[PLAIN] / logits_bytes:.2f} times the size of the logits; on {device.type}')
    results = {}
    for kind, values in ratios.items():
        results[f'worst_{kind}_ratio'] = max(value for name, value in values.items() if name not in HEAVY)
        results[f'heavy_{kind}_ratio'] = max(values[name] for name in HEAVY)
    results |= {f'{name}_{kind}_ratio': ratios[kind][name] for name in NAMES for kind in ratios}
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
