"""Files that correct a split: decisions.json (labels judged in a review) and quarantine.json (images excluded)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.paths import comparable_paths
from lib.errors import UserError, is_unicode, shown, unquoted
from lib.runtime.files import write_bytes
from lib.runtime.json_file import read_json
from lib.runtime.read_file import GB
from lib.runtime.text import count_of, nfc

Action = Literal['keep', 'relabel', 'drop', 'unsure', 'weight']
ACTIONS: tuple[Action, ...] = get_args(Action)
_MAX_STALE = 3  # named in a warning
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
        weight: weight of the image in the loss, in (0, 1], for 'weight'.
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


@dataclass(frozen=True)
class CorrectedRows:
    """The changes that decisions make to a split of num_images images.

    Attributes:
        labels: (num_images,) int32, corrected.
        relabeled, dropped, weighted: rows with such a decision in effect, ascending.
        weights: (len(weighted),) float32 weights in the loss.
        counts: images by action, decisions that are 'already' in effect, and 'stale' ones.
        stale: a phrase for each of the first stale decisions, which have no effect.
    """

    labels: np.ndarray
    relabeled: np.ndarray
    dropped: np.ndarray
    weighted: np.ndarray
    weights: np.ndarray
    counts: dict[str, int]
    stale: list[str]


def apply_decisions(
    decisions: Sequence[Decision], names: pa.Array, labels: np.ndarray, class_names: Sequence[str], file: str | Path
) -> CorrectedRows:
    """Apply decisions to every row with the path and the label that were judged.

    Args:
        names: (num_images,) paths in the form of `comparable_paths`.
        labels: (num_images,) int32; -1 where unknown.
        class_names: (num_classes,) in NFC.
        file: name of the decisions in errors.

    Raises:
        UserError: two decisions about one image contradict each other, or the name of a right class is that of two.
    """
    table = _Table(decisions, names.type)
    if len(pair := table.conflict()):
        first, second = (decisions[number] for number in pair)
        raise UserError(
            f'{file}: {unquoted(first.fpath)}: {_verdict(first)} and {_verdict(second)} contradict each other; remove '
            'one of these decisions'
        )
    number_of: dict[str, int] = {}
    canonical = np.array([number_of.setdefault(name, number) for number, name in enumerate(class_names)])
    is_relabel = table.actions == ACTIONS.index('relabel')
    repeated = {class_names[number] for number in np.flatnonzero(canonical != np.arange(len(canonical))).tolist()}
    if repeated and (ambiguous := [name for name in table.names_of(table.to[is_relabel]) if name in repeated]):
        raise UserError(
            f'{file}: relabels to {shown(ambiguous[0])}, the name of several classes; give them different names'
        )
    judged, to = (table.numbers(codes, number_of) for codes in (table.label, table.to))

    width = len(class_names) + 1
    row_path = pc.fill_null(pc.index_in(names, table.paths), -1).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(row_path >= 0)
    row_label = np.append(canonical, width - 1)[labels[rows]]  # -1 becomes width - 1
    row_key = row_path[rows].astype(np.int64) * width + row_label
    key = np.where(judged < 0, -1, table.path * width + judged)
    order = np.argsort(key, kind='stable')
    position = np.minimum(np.searchsorted(key[order], row_key), max(len(order) - 1, 0))
    matches = key[order[position]] == row_key if len(order) else np.zeros(0, bool)
    rows, decided = rows[matches], order[position[matches]]

    is_used = np.bincount(decided, minlength=len(key)) > 0
    is_already = is_relabel & (to >= 0) & np.isin(table.path * width + to, row_key) & (~is_used | (to == judged))
    is_stale = ~is_already & (~is_used | (is_relabel & (to < 0)))
    in_effect = (~is_already & ~is_stale)[decided]
    rows, decided = rows[in_effect], decided[in_effect]
    of_action = {action: table.actions[decided] == number for number, action in enumerate(ACTIONS)}
    corrected = np.array(labels, np.int32)
    corrected[rows[of_action['relabel']]] = to[decided[of_action['relabel']]]
    counts: dict[str, int] = {action: int(chosen.sum()) for action, chosen in of_action.items()}
    return CorrectedRows(
        labels=corrected,
        relabeled=rows[of_action['relabel']],
        dropped=rows[of_action['drop']],
        weighted=rows[of_action['weight']],
        weights=table.weights[decided[of_action['weight']]],
        counts={**counts, 'already': int(is_already.sum()), 'stale': int(is_stale.sum())},
        stale=[
            _stale_phrase(table.decision(int(number)), row_path == table.path[number], labels, class_names)
            for number in np.flatnonzero(is_stale)[:_MAX_STALE].tolist()
        ],
    )


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return the `counts` of CorrectedRows, such as '31 labels corrected, 12 images dropped, 5 unsure'."""
    number = {action: counts.get(action, 0) for action in (*ACTIONS, 'already')}
    phrases = {
        'relabel': count_of(number['relabel'], 'label') + ' corrected',
        'drop': count_of(number['drop'], 'image') + ' dropped',
        'weight': count_of(number['weight'], 'image') + ' weighted',
        'already': f'{number["already"]:,} already corrected',
        'unsure': f'{number["unsure"]:,} unsure',
    }
    return ', '.join(text for name, text in phrases.items() if number[name] or name in ('relabel', 'drop'))


