"""Learning rate schedules: pure functions of the step, so that a run resumes exactly without saved state.

Steps are optimizer steps, counted from 0 over the whole run. Durations are given in epochs, possibly fractional, and
rounded to the nearest step. Warm-up is linear: step s of W warm-up steps has the fraction f + (1 - f) (s + 1) / W of
the scheduled learning rate, where f is the start factor. So the learning rate of step 0 is above 0, and step W - 1 has
the full rate. In a run of two steps or more, a warm-up has at least one step, and leaves at least one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lib.errors import UserError


@dataclass(frozen=True)
class MultiStep:
    """The base rate times the factors of all milestones reached (step >= milestone), times the warm-up fraction."""

    base_lr: float
    milestones: tuple[int, ...]  # steps, increasing
    factors: tuple[float, ...]  # one per milestone
    warmup_steps: int = 0
    warmup_start_factor: float = 0.0

    def __call__(self, step: int) -> float:
        reached = sum(step >= milestone for milestone in self.milestones)
        lr = self.base_lr * math.prod(self.factors[:reached])
        return lr * warmup_fraction(step, self.warmup_steps, self.warmup_start_factor)


@dataclass(frozen=True)
class CosineSchedule:
    """Half a cosine from the base to the final rate (Loshchilov & Hutter, ICLR 2017, eq. 5, one period).

    It starts at the end of warm-up, and would reach `final_lr` at `total_steps`, one step after the last.
    """

    base_lr: float
    final_lr: float
    total_steps: int
    warmup_steps: int = 0
    warmup_start_factor: float = 0.0

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.base_lr * warmup_fraction(step, self.warmup_steps, self.warmup_start_factor)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return anneal(self.base_lr, self.final_lr, progress)


@dataclass(frozen=True)
class OneCycle:
    """One rise to the peak and one fall, both half cosines (Smith & Topin, 2018; like torch's OneCycleLR).

    From peak_lr / div_factor at step 0 to `peak_lr` at the last warm-up step, then down to
    peak_lr / (div_factor * final_div_factor) at the last step. The momentum is not changed.
    """

    peak_lr: float
    total_steps: int
    warmup_steps: int
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __call__(self, step: int) -> float:
        start_lr = self.peak_lr / self.div_factor
        peak_step = self.warmup_steps - 1
        if step < peak_step:
            return anneal(start_lr, self.peak_lr, step / peak_step)
        last_step = self.total_steps - 1
        progress = (step - peak_step) / max(1, last_step - peak_step)
        return anneal(self.peak_lr, start_lr / self.final_div_factor, progress)


def multistep(
    base_lr: float,
    milestone_epochs: Sequence[float],
    factors: float | Sequence[float],
    *,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_start_factor: float = 0.0,
) -> MultiStep:
    """Create a step schedule; a single factor applies to every milestone.

    Raises:
        UserError: the milestones do not increase, or the number of factors is another.
    """
    milestone_epochs = tuple(milestone_epochs)
    factors = tuple(factors) if isinstance(factors, Sequence) else (factors,)
    if any(later <= earlier for earlier, later in pairwise(milestone_epochs)):
        raise UserError(f'SCHEDULE.MILESTONE_EPOCHS must increase, not {milestone_epochs}')
    if len(factors) == 1:
        factors *= len(milestone_epochs)
    if len(factors) != len(milestone_epochs):
        raise UserError(
            f'SCHEDULE.DECAY_FACTORS has {len(factors)} values for {len(milestone_epochs)} '
            'SCHEDULE.MILESTONE_EPOCHS: set one value for all, or one per milestone'
        )
    milestones = tuple(to_steps(epoch, steps_per_epoch) for epoch in milestone_epochs)
    warmup_steps = to_steps(warmup_epochs, steps_per_epoch)
    return MultiStep(base_lr, milestones, factors, warmup_steps, warmup_start_factor)


def cosine(
    base_lr: float,
    final_lr: float,
    *,
    max_epoch: float,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_start_factor: float = 0.0,
) -> CosineSchedule:
    """Create a cosine schedule over `max_epoch` epochs, warm-up included.

    Raises:
        UserError: warm-up takes all epochs.
    """
    total_steps, warmup_steps = _durations(max_epoch, warmup_epochs, steps_per_epoch)
    return CosineSchedule(base_lr, final_lr, total_steps, warmup_steps, warmup_start_factor)


def one_cycle(
    base_lr: float,
    *,
    max_epoch: float,
    steps_per_epoch: int,
    warmup_epochs: float,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> OneCycle:
    """Create a one-cycle schedule with its peak `base_lr` at the end of `warmup_epochs`.

    Raises:
        UserError: warm-up takes all epochs.
    """
    total_steps, warmup_steps = _durations(max_epoch, warmup_epochs, steps_per_epoch)
    return OneCycle(base_lr, total_steps, warmup_steps, div_factor, final_div_factor)


def warmup_epochs(epochs: float, fraction: float, max_epoch: float) -> float:
    """Return the length of the warm-up: `epochs`, or `fraction` of the run if that is negative."""
    return epochs if epochs >= 0 else fraction * max_epoch


def to_steps(epochs: float, steps_per_epoch: int) -> int:
    """Return a duration in steps, rounded: 0.07 epochs of 100 steps are 7, not 7.000000000000001."""
    return round(epochs * steps_per_epoch)


def warmup_fraction(step: int, warmup_steps: int, start_factor: float) -> float:
    """Return the fraction of the learning rate at `step`: above 0 from step 0 on, 1 from the last warm-up step on."""
    if step >= warmup_steps:
        return 1.0
    return start_factor + (1 - start_factor) * (step + 1) / warmup_steps


def anneal(start: float, end: float, progress: float) -> float:
    """Return the half-cosine interpolation from `start` at progress 0 to `end` at progress 1 and beyond."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _durations(max_epoch: float, warmup_epochs: float, steps_per_epoch: int) -> tuple[int, int]:
    if warmup_epochs >= max_epoch:
        raise UserError(f'SCHEDULE.WARMUP_EPOCHS {warmup_epochs} must be less than TRAIN.MAX_EPOCH {max_epoch}')
    total_steps = to_steps(max_epoch, steps_per_epoch)
    warmup_steps = max(1, to_steps(warmup_epochs, steps_per_epoch)) if warmup_epochs else 0
    return total_steps, min(warmup_steps, max(1, total_steps - 1))
