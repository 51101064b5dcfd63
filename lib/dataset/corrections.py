"""Files that correct a split: decisions.json (labels judged in a review) and quarantine.json (images excluded)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.paths import comparable_paths
from lib.errors import UserError, is_unicode, unquoted
from lib.runtime.files import write_bytes
from lib.runtime.json_file import read_json
from lib.runtime.read_file import GB

Action = Literal['keep', 'relabel', 'drop', 'unsure', 'weight']
ACTIONS: tuple[Action, ...] = get_args(Action)
_MAX_DECISIONS_BYTES = 4 * GB  # a weight for each of 10 million images
_DECISIONS_FORM = '{"split": "train", "decisions": [{"fpath": "...", "action": "drop", "label": "..."}, ...]}'
_QUARANTINE_FORM = '{"images": [{"fpath": "...", "split": "train", "reason": "..."}, ...]}'


class Decision(msgspec.Struct, omit_defaults=True):
    """Judgment of one image.

    Attributes:
        fpath: path of the image as annotated.
        action: 'keep' and 'unsure' change nothing; 'drop': the image is not used; 'relabel'; 'weight'.
        label: name of the class that the image had when it was judged; its number if classes have no names.
        to: name of the right class, of 'relabel'.
        weight: of the image in the loss, in (0, 1], of 'weight'.
        by: 'review' (a person) or 'clean' (tools/clean.py).
    """

    fpath: str
    action: Action
    label: str
    to: str = ''
    weight: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    by: str = ''


class _DecisionFile(msgspec.Struct):
    decisions: list[Decision]
    split: str = 'train'


def write_decisions(path: str | Path, decisions: Iterable[Decision], *, split: str = 'train') -> None:
    """Write decisions.json, the decisions one per line; equal decisions give equal bytes."""
    lines = b',\n'.join(map(msgspec.json.encode, decisions))
    write_bytes(path, b'{"split": %b, "decisions": [\n%b\n]}\n' % (msgspec.json.encode(split), lines))


def read_decisions(path: str | Path, split: str = 'train') -> list[Decision]:
    """Read the decisions about the images of `split`; a file that names no split is about 'train'.

    Raises:
        UserError: no such file, not of this form, or of another split; a relabeling without its class, or a weight
            without its number.
    """
    hint = '; clean.html and tools/clean.py write one'
    found = read_json(path, _DecisionFile, max_bytes=_MAX_DECISIONS_BYTES, example=_DECISIONS_FORM, hint=hint)
    if found.split != split:
        raise UserError(f'{path}: has decisions about the {unquoted(found.split)} split, not about the {split} split')
    for number, decision in enumerate(found.decisions):
        if not all(map(is_unicode, (decision.fpath, decision.label, decision.to))):
            raise UserError(f'{path}: decisions[{number}]: a text in it is not Unicode; remove it')
        if decision.action == 'relabel' and not decision.to:
            raise UserError(f'{path}: decisions[{number}]: relabel needs "to", the name of the right class')
        if decision.action == 'weight' and not 0 < (decision.weight or 0) <= 1:
            raise UserError(f'{path}: decisions[{number}]: weight needs "weight", above 0 and at most 1')
    return found.decisions


class _QuarantinedImage(msgspec.Struct):
    fpath: str
    split: str
    reason: str = ''


class _QuarantineFile(msgspec.Struct):
    images: list[_QuarantinedImage]


@dataclass(frozen=True)
class QuarantinedRows:
    """The entries of a quarantine file for one split.

    Attributes:
        rows: of the split, ascending.
        num_unknown: listed paths that are not in the split.
        num_other: entries of other splits.
    """

    rows: np.ndarray
    num_unknown: int
    num_other: int


def quarantined_rows(names: pa.LargeStringArray, file: str | Path, split: str) -> QuarantinedRows:
    """Return the rows of a split that a quarantine file lists.

    Args:
        names: (num_images,) paths as annotated; every row with a listed path, in any Unicode form, is quarantined.
        file: JSON of the form {"images": [{"fpath", "split", "reason"}, ...]}; other fields are ignored.
        split: entries of other splits are counted only.

    Raises:
        UserError: no such file, or not of this form.
    """
    images = read_json(file, _QuarantineFile, example=_QUARANTINE_FORM, hint='; tools/doctor.py writes one').images
    if not all(is_unicode(image.fpath) for image in images):
        raise UserError(f'{file}: an fpath is not Unicode; remove its entry')
    names = comparable_paths(names)
    listed = comparable_paths(pa.array([image.fpath for image in images if image.split == split], pa.large_string()))
    listed = listed.cast(names.type).unique()
    rows = np.flatnonzero(pc.is_in(names, listed).to_numpy(zero_copy_only=False))
    num_unknown = len(listed) - int(pc.sum(pc.is_in(listed, names)).as_py() or 0)
    return QuarantinedRows(rows, num_unknown, sum(image.split != split for image in images))
