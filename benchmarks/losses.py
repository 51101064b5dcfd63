"""What does each loss cost at 50,030 classes, beside F.cross_entropy?

python benchmarks/losses.py [--batch N] [--classes N] [--rounds N] [--json FILE]

Forward and backward of the loss that LOSS builds, averaged over the batch, from float32 logits to their gradient; the
other side is F.cross_entropy (mean) of the same logits. Time: each loss and F.cross_entropy in turns, ratio of medians.
Memory: the peak beyond what was there before the loss, the gradient included: on a GPU the allocator's, on a CPU the
resident memory of a process of its own for each loss. On the GPU when there is one.
Figures: worst_time_ratio, worst_memory_ratio over all losses but Seesaw and influence-balanced, which are
heavy_time_ratio and heavy_memory_ratio; NAME_time_ratio and NAME_memory_ratio of each.
"""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
# What is measured beside each LOSS.TYPE as it is by default.
VARIANTS = {
    'label_smoothing': {'LOSS.LABEL_SMOOTHING': 0.1},
    'class_weighted': {'LOSS.CLASS_WEIGHTS': 'effective_number'},
    'sigmoid_focal_half': {'LOSS.TYPE': 'sigmoid_focal', 'LOSS.GAMMA': 0.5},
    'influence_differentiated': {'LOSS.TYPE': 'influence_balanced', 'LOSS.INFLUENCE': 'differentiated'},
}
NAMES = (*LOSSES, *VARIANTS)


def long_tailed_counts(num_classes: int) -> np.ndarray:
    """Return counts that fall as a power of the rank, from 8,000 to 5."""
    group = np.arange(1, num_classes + 1)
    return np.maximum(8000 * group**-0.6, 5).astype(np.int64)


def step_of(name: str, batch: int, num_classes: int, device: torch.device) -> Callable[[int], None]:
    """Return forward and backward of a loss on the first rows of one batch; the number of rows is its argument."""
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
        leaf = logits[:rows].requires_grad_()  # its own gradient goes with it
        value(rows, leaf).backward()

    return step


def time_ratio(name: str, batch: int, num_classes: int, device: torch.device, rounds: int) -> float:
    """Return a loss's time over F.cross_entropy's."""

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
    """Return the bytes that forward and backward take beyond the logits."""
    step = step_of(name, batch, num_classes, device)
    step(2)  # threads, kernels and constants are there afterwards
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
    """Return this process's resident memory (VmRSS) or the most that it ever was (VmHWM), bytes."""
    lines = Path('/proc/self/status').read_text(encoding='ascii').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def peak_memories(batch: int, num_classes: int, device: torch.device) -> dict[str, int]:
    """Return each loss's peak; on a CPU in a new process each, since the most that a process ever had is kept."""
    if device.type == 'cuda':
        return {name: peak_memory(name, batch, num_classes, device) for name in (PLAIN, *NAMES)}
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), max_tasks_per_child=1) as pool:
        running = {name: pool.submit(peak_memory, name, batch, num_classes, device) for name in (PLAIN, *NAMES)}
        return {name: future.result() for name, future in running.items()}


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        batch=(256, 'images a batch'),
        classes=(50_030, 'classes'),
        rounds=(15, 'turns of each pair'),
    )
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cpu' and not Path('/proc/self/status').exists():
        raise UserError('the peak of resident memory is read from /proc: run it on Linux, or with a GPU')
    size = (arguments.batch, arguments.classes, device)
    times = {name: time_ratio(name, *size, arguments.rounds) for name in NAMES}
    memories = peak_memories(*size)
    ratios = {'time': times, 'memory': {name: memories[name] / memories[PLAIN] for name in NAMES}}
    logits_bytes = 4 * arguments.batch * arguments.classes
    print(f'{PLAIN}: {memories[PLAIN] / logits_bytes:.2f} times the logits; on {device.type}')
    figures = {}
    for kind, values in ratios.items():
        figures[f'worst_{kind}_ratio'] = max(value for name, value in values.items() if name not in HEAVY)
        figures[f'heavy_{kind}_ratio'] = max(values[name] for name in HEAVY)
    figures |= {f'{name}_{kind}_ratio': ratios[kind][name] for name in NAMES for kind in ratios}
    finish(figures, arguments.json)


if __name__ == '__main__':
    cli_main(main)
