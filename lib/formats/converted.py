"""The result of every converter (splits, class names, parents), and subsets of it.

SplitBuilder turns labels of any kind into category ids. `with_validation` splits off validation images, and
`with_imbalance` selects a long-tailed subset.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lib.dataset.folder import sample_valid_indices
from lib.errors import UserError, shown
from lib.formats.cifar import class_sizes
from lib.formats.sources import SPLITS
from lib.runtime.seeding import Purpose, generator
from lib.runtime.text import count_of, natural_key, nfc, nfc_list

UNLABELED = -1


@dataclass(frozen=True)
class ConvertedSplit:
    """The images of one split, as columns: millions of pairs would take several times as much memory.

    Attributes:
        paths: as in the source, relative to `ConvertedDataset.root`.
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
class ConvertedDataset:
    """A data set with category ids 0 to C - 1.

    Attributes:
        splits: some of 'train', 'val', 'test'.
        names: the original label of each class, in NFC.
        parents: ancestors of each class, root first; None if the source has none.
        root: folder that the paths are relative to.
        warnings: lines for the user.
    """

    splits: dict[str, ConvertedSplit]
    names: list[str]
    parents: list[list[str]] | None
    root: Path
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'names', nfc_list(self.names))
        if self.parents is not None:
            object.__setattr__(self, 'parents', [nfc_list(ancestors) for ancestors in self.parents])


