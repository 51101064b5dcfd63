"""Training with timm, to compare with: its train.py, or a loop of its parts in the order of that script.

train.py is not included in timm's package, so it needs a checkout of timm's repository. Without one, the loop in this
file combines timm's loader, model, optimizer and schedule like train.py of timm 1.0.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter
from torch import nn

from lib.errors import UserError

# A line of train.py's log: the epoch, and in brackets the averages so far (seconds per step, images per second).
_RATE = re.compile(r'Train: (\d+) \[.*?\([\d.]+s, +([\d.]+)/s\)')


@dataclass(frozen=True)
class Recipe:
    """The recipe of both sides, with SGD (momentum 0.9, weight decay 1e-4) and random crops, bilinear interpolation.

    Attributes:
        model: name in timm.
        size: image size in pixels.
        dtype: autocast dtype; None: float32.
        device: 'cpu' or 'cuda'.
    """

    model: str
    size: int
    batch_size: int
    num_classes: int
    workers: int
    dtype: torch.dtype | None
    device: str = 'cpu'


class TimmLoop:
    """An epoch like in train.py, with timm's parts."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        model = timm.create_model(recipe.model, num_classes=recipe.num_classes)
        self.model = model.to(recipe.device, memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(self.model, opt='momentum', lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.schedule, _ = create_scheduler_v2(self.optimizer, sched='cosine', num_epochs=100, warmup_epochs=0)
        self.loss_of = nn.CrossEntropyLoss().to(recipe.device)
        self._updates = 0

    def loader(self, photos: Path) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Return timm's loader of the folder photos/train/CLASS; its batches are on the device and normalized."""
        return create_loader(
            create_dataset('', root=str(photos), split='train', is_training=True),
            input_size=(3, self.recipe.size, self.recipe.size),
            batch_size=self.recipe.batch_size,
            is_training=True,
            scale=(0.08, 1.0),
            ratio=(3 / 4, 4 / 3),
            hflip=0.5,
            color_jitter=None,
            interpolation='bilinear',
            num_workers=self.recipe.workers,
            device=torch.device(self.recipe.device),
            pin_memory=self.recipe.device != 'cpu',
        )

    def epoch(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> int:
        """Train on all batches; return the number of images."""
        self.model.train()
        losses = AverageMeter()
        self.optimizer.zero_grad()
        for images, labels in batches:
            images = images.contiguous(memory_format=torch.channels_last)
            with self._autocast():
                loss = self.loss_of(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            losses.update(loss.item(), len(images))
            self.optimizer.zero_grad()
            self._updates += 1
            self.schedule.step_update(num_updates=self._updates, metric=losses.avg)
        return int(losses.count)

    def _autocast(self) -> AbstractContextManager:
        dtype = self.recipe.dtype
        return nullcontext() if dtype is None else torch.autocast(self.recipe.device, dtype=dtype)


def script_command(script: Path, photos: Path, output: Path, recipe: Recipe, epochs: int) -> list[str]:
    """Return the command line of train.py for the recipe."""
    options = {
        'data-dir': photos, 'output': output, 'experiment': 'benchmark', 'device': recipe.device,
        'model': recipe.model, 'num-classes': recipe.num_classes, 'img-size': recipe.size,
        'batch-size': recipe.batch_size, 'workers': recipe.workers, 'epochs': epochs,
        'opt': 'momentum', 'momentum': 0.9, 'weight-decay': 1e-4, 'lr': 0.01, 'smoothing': 0,
        'sched': 'cosine', 'warmup-epochs': 0, 'cooldown-epochs': 0,
        'color-jitter': 0, 'train-interpolation': 'bilinear', 'log-interval': 1, 'checkpoint-hist': 1,
    }  # fmt: skip
    command = [sys.executable, str(script), '--channels-last']
    if recipe.dtype is not None:
        command += ['--amp', '--amp-dtype', str(recipe.dtype).removeprefix('torch.')]
    return command + [part for name, value in options.items() for part in (f'--{name}', str(value))]


def script_rates(log: str) -> list[float]:
    """Return the images per second in train.py's log, for each epoch but the first.

    Raises:
        UserError: the log has no second epoch.
    """
    rates = {int(epoch): float(rate) for epoch, rate in _RATE.findall(log)}  # that of an epoch's last line
    if max(rates, default=0) < 1:
        raise UserError(f"--timm: train.py's log has no rate of a second epoch: {log[-500:]!r}")
    return [rates[epoch] for epoch in sorted(rates) if epoch > 0]


def script_run(root: Path, photos: Path, output: Path, recipe: Recipe, epochs: int = 3) -> Callable[[], list[float]]:
    """Return a function that runs train.py of timm's repository at `root` and returns the rates of all epochs but one.

    Raises:
        UserError: `root` has no train.py, or train.py fails.
    """
    script = root / 'train.py'
    if not script.is_file():
        raise UserError(f"--timm {root}: no train.py in this folder; use a checkout of timm's repository")
    return partial(_run_script, script_command(script, photos, output, recipe, epochs), root)


def _run_script(command: list[str], root: Path) -> list[float]:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f'--timm {root}: train.py ended with {done.returncode}: {done.stderr.strip()[-500:]}')
    return script_rates(done.stdout + done.stderr)
