"""What every converter returns, and how labels of any kind become category ids.

A converted data set in a few lines: images, classes and imbalance of each split.
A validation split for sources that come without one.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lib.dataset.folder import sample_valid_indices, natural_key
from lib.errors import UserError
from lib.formats.sources import SPLITS

UNLABELLED = -1


@dataclass(frozen=True)
class Split:
    """The images of one split, as columns: millions of pairs would take several times the memory.

    Attributes:
        paths: paths as the source gives them, relative to `Converted.root`.
        labels: (num_images,) int32 category ids; None in a split without labels.
    """

    paths: list[str]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[str, int | None]]:
        """Yield (fpath, label) pairs; the label is None in a split without labels."""
        labels = [None] * len(self) if self.labels is None else self.labels.tolist()
        return zip(self.paths, labels, strict=True)


@dataclass(frozen=True)
class Converted:
    """A data set in this project's terms.

    Attributes:
        splits: some of 'train', 'val', 'test'.
        names: the original label of each class.
        parents: ancestors of each class, root first; None when the source knows none.
        root: folder that the paths are relative to.
        warnings: what is odd, but does not stand in the way.
    """

    splits: dict[str, Split]
    names: list[str]
    parents: list[list[str]] | None
    root: Path
    warnings: list[str] = field(default_factory=list)


class SplitBuilder:
    """Takes images one at a time, with any text as label, and numbers the classes at the end."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}  # label -> place in the order of appearance
        self._columns: dict[str, tuple[list[str], array]] = {}

    def begin(self, split: str) -> None:
        """Note that there is such a split, be it empty."""
        self._columns.setdefault(split, ([], array('i')))

    def add(self, split: str, path: str, label: str | None) -> None:
        """Note one image of a split; `label` None where there is none."""
        paths, codes = self._columns.setdefault(split, ([], array('i')))
        paths.append(path)
        codes.append(UNLABELLED if label is None else self._codes.setdefault(label, len(self._codes)))

    def finish(self) -> tuple[dict[str, Split], list[str]]:
        """Return the splits and the labels in natural order (`2` before `10`), that of the category ids.

        Raises:
            UserError: a split is only partly labelled, or has classes without training images.
        """
        columns = {split: (paths, np.array(codes, np.int32)) for split, (paths, codes) in self._columns.items()}
        texts = list(self._codes)
        known = columns.get('train') or (None, np.arange(len(texts)))
        seen = np.bincount(known[1][known[1] >= 0], minlength=len(texts)) > 0
        order = sorted(np.flatnonzero(seen).tolist(), key=lambda code: natural_key(texts[code]))
        label_of = np.full(len(texts), UNLABELLED, np.int32)
        label_of[order] = np.arange(len(order))
        splits = {}
        for split in [name for name in SPLITS if name in columns]:
            splits[split] = _relabel(split, *columns[split], label_of, texts)
        return splits, [texts[code] for code in order]


def _relabel(split: str, paths: list[str], codes: np.ndarray, label_of: np.ndarray, texts: list[str]) -> Split:
    missing = codes == UNLABELLED
    if missing.all() and split == 'test':
        return Split(paths, None)
    if missing.any():
        row = int(np.argmax(missing))
        raise UserError(f'{split}: image {paths[row]!r} has no label ({int(missing.sum())} of {len(paths)} have none)')
    labels = label_of[codes]
    if (labels == UNLABELLED).any():
        row = int(np.argmax(labels == UNLABELLED))
        count = len(np.unique(codes[labels == UNLABELLED]))
        raise UserError(
            f'{split}: class {texts[codes[row]]!r} of image {paths[row]!r} has no training image '
            f'({count} such classes in all); add images to train or take the class out of {split}'
        )
    return Split(paths, labels)


def summary_lines(converted: Converted, paths: dict[str, Path]) -> list[str]:
    """Return one line a file written; imbalance is the largest class over the smallest that has an image."""
    lines = []
    for name, path in paths.items():
        split = converted.splits[name]
        line = f'{path}: {len(split):,} images'
        if split.labels is None:
            line += ', without labels'
        else:
            counts = np.bincount(split.labels, minlength=len(converted.names))
            present = counts[counts > 0]
            low, high = int(present.min()), int(present.max())
            line += f', {len(present):,} of {len(counts):,} classes, {low:,} to {high:,} images a class'
            line += f' (imbalance {high / low:,.1f})'
        lines.append(line)
    folder = next(iter(paths.values())).parent
    with_parents = '' if converted.parents is None else ' and parents'
    lines.append(f'{folder / "classes.json"}: names{with_parents} of {len(converted.names):,} classes')
    return lines


def with_validation(converted: Converted, *, fraction: float, seed: int) -> Converted:
    """Return the set with `fraction` of each class's training images as its validation split.

    Stratified and seeded as a folder of class folders is; a class of one image stays in training.

    Raises:
        UserError: there is a validation split already, no training split, or no class has two images.
    """
    if 'val' in converted.splits:
        raise UserError('--valid_fraction would split the training images, but SOURCE has a validation split')
    if 'train' not in converted.splits:
        raise UserError('--valid_fraction splits the training images, but SOURCE has none')
    train = converted.splits['train']
    by_class = np.argsort(train.labels, kind='stable')
    starts = np.searchsorted(train.labels[by_class], np.arange(len(converted.names) + 1))
    is_valid = np.zeros(len(train), bool)
    for name, start, end in zip(converted.names, starts, starts[1:], strict=False):
        is_valid[by_class[start + sample_valid_indices(int(end - start), name, fraction, seed)]] = True
    if not is_valid.any():
        raise UserError(f'--valid_fraction {fraction:g} keeps no image: every class has one image only')
    kept = {'train': _part(train, ~is_valid), 'val': _part(train, is_valid)}
    return replace(converted, splits={**converted.splits, **kept})


def _part(split: Split, chosen: np.ndarray) -> Split:
    return Split([split.paths[row] for row in np.flatnonzero(chosen)], split.labels[chosen])
