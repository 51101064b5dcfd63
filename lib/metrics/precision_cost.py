"""The cost of a lower precision: metrics of two models on the same images, and their paired difference by group."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lib.metrics.accuracy import count_per_class, mean_over_classes, shot_groups
from lib.metrics.intervals import NUM_DRAWS, difference_interval
from lib.metrics.predictions import Predictions

ALL = 'all'


@dataclass(frozen=True)
class GroupCost:
    """The mean class error over a group of classes, before and after; fractions.

    Attributes:
        classes: with images.
        images: labeled images.
        before, after: mean class error of the first and of the second model.
        difference: after - before; above 0, the second model is worse.
        interval: (low, high) of the difference, 95 %; paired, see lib.metrics.intervals.
    """

    classes: int
    images: int
    before: float
    after: float
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class PrecisionCost:
    """The metrics of a model in float32 and in a lower precision.

    Attributes:
        top1: accuracy over images, before and after.
        groups: all, many, medium and few; a group without images is absent.
    """

    top1: tuple[float, float]
    groups: dict[str, GroupCost]

    @property
    def loss(self) -> float:
        """The increase of the mean class error, as a fraction."""
        return self.groups[ALL].difference

    def lines(self, precision: str) -> Iterator[str]:
        """Yield a table for the log, lines of at most 80 columns."""
        images = self.groups[ALL].images
        before, after = (100 * value for value in self.top1)
        yield f'{precision} against float32 on {images:,} valid images: top-1 {before:.1f} -> {after:.1f} %'
        for name, group in self.groups.items():
            label = 'mean class error' if name == ALL else f'  {name} ({group.classes:,})'
            low, high = (100 * end for end in group.interval)
            yield (
                f'{label:<18}{100 * group.before:5.1f} -> {100 * group.after:4.1f} %: '
                f'{100 * group.difference:+.2f} points, 95 % [{low:+.2f}, {high:+.2f}]'
            )

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {'top1': list(self.top1), 'groups': {name: asdict(group) for name, group in self.groups.items()}}


def precision_cost(
    first: Predictions,
    second: Predictions,
    train_counts: np.ndarray,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> PrecisionCost:
    """Compare the predictions in a lower precision with those in float32, for the same images.

    Images labeled -1 do not count.

    Args:
        first, second: in float32 and in the lower precision.
        train_counts: (num_classes,) images per class in the original training set; all 0 where they are unknown, then
            there are no groups.

    Raises:
        ValueError: the images differ, or none is labeled.
    """
    if not np.array_equal(first.labels, second.labels) or not (first.labels >= 0).any():
        raise ValueError('the cost of a precision is measured on the same labeled images')
    first, second = first.labeled(), second.labeled()
    num_classes = len(train_counts)

    def count(values: np.ndarray) -> np.ndarray:
        return count_per_class(first.labels, values, num_classes)[0]

    total = np.bincount(first.labels, minlength=num_classes)
    before, after = count(~first.correct), count(~second.correct)
    gained, lost = count(second.correct & ~first.correct), count(first.correct & ~second.correct)
    masks = {ALL: np.ones(num_classes, bool), **(shot_groups(train_counts) if train_counts.any() else {})}
    groups = {}
    for name, mask in masks.items():
        if not total[mask].any():
            continue
        low, high = difference_interval(gained[mask], lost[mask], total[mask], num_draws=num_draws, seed=seed)
        old, new = (mean_over_classes(wrong[mask], total[mask]) for wrong in (before, after))
        groups[name] = GroupCost(
            classes=int((total[mask] > 0).sum()),
            images=int(total[mask].sum()),
            before=old,
            after=new,
            difference=mean_over_classes((lost - gained)[mask], total[mask]),
            interval=(-high, -low),
        )
    return PrecisionCost((float(first.correct.mean()), float(second.correct.mean())), groups)