class _Table:
    """Decisions as columns, each different decision once.

    Attributes:
        paths: Arrow texts, the different paths.
        path: (n,) int64, their numbers; of n decisions.
        label, to: (n,) int64 numbers of names.
        actions: (n,) int64 numbers in ACTIONS.
        weights: (n,) float32.
    """

    def __init__(self, decisions: Sequence[Decision], path_type: pa.DataType) -> None:
        self._decisions = decisions
        paths = comparable_paths(pa.array([decision.fpath for decision in decisions], pa.large_string()))
        encoded = paths.cast(path_type).dictionary_encode()
        self.paths = encoded.dictionary
        code_of: dict[str, int] = {}

        def codes(names: Iterable[str]) -> np.ndarray:
            return np.fromiter((code_of.setdefault(nfc(name), len(code_of)) for name in names), np.int64)

        number_of_action: dict[str, int] = {action: number for number, action in enumerate(ACTIONS)}
        path = np.array(encoded.indices.to_numpy(), np.int64)
        label, to = codes(decision.label for decision in decisions), codes(decision.to for decision in decisions)
        actions = np.array([number_of_action[decision.action] for decision in decisions], np.int64)
        weights = np.array([decision.weight or 1.0 for decision in decisions], np.float32)
        self._names = list(code_of)
        self._order = np.lexsort((label, path))
        before, after = self._order[:-1], self._order[1:]
        self._is_first = np.ones(len(decisions), bool)
        self._is_first[after] = (path[after] != path[before]) | (label[after] != label[before])
        is_relabel, is_weight = (actions == number_of_action[action] for action in ('relabel', 'weight'))
        self._verdicts = actions, np.where(is_relabel, to, -1), np.where(is_weight, weights, 1)
        self._numbers = np.flatnonzero(self._is_first)
        columns = (column[self._numbers] for column in (path, label, to, actions, weights))
        self.path, self.label, self.to, self.actions, self.weights = columns

    def conflict(self) -> tuple[int, ...]:
        """Return the numbers of the first two decisions about the same image and label that differ; () if none do."""
        before, after = self._order[:-1], self._order[1:]
        differ = np.logical_or.reduce([verdict[before] != verdict[after] for verdict in self._verdicts])
        pairs = np.flatnonzero(differ & ~self._is_first[after])
        if not len(pairs):
            return ()
        pair = pairs[np.argmin(np.maximum(before[pairs], after[pairs]))]
        return int(before[pair]), int(after[pair])

    def names_of(self, codes: np.ndarray) -> list[str]:
        """Return the different names with these numbers."""
        return [self._names[code] for code in np.unique(codes).tolist()]

    def numbers(self, codes: np.ndarray, number_of: dict[str, int]) -> np.ndarray:
        """Return the number of the class with each name; -1 if there is none."""
        return np.array([number_of.get(name, -1) for name in self._names], np.int64)[codes]

    def decision(self, number: int) -> Decision:
        """Return a decision by its row in the columns."""
        return self._decisions[int(self._numbers[number])]


def _verdict(decision: Decision) -> str:
    if decision.action == 'relabel':
        return f'relabel to {shown(decision.to)}'
    return f'weight {decision.weight:g}' if decision.action == 'weight' else decision.action


def _stale_phrase(decision: Decision, is_path: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str:
    if not is_path.any():
        return f'{unquoted(decision.fpath)} (no such image)'
    found = [class_names[label] if label >= 0 else 'none' for label in labels[is_path][:1].tolist()]
    if decision.action == 'relabel' and decision.label in found:
        return f'{unquoted(decision.fpath)} (no class is named {shown(decision.to)})'
    return f'{unquoted(decision.fpath)} (its label is {shown(found[0])}, judged was {shown(decision.label)})'


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
        rows: rows of the split, ascending.
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
