"""The converter of decisions.json, as the review page for photos without labels exports it."""

from pathlib import Path

import msgspec

from lib.dataset.corrections import read_decisions
from lib.errors import UserError
from lib.formats.converted import ConvertedDataset, SplitBuilder
from lib.formats.sources import image_folder
from lib.runtime.json_file import read_json
from lib.runtime.read_file import MAX_JSON_BYTES
from lib.runtime.text import count_of

UNLABELED = 'unlabeled'  # split of decisions about photos that belong to no split


class _Decisions(msgspec.Struct):
    decisions: list[msgspec.Raw] | None = None


def holds_decisions(path: str | Path) -> bool:
    """Return whether a JSON file has decisions instead of annotations. Raises: UserError as `read_json`."""
    return read_json(path, _Decisions, max_bytes=MAX_JSON_BYTES).decisions is not None


def convert_decisions(source: Path, *, image_root: str | None = None) -> ConvertedDataset:
    """Convert decisions about photos without labels: those that were given a class become the training split.

    Args:
        image_root: folder that relative paths are relative to; by default, that of `source`.

    Raises:
        UserError: no such file, of another form or about another split, or no photo was given a class.
    """
    decisions = read_decisions(source, UNLABELED)
    builder = SplitBuilder()
    builder.begin('train')
    last = {decision.fpath: decision for decision in decisions}
    named = {fpath: one.to for fpath, one in last.items() if one.action == 'relabel'}
    for fpath, name in named.items():
        builder.add('train', fpath, name)
    if not named:
        raise UserError(f'{source}: no photo was given a class; choose classes on the review page, and export again')
    splits, names = builder.finish()
    num_others = sum(decision.action != 'relabel' for decision in last.values())
    warnings = [f'{count_of(num_others, "photo")} without a class (dropped or unsure)'] if num_others else []
    return ConvertedDataset(splits, names, None, image_folder(source, image_root), warnings)
