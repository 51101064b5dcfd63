"""Carrying a classifier over to another list of classes."""

from collections.abc import Sequence

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
