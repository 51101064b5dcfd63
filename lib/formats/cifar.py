"""CIFAR-10-LT and CIFAR-100-LT (Cui et al., CVPR 2019): CIFAR with class sizes that fall.

A long-tailed subset of a set that is not, or not enough.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lib.errors import UserError
from lib.formats.converted import Converted, Split
from lib.formats.unpack import unpack
from lib.runtime.seeding import Purpose, generator

# name: torchvision's class, archive, folder in it, classes
_SETS = {
    'cifar10_lt': ('CIFAR10', 'cifar-10-python.tar.gz', 'cifar-10-batches-py'),
    'cifar100_lt': ('CIFAR100', 'cifar-100-python.tar.gz', 'cifar-100-python'),
}
_SITE = 'https://www.cs.toronto.edu/~kriz'


def class_sizes(num_images: int, num_classes: int, imbalance_type: str, imbalance_ratio: float) -> np.ndarray:
    """Return (num_classes,) int64 images a class, from `num_images` down to num_images / imbalance_ratio.

    'exp': int(n_max * ratio^(-c / (C - 1))) (Cui et al., section 5.1; 12,406 and 10,847 images at ratio 100).
    'step': the second half of the classes has int(n_max / ratio) (Buda et al., Neural Networks 2018).
    """
    if imbalance_type not in ('exp', 'step'):
        raise ValueError(f"imbalance_type is {imbalance_type!r}; 'exp' or 'step' is needed")
    if imbalance_ratio < 1:
        raise ValueError(f'imbalance_ratio is {imbalance_ratio}; at least 1 is needed')
    if imbalance_type == 'exp':
        position = np.arange(num_classes) / max(1, num_classes - 1)
    else:
        position = (np.arange(num_classes) >= num_classes // 2).astype(np.float64)
    # The smallest relative step up keeps 5000 / 100 from becoming 49.999...
    sizes = num_images * (1 / imbalance_ratio) ** position * (1 + 1e-12)
    return np.maximum(1, sizes.astype(np.int64))


def published_rows(labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the rows that the code of LDAM-DRW keeps (Cao et al., NeurIPS 2019), ascending: int64 (sizes.sum(),).

    Nearly all later papers use that set: NumPy's legacy generator is seeded with 0 once; then, class by class, the
    rows of the class are shuffled, and the first ones stay. Their code lists the images class by class in shuffled
    order; here they keep CIFAR's order, which is the same set, and an epoch shuffles it anyway.
    """
    # RandomState is frozen by NumPy's compatibility policy, so this set will be the same in ten years.
    random = np.random.RandomState(0)
    kept = []
    for label, size in enumerate(sizes):
        rows = np.flatnonzero(labels == label)
        random.shuffle(rows)  # of every class, whatever its size: the generator's state goes on to the next one
        kept.append(rows[:size])
    return np.sort(np.concatenate(kept))


def drawn_rows(labels: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Return `sizes[c]` rows of each class c, drawn by (seed, class), ascending: int64 (sizes.sum(),)."""
    kept = [
        generator(seed, Purpose.IMBALANCE, slot=label).permutation(np.flatnonzero(labels == label))[:size]
        for label, size in enumerate(sizes)
    ]
    return np.sort(np.concatenate(kept))


def load_cifar_lt(
    root: str | Path, name: str, *, imbalance_type: str, imbalance_ratio: float, seed: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return training images, training labels, validation images, validation labels, class names.

    Images are uint8 (num_images, 32, 32, 3), RGB; labels int32 (num_images,). Validation is CIFAR's whole,
    balanced test set, as everywhere in the literature. Which training images stay is drawn by (seed, class); with
    seed None they are those of the literature (`published_rows`). Either way they keep CIFAR's order.
    The reader is torchvision's, which compares checksums before it opens a file; nothing is downloaded, but
    an archive lying in `root` is unpacked.

    Raises:
        UserError: the files are missing or damaged.
    """
    root = Path(root)
    train, valid = _read(root, name, train=True), _read(root, name, train=False)
    labels = np.array(train.targets, np.int32)
    counts = np.bincount(labels, minlength=len(train.classes))
    sizes = class_sizes(int(counts.max()), len(counts), imbalance_type, imbalance_ratio)
    rows = published_rows(labels, sizes) if seed is None else drawn_rows(labels, sizes, seed)
    return train.data[rows], labels[rows], valid.data, np.array(valid.targets, np.int32), list(train.classes)


def _read(root: Path, name: str, *, train: bool):
    kind, archive, folder = _SETS[name]
    # Here, since it takes seconds and hardly any run needs it.
    from torchvision import datasets

    if not (root / folder).is_dir() and (root / archive).is_file():
        unpack(root / archive, root)
    try:
        return getattr(datasets, kind)(str(root), train=train, download=False)
    except (RuntimeError, FileNotFoundError):
        damaged = (root / folder).is_dir()
        state = 'damaged or incomplete' if damaged else 'not there'
        remedy = ' and remove that folder; it is unpacked by itself' if damaged else '; it is unpacked by itself'
        raise UserError(
            f'{root / folder} is {state}; put {_SITE}/{archive} into {root} (DATASET.ROOT){remedy}'
        ) from None


def with_imbalance(converted: Converted, *, ratio: float, seed: int) -> Converted:
    """Return the set with a long-tailed part of its training images; the other splits stay as they are.

    Classes are ranked by their number of training images, the largest first, equal ones by category id. Of the class
    at rank r of C, min(what it has, max(1, floor(n_max ratio^(-r / (C - 1))))) images stay, the sizes of CIFAR-LT (Cui
    et al., CVPR 2019) with n_max the largest class, drawn by (seed, category id). Classes without training images
    have no rank. Images stay in their order.

    So the largest class stays whole, no class is lost, and sizes fall with the rank. Largest over smallest (of two or
    more classes) is exactly n_max / min(n_min, max(1, floor(n_max / ratio))), n_min being what the smallest class
    has: `ratio` itself where n_max / ratio is a whole number that n_min reaches, else more; at most n_max.

    Raises:
        UserError: no training split with labels.
    """
    train = converted.splits.get('train')
    if train is None or train.labels is None:
        raise UserError('--imbalance thins out the training images, but SOURCE has none with labels')
    counts = np.bincount(train.labels, minlength=len(converted.names))
    ranked = np.argsort(-counts, kind='stable')[: np.count_nonzero(counts)]
    wanted = np.zeros(len(counts), np.int64)
    wanted[ranked] = class_sizes(int(counts.max(initial=0)), len(ranked), 'exp', ratio)
    by_class = np.argsort(train.labels, kind='stable')
    starts = np.searchsorted(train.labels[by_class], np.arange(len(counts)))
    kept = np.zeros(len(train), bool)
    for label in np.flatnonzero(counts):
        drawn = generator(seed, Purpose.IMBALANCE, slot=int(label)).permutation(counts[label])[: wanted[label]]
        kept[by_class[starts[label] + drawn]] = True
    rows = np.flatnonzero(kept)
    part = Split([train.paths[row] for row in rows], train.labels[rows])
    return replace(converted, splits={**converted.splits, 'train': part})
