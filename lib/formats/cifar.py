"""CIFAR-10-LT and CIFAR-100-LT (Cui et al., CVPR 2019): CIFAR with decreasing class sizes."""

from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import UserError, shown
from lib.formats.unpack import unpack
from lib.runtime.seeding import Purpose, generator

# name: class of torchvision, archive, folder in the archive
_SETS = {
    'cifar10_lt': ('CIFAR10', 'cifar-10-python.tar.gz', 'cifar-10-batches-py'),
    'cifar100_lt': ('CIFAR100', 'cifar-100-python.tar.gz', 'cifar-100-python'),
}
_SITE = 'https://www.cs.toronto.edu/~kriz'


def class_sizes(num_images: int, num_classes: int, imbalance_type: str, imbalance_ratio: float) -> np.ndarray:
    """Return (num_classes,) int64 images per class, from `num_images` down to num_images / imbalance_ratio.

    'exp': int(n_max * ratio^(-c / (C - 1))) (Cui et al., section 5.1; 12,406 and 10,847 images at ratio 100).
    'step': the second half of the classes has int(n_max / ratio) (Buda et al., Neural Networks 2018).
    """
    if imbalance_type not in ('exp', 'step'):
        raise ValueError(f"imbalance_type is {shown(imbalance_type)}; 'exp' or 'step' is needed")
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
    """Return the rows of the subset of LDAM-DRW (Cao et al., NeurIPS 2019), ascending: int64 (sizes.sum(),).

    Nearly all later papers use this subset. In the code of the paper, NumPy's legacy generator is seeded with 0 once;
    then, class by class, the rows of the class are shuffled and the first ones selected. It lists the images class by
    class in shuffled order; here they remain in CIFAR's order: the same set, which each epoch shuffles.
    """
    # RandomState is frozen by NumPy's compatibility policy, so the subset does not depend on its version.
    random = np.random.RandomState(0)
    selected = []
    for label, size in enumerate(sizes):
        rows = np.flatnonzero(labels == label)
        random.shuffle(rows)  # every class, even if all its rows are selected: the next class depends on the state
        selected.append(rows[:size])
    return np.sort(np.concatenate(selected))


def seeded_rows(labels: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Return `sizes[c]` random rows of each class c, a function of (seed, class), ascending: int64 (sizes.sum(),)."""
    selected = [
        generator(seed, Purpose.IMBALANCE, slot=label).permutation(np.flatnonzero(labels == label))[:size]
        for label, size in enumerate(sizes)
    ]
    return np.sort(np.concatenate(selected))


def load_cifar_lt(
    root: str | Path, name: str, *, imbalance_type: str, imbalance_ratio: float, seed: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return training images, training labels, validation images, validation labels, class names.

    Images are uint8 (num_images, 32, 32, 3), RGB; labels int32 (num_images,). The validation split is CIFAR's whole,
    balanced test set, as in the literature. The training images are a random subset per (seed, class); with seed None,
    the subset of the literature (`published_rows`). Both are in CIFAR's order. torchvision reads the files and verifies
    their checksums first; nothing is downloaded, but an archive in `root` is unpacked.

    Raises:
        UserError: the files are missing or damaged.
    """
    root = Path(root)
    train, valid = _read(root, name, train=True), _read(root, name, train=False)
    labels = np.array(train.targets, np.int32)
    counts = np.bincount(labels, minlength=len(train.classes))
    sizes = class_sizes(int(counts.max()), len(counts), imbalance_type, imbalance_ratio)
    rows = published_rows(labels, sizes) if seed is None else seeded_rows(labels, sizes, seed)
    return train.data[rows], labels[rows], valid.data, np.array(valid.targets, np.int32), list(train.classes)


def _read(root: Path, name: str, *, train: bool) -> Any:
    kind, archive, folder = _SETS[name]
    # Imported here: it takes seconds, and few runs need it.
    from torchvision import datasets

    if not (root / folder).is_dir() and (root / archive).is_file():
        unpack(root / archive, root)
    try:
        return getattr(datasets, kind)(str(root), train=train, download=False)
    except (RuntimeError, FileNotFoundError):
        damaged = (root / folder).is_dir()
        state = 'damaged or incomplete' if damaged else 'missing'
        remedy = ' and remove that folder' if damaged else ''
        raise UserError(
            f'{root / folder} is {state}; put {_SITE}/{archive} into {root} (DATASET.ROOT){remedy}; '
            'the archive is unpacked automatically'
        ) from None
