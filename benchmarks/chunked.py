"""Time and memory of a loss computed in chunks of images, compared with F.linear and F.cross_entropy.

python benchmarks/chunked.py [--batch N] [--features N] [--classes N] [--chunk N] [--rounds N] [--json FILE]

Forward and backward of a linear classifier with bias and the mean cross entropy, float32, from features to all
gradients. Time: both sides alternately, ratio of medians. Memory: peak of a step beyond the parameters and their
gradients, each side in a new process (on a GPU, that of the allocator; on a CPU, resident memory). In addition, SGD
with momentum for a million classes, in chunks, in a new process. On the GPU if there is one.
Results: memory_ratio, time_ratio; gradient_error (largest difference of gradients / largest gradient, of features,
weight and bias); million_classes_step_s (median) and million_classes_peak_gb (of the whole process).
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.harness import alternate, finish, parse_arguments
from lib.classifier.linear import LinearClassifier
from lib.commands.cli import cli_main
from lib.errors import UserError
from lib.loss.chunked import chunked_loss
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss

MILLION = 1_000_000
MILLION_STEPS = 3


class Size(NamedTuple):
    """Size of the problem."""

    batch: int
    features: int
    classes: int
    chunk: int  # images per chunk; -1: no chunks

    def plain(self) -> 'Size':
        """Return the same size without chunks."""
        return self._replace(chunk=-1)


class Head:
    """A classifier, a batch of features and labels, and a step on the first images of the batch."""

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        self.chunk = size.chunk
        self.classifier = LinearClassifier(size.features, size.classes).to(device)
        self.features = torch.randn(size.batch, size.features, device=device).requires_grad_()
        self.labels = torch.randint(size.classes, (size.batch,), device=device)
        self._average = WeightedLoss(CrossEntropy(), torch.ones(size.classes)).to(device)

    def parameters(self) -> list[torch.Tensor]:
        """Return all tensors with gradients: features, weight and bias."""
        return [self.features, *self.classifier.parameters()]

    def step(self, rows: int) -> None:
        """Compute the gradients of the first `rows` images; old gradients are removed, as by zero_grad()."""
        for parameter in self.parameters():
            parameter.grad = None
        x, labels = self.features[:rows], self.labels[:rows]
        if self.chunk < 0:
            loss = F.cross_entropy(self.classifier(x), labels)
        else:
            targets = Targets(labels)
            normalizer = self._average.normalizer(targets)
            loss, _ = chunked_loss(
                *self.classifier.factors(x),
                lambda logits, part, _: self._average.total(logits, targets.select(part)) / normalizer,
                chunk=self.chunk,
            )
        loss.backward()

    def gradient_bytes(self) -> int:
        """Return the size of all gradients in bytes."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters())


def time_ratio(size: Size, device: torch.device, rounds: int) -> float:
    """Return the time of a step in chunks / the time of a step without chunks."""

    def side(head: Head) -> Callable[[], int]:
        def run() -> int:
            head.step(size.batch)
            _synchronize(device)
            for parameter in head.parameters():
                parameter.grad = None  # frees memory for the other side
            return size.batch

        return run

    rates = alternate({'chunks': side(Head(size, device)), 'plain': side(Head(size.plain(), device))}, rounds)
    return rates['plain'] / rates['chunks']


def gradient_error(size: Size, device: torch.device) -> float:
    """Return the largest difference of the gradients of both sides / the largest gradient without chunks."""
    ours, theirs = Head(size, device), Head(size.plain(), device)
    ours.step(size.batch)
    theirs.step(size.batch)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max((((a.grad - b.grad).abs().max()) / b.grad.abs().max()).item() for a, b in pairs)


def extra_memory(size: Size, device: torch.device) -> int:
    """Return the peak memory of a step beyond the parameters and their gradients, in bytes."""
    head = Head(size, device)
    head.step(2)  # creates threads and kernels
    for parameter in head.parameters():
        parameter.grad = None
    before = _reset_peak(device)
    head.step(size.batch)
    return _peak(device) - before - head.gradient_bytes()


def million_classes(size: Size, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a training step, and the peak memory of the process in GB."""
    head = Head(size, device)
    optimizer = torch.optim.SGD(head.classifier.parameters(), lr=0.1, momentum=0.9)
    seconds = []
    for _ in range(MILLION_STEPS):
        started = time.perf_counter()
        head.step(size.batch)
        optimizer.step()
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), _peak(device) / 1e9


def _reset_peak(device: torch.device) -> int:
    """Reset the peak memory; return the current memory in bytes."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    return _resident('VmRSS')


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == 'cuda' else _resident('VmHWM')


def _resident(which: str) -> int:
    lines = Path('/proc/self/status').read_text(encoding='ascii').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize()


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        batch=(256, 'images per batch'),
        features=(512, 'features'),
        classes=(200_000, 'classes'),
        chunk=(52, 'images per chunk'),
        rounds=(9, 'rounds of each side'),
    )
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cpu' and not Path('/proc/self/clear_refs').exists():
        raise UserError('peak memory is read from /proc: run this benchmark on Linux or with a GPU')
    size = Size(arguments.batch, arguments.features, arguments.classes, arguments.chunk)
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), max_tasks_per_child=1) as pool:
        ours, theirs = (pool.submit(extra_memory, side, device).result() for side in (size, size.plain()))
        seconds, gigabytes = pool.submit(million_classes, size._replace(classes=MILLION), device).result()
    memory = f'{ours / 1e6:.0f} MB in chunks, {theirs / 1e6:.0f} MB without'
    print(f'beyond parameters and gradients: {memory}; on {device.type}')
    finish(
        {
            'memory_ratio': ours / theirs,
            'time_ratio': time_ratio(size, device, arguments.rounds),
            'gradient_error': gradient_error(size, device),
            'million_classes_step_s': seconds,
            'million_classes_peak_gb': gigabytes,
        },
        arguments.json,
    )


if __name__ == '__main__':
    cli_main(main)