class SplitBuilder:
    """Collects images one at a time, with any text as label, and numbers the classes at the end.

    Labels that are equal under NFC are the same class.
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}  # label, in NFC -> index in the order of appearance
        self._spellings: dict[str, int] = {}  # label as it is spelled -> the same
        self._columns: dict[str, tuple[list[str], array]] = {}

    def begin(self, split: str) -> None:
        """Add a split, which may remain empty."""
        self._columns.setdefault(split, ([], array('i')))

    def add(self, split: str, path: str, label: str | None) -> None:
        """Add one image to a split; `label` is None if it has none."""
        paths, codes = self._columns.setdefault(split, ([], array('i')))
        paths.append(path)
        codes.append(UNLABELED if label is None else self._code_of(label))

    def _code_of(self, label: str) -> int:
        code = self._spellings.get(label)
        if code is None:
            code = self._spellings[label] = self._codes.setdefault(nfc(label), len(self._codes))
        return code

    def finish(self) -> tuple[dict[str, ConvertedSplit], list[str]]:
        """Return the splits, and the labels in the order of the category ids, the natural one (`2` before `10`).

        Raises:
            UserError: a split is only partly labeled, or has classes without training images.
        """
        columns = {split: (paths, np.array(codes, np.int32)) for split, (paths, codes) in self._columns.items()}
        texts = list(self._codes)
        train = columns['train'][1] if 'train' in columns else np.arange(len(texts))
        trained = np.bincount(train[train >= 0], minlength=len(texts)) > 0
        order = sorted(np.flatnonzero(trained).tolist(), key=lambda code: natural_key(texts[code]))
        label_of = np.full(len(texts), UNLABELED, np.int32)
        label_of[order] = np.arange(len(order))
        splits = {}
        for split in [name for name in SPLITS if name in columns]:
            splits[split] = _relabel(split, *columns[split], label_of, texts)
        return splits, [texts[code] for code in order]


def _relabel(split: str, paths: list[str], codes: np.ndarray, label_of: np.ndarray, texts: list[str]) -> ConvertedSplit:
    missing = codes == UNLABELED
    if missing.all() and split == 'test':
        return ConvertedSplit(paths, None)
    if missing.any():
        row = int(np.argmax(missing))
        number = int(missing.sum())
        raise UserError(f'{split}: image {shown(paths[row])} has no label ({number} of {len(paths)} have none)')
    labels = label_of[codes]
    if (labels == UNLABELED).any():
        row = int(np.argmax(labels == UNLABELED))
        count = len(np.unique(codes[labels == UNLABELED]))
        raise UserError(
            f'{split}: class {shown(texts[codes[row]])} of image {shown(paths[row])} has no training image '
            f'({count} such classes in all); add images to train or remove the class from {split}'
        )
    return ConvertedSplit(paths, labels)


def summary_lines(converted: ConvertedDataset, paths: dict[str, Path]) -> list[str]:
    """Return one line per written file; imbalance is the largest class over the smallest non-empty class."""
    lines = []
    for name, path in paths.items():
        split = converted.splits[name]
        line = f'{path}: {count_of(len(split), "image")}'
        if split.labels is None:
            line += ', without labels'
        else:
            counts = np.bincount(split.labels, minlength=len(converted.names))
            present = counts[counts > 0]
            low, high = int(present.min()), int(present.max())
            line += f', {len(present):,} of {len(counts):,} classes, {low:,} to {high:,} images per class'
            line += f' (imbalance {high / low:,.1f})'
        lines.append(line)
    folder = next(iter(paths.values())).parent
    and_parents = '' if converted.parents is None else ' and parents'
    lines.append(f'{folder / "classes.json"}: names{and_parents} of {len(converted.names):,} classes')
    return lines


def without_repeats(converted: ConvertedDataset) -> ConvertedDataset:
    """Return the data set without entries of train and val that list an image again with the same label.

    Otherwise a copy could be selected for validation. An image with several labels remains, and is a warning.
    """
    splits, warnings = {}, list(converted.warnings)
    for name, split in converted.splits.items():
        splits[name] = split
        if name == 'test' or split.labels is None:
            continue
        numbers: dict[str, int] = {}
        images = np.fromiter((numbers.setdefault(nfc(path), len(numbers)) for path in split.paths), np.int64)
        if len(numbers) == len(split):
            continue
        _, first = np.unique(images * len(converted.names) + split.labels, return_index=True)
        splits[name] = _select(split, np.isin(np.arange(len(split)), first))
        if len(first) < len(split):
            entries = count_of(len(split) - len(first), 'entry repeats', 'entries repeat')
            warnings.append(f'{name}: {entries} an image with the same label, and will not be written')
        several = np.flatnonzero(np.bincount(images[first]) > 1)
        if len(several):
            example = shown(split.paths[int(np.argmax(images == several[0]))])
            number = count_of(len(several), 'image has', 'images have')
            warnings.append(f'{name}: {number} several labels, such as {example}')
    return replace(converted, splits=splits, warnings=warnings)


def with_validation(converted: ConvertedDataset, *, fraction: float, seed: int) -> ConvertedDataset:
    """Return the data set with `fraction` of the training images of each class as its validation split.

    Images are selected per class and seed as for a folder of class folders; the image of a class of 1 is not selected.

    Raises:
        UserError: the data set has a validation split, no labeled training split, or no class of two images.
    """
    if 'val' in converted.splits:
        raise UserError('--valid_fraction would split the training images, but SOURCE has a validation split')
    train = converted.splits.get('train')
    if train is None or train.labels is None:
        raise UserError('--valid_fraction splits the training images, but SOURCE has none')
    by_class = np.argsort(train.labels, kind='stable')
    starts = np.searchsorted(train.labels[by_class], np.arange(len(converted.names) + 1))
    is_valid = np.zeros(len(train), bool)
    for name, start, end in zip(converted.names, starts, starts[1:], strict=False):
        is_valid[by_class[start + sample_valid_indices(int(end - start), name, fraction, seed)]] = True
    if not is_valid.any():
        raise UserError(f'--valid_fraction {fraction:g} selects no image: every class has only 1 image')
    splits = {'train': _select(train, ~is_valid), 'val': _select(train, is_valid)}
    return replace(converted, splits={**converted.splits, **splits})


def _select(split: ConvertedSplit, selected: np.ndarray) -> ConvertedSplit:
    labels = None if split.labels is None else split.labels[selected]
    return ConvertedSplit([split.paths[row] for row in np.flatnonzero(selected)], labels)


def with_imbalance(converted: ConvertedDataset, *, ratio: float, seed: int) -> ConvertedDataset:
    """Return the data set with a long-tailed subset of its training images; the other splits are not changed.

    Classes are ranked by their number of training images n, the largest first, equal ones by category id. From the
    class at rank r of C, min(n, max(1, floor(n_max ratio^(-r / (C - 1))))) images are selected, as in CIFAR-LT (Cui et
    al., CVPR 2019) with n_max the size of the largest class; which ones is a function of (seed, category id). Classes
    without training images have no rank. The order of the images does not change.

    So the largest class remains complete, no class becomes empty, and sizes decrease with the rank. The ratio of the
    largest to the smallest of two or more classes is n_max / min(n_min, max(1, floor(n_max / ratio))), with n_min the
    size of the smallest class: exactly `ratio` if n_max / ratio is an integer and at most n_min, else more; at most
    n_max.

    Raises:
        UserError: the data set has no labeled training split.
    """
    train = converted.splits.get('train')
    if train is None or train.labels is None:
        raise UserError('--imbalance selects training images, but SOURCE has none with labels')
    counts = np.bincount(train.labels, minlength=len(converted.names))
    ranked = np.argsort(-counts, kind='stable')[: np.count_nonzero(counts)]
    sizes = np.zeros(len(counts), np.int64)
    sizes[ranked] = class_sizes(int(counts.max(initial=0)), len(ranked), 'exp', ratio)
    by_class = np.argsort(train.labels, kind='stable')
    starts = np.searchsorted(train.labels[by_class], np.arange(len(counts)))
    selected = np.zeros(len(train), bool)
    for label in np.flatnonzero(counts):
        indices = generator(seed, Purpose.IMBALANCE, slot=int(label)).permutation(counts[label])[: sizes[label]]
        selected[by_class[starts[label] + indices]] = True
    return replace(converted, splits={**converted.splits, 'train': _select(train, selected)})
