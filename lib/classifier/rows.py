"""Carrying a classifier over to another list of classes.

Initial numbers of some rows of a classifier: those that the whole of it would begin with.
"""

from collections.abc import Callable, Sequence

import torch


def transfer_rows(
    state: dict[str, torch.Tensor],
    trained: dict[str, torch.Tensor],
    names: Sequence[str],
    trained_names: Sequence[str],
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return `state` with the rows of every class that was trained under the same name, and the names that are new.

    Args:
        state: of the new classifier: weight (num_classes, num_features), maybe bias (num_classes,). Left as it is.
        trained: of the trained one, its rows in the order of `trained_names`.
        names: of the new classes, in the order of rows.
    """
    row_of = {name: row for row, name in enumerate(trained_names)}
    pairs = [(row, row_of[name]) for row, name in enumerate(names) if name in row_of]
    new_rows, old_rows = (list(side) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    carried = {}
    for key, value in state.items():
        carried[key] = value.clone()
        if key in trained and pairs:
            carried[key][new_rows] = trained[key][old_rows].to(value)
    return carried, [name for name in names if name not in row_of]


# Numbers drawn at a time. A multiple of 16, since torch draws normal numbers on a CPU in sixteens.
_BLOCK = 2**20
_SIXTEEN = 16


def held_classes(classes: range | None, num_classes: int) -> range:
    """Return the classes that a classifier holds; all of them for None.

    Raises ValueError if they are not among the classes, or none.
    """
    if classes is None:
        return range(num_classes)
    if not (0 <= classes.start < classes.stop <= num_classes and classes.step == 1):
        raise ValueError(f'{classes} is no part of {num_classes} classes')
    return classes


def draw_rows(
    rows: torch.Tensor, classes: range, num_classes: int, fill: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Fill `rows` with the rows `classes` of what `fill` would draw for (num_classes, ...), in place.

    The generator goes on from where the whole would leave it, too. Nothing larger than a block is held beside `rows`.
    On the CPU, where numbers do not depend on how many are drawn at a time; elsewhere only if `classes` are all.

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
    drawn = flat.new_empty(min(_BLOCK + _SIXTEEN, total))
    start = 0
    while start < total:
        # Torch draws the last numbers of a tensor again if they are not a full sixteen, and fewer one by one.
        stop = total if total - start < _BLOCK + _SIXTEEN else start + _BLOCK
        fill(drawn[: stop - start])
        low, high = max(start, first), min(stop, last)
        if low < high:
            flat[low - first : high - first] = drawn[low - start : high - start]
        start = stop
