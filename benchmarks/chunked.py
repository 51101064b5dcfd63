"""What does a loss over chunks of the images take, beside F.linear, F.cross_entropy and backward?

python benchmarks/chunked.py [--batch N] [--features N] [--classes N] [--chunk N] [--rounds N] [--json FILE]

Forward and backward of a linear classifier with bias and the mean cross entropy, float32, from features to all
gradients. Time: the two sides in turns, ratio of medians. Memory: the most that a step takes beyond the parameters and
their gradients, in a process of its own for each side (on a GPU the allocator's, on a CPU resident memory). Then SGD
with momentum of a million classes, in chunks, in a process of its own. On the GPU when there is one.
Figures: memory_ratio, time_ratio; gradient_error (the largest difference of gradients over the largest gradient, of
features, weight and bias); million_classes_step_s (the median) and million_classes_peak_gb (of the whole process).
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
    """What is computed."""

    batch: int
    features: int
    classes: int
    chunk: int  # images at a time; -1: the plain way

    def plain(self) -> 'Size':
        return self._replace(chunk=-1)


class Head:
    """A classifier, a batch of features and labels, and a step on the first of its images."""

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        self.chunk = size.chunk
        self.classifier = LinearClassifier(size.features, size.classes).to(device)
        self.features = torch.randn(size.batch, size.features, device=device).requires_grad_()
        self.labels = torch.randint(size.classes, (size.batch,), device=device)
        self._average = WeightedLoss(CrossEntropy(), torch.ones(size.classes)).to(device)

    def parameters(self) -> list[torch.Tensor]:
        return [self.features, *self.classifier.parameters()]

    def step(self, rows: int) -> None:
        """Put gradients where there are none, as after zero_grad()."""
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
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters())


def time_ratio(size: Size, device: torch.device, rounds: int) -> float:
    """Return the time of a step in chunks over that of the plain one."""

    def side(head: Head) -> Callable[[], int]:
        def run() -> int:
            head.step(size.batch)
            _synchronize(device)
            for parameter in head.parameters():
                parameter.grad = None  # the other side's memory, while this one waits
            return size.batch

        return run

    rates = alternate({'chunks': side(Head(size, device)), 'plain': side(Head(size.plain(), device))}, rounds)
    return rates['plain'] / rates['chunks']


def gradient_error(size: Size, device: torch.device) -> float:
    """Return the largest difference of the two sides' gradients, over the largest of the plain one's."""
    ours, theirs = Head(size, device), Head(size.plain(), device)
    ours.step(size.batch)
    theirs.step(size.batch)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max((((a.grad - b.grad).abs().max()) / b.grad.abs().max()).item() for a, b in pairs)


def extra_memory(size: Size, device: torch.device) -> int:
    """Return the most bytes that a step takes beyond the parameters and their gradients."""
    head = Head(size, device)
    head.step(2)  # threads and kernels are there afterwards
    for parameter in head.parameters():
        parameter.grad = None
    before = _reset_peak(device)
    head.step(size.batch)
    return _peak(device) - before - head.gradient_bytes()


def million_classes(size: Size, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a training step, and the most memory in GB that the process ever takes."""
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
    """Forget the most that was ever taken; return what is taken now, bytes."""
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
        batch=(256, 'images a batch'),
        features=(512, 'features'),
        classes=(200_000, 'classes'),
        chunk=(52, 'images at a time'),
        rounds=(9, 'turns'),
    )
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cpu' and not Path('/proc/self/clear_refs').exists():
        raise UserError('the peak of resident memory is read from /proc: run it on Linux, or with a GPU')
    size = Size(arguments.batch, arguments.features, arguments.classes, arguments.chunk)
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), max_tasks_per_child=1) as pool:
        ours, theirs = (pool.submit(extra_memory, side, device).result() for side in (size, size.plain()))
        seconds, gigabytes = pool.submit(million_classes, size._replace(classes=MILLION), device).result()
    print(f'beyond parameters and gradients: {ours / 1e6:.0f} MB in chunks, {theirs / 1e6:.0f} MB; on {device.type}')
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
