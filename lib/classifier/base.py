"""The interface of classifiers, and the initialization and transfer of their rows."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

# Elements drawn at a time: a multiple of 16, because torch draws normal numbers on a CPU in groups of 16.
_BLOCK = 2**20
_GROUP = 16


class Classifier(nn.Module):
    """Features (batch, num_features) -> logits (batch, num_classes), or those of a shard of the classes.

    Attributes:
        num_classes: total number of classes.
        classes: the classes whose rows this module holds.
        weight: (len(classes), num_features).
        bias: (len(classes),), only in classifiers that have one.
        num_centers: rows per class, of which the nearest counts; more than 1 only in cosine classifiers.
    """

    num_centers: int = 1
    num_classes: int
    classes: range
    weight: nn.Parameter

    def __init__(self, num_features: int, num_classes: int, *, classes: range | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classes = _checked_classes(classes, num_classes)
        self.weight = nn.Parameter(torch.empty(len(self.classes), num_features))

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x (batch, num_features), weight and bias such that the logits are x weight^T + bias.

        The weight is (len(classes), num_features); or (len(classes), num_centers, num_features) without a bias, and the
        logit of a class is the largest of its centers.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f'num_features={self.weight.shape[1]}, num_classes={self.num_classes}, classes={self.classes}'


def _checked_classes(classes: range | None, num_classes: int) -> range:
    """Return `classes`, all of them for None. Raise ValueError if they are empty or out of range."""
    if classes is None:
        return range(num_classes)
    if not (0 <= classes.start < classes.stop <= num_classes and classes.step == 1):
        raise ValueError(f'{classes} is no contiguous subset of {num_classes} classes')
    return classes


def draw_rows(
    rows: torch.Tensor, classes: range, num_classes: int, fill: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Fill `rows` in place with the rows `classes` of the tensor (num_classes, ...) that `fill` would draw.

    The state of the generator afterwards is the same, too. No memory larger than a block is allocated beside `rows`.
    Exact on the CPU, where numbers do not depend on how many are drawn at a time; elsewhere only for all classes.

    Args:
        rows: (len(classes), ...), contiguous.
        fill: draws numbers into a contiguous tensor, in place, from torch's global generator.
    """
    if len(classes) == num_classes:
        fill(rows)
        return
    flat = rows.view(-1)
    width = flat.numel() // len(classes)
    first, last, total = classes.start * width, classes.stop * width, num_classes * width
    block = flat.new_empty(min(_BLOCK + _GROUP, total))
    start = 0
    while start < total:
        # Torch draws the last 16 numbers of a tensor again if its size is no multiple of 16, and below 16 one by one.
        stop = total if total - start < _BLOCK + _GROUP else start + _BLOCK
        fill(block[: stop - start])
        low, high = max(start, first), min(stop, last)
        if low < high:
            flat[low - first : high - first] = block[low - start : high - start]
        start = stop


def transfer_rows(
    state: dict[str, torch.Tensor],
    trained: dict[str, torch.Tensor],
    names: Sequence[str],
    trained_names: Sequence[str],
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return `state` with the trained rows of all classes that both classifiers have, and the names of new classes.

    The centers of classifiers with different numbers of centers are not transferred.

    Args:
        state: state of the new classifier: weight (num_classes, num_features), maybe bias (num_classes,); not modified.
        trained: state of the trained classifier, with rows in the order of `trained_names`.
        names: names of the new classifier's classes, in the order of rows.
    """
    trained_row: dict[str, int] = {}
    for row, name in enumerate(trained_names):
        trained_row.setdefault(name, row)
    pairs = [(row, trained_row[name]) for row, name in enumerate(names) if name in trained_row]
    new_rows = [row for row, _ in pairs]
    old_rows = [row for _, row in pairs]
    result = {}
    for key, value in state.items():
        result[key] = value.clone()
        if key in trained and trained[key].shape[1:] == value.shape[1:] and pairs:
            result[key][new_rows] = trained[key][old_rows].to(value)
    return result, [name for name in names if name not in trained_row]
