"""Folders with one sub-folder per class as a data set, split into training and validation without annotation files."""

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import UserError
from lib.runtime.seeding import Purpose, generator

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.heic', '.heif')
VALID_NAMES = ('val', 'valid', 'validation')
_DIGITS = re.compile(r'([0-9]+)')
_LAYOUT = 'needed is one sub-folder per class, {root}/CLASS/photo.jpg (or {root}/train/CLASS and {root}/val/CLASS)'


@dataclass(frozen=True)
class FolderImages:
    """The images of one split.

    Attributes:
        paths: below the root, separated by `/`.
        labels: (num_images,) int32.
    """

    paths: list[str]
    labels: np.ndarray


def sample_valid_indices(num_images: int, name: str, fraction: float, seed: int) -> np.ndarray:
    """Return the indices, ascending, of the images of class `name` that are used for validation.

    There are round(fraction * num_images) of them, at least one and not all; none for a class of one image. They depend
    on (seed, name, num_images) alone, so a new image changes only the split of that class.
    """
    if num_images < 2 or fraction <= 0:
        return np.zeros(0, np.int64)
    return sample_indices(num_images, name, min(num_images - 1, max(1, round(fraction * num_images))), seed)


def sample_indices(num_images: int, name: str, number: int, seed: int) -> np.ndarray:
    """Return the indices, ascending, of at most `number` random images of class `name`, seeded by (seed, name)."""
    slot = zlib.crc32(name.encode('utf-8', 'surrogateescape'))
    return np.sort(generator(seed, Purpose.SPLIT, slot=slot).permutation(num_images)[:number])


def natural_key(text: str) -> tuple:
    """Return a sort key that sorts `a2` before `a10` and differs for different texts (`7` and `007`)."""
    parts = _DIGITS.split(text)
    # Numbers are compared by length, then by digits: int() rejects very long ones.
    numbers = [(len(part.lstrip('0')), part.lstrip('0')) for part in parts[1::2]]
    return [*zip(parts[::2], [*numbers, (-1, '')], strict=True)], text


def sorted_naturally(texts: Iterable[str]) -> list[str]:
    """Return the texts in natural order: numbers in them are sorted as numbers."""
    return sorted(texts, key=natural_key)


def walk_images(folder: str | os.PathLike, prefix: str = '') -> Iterator[str]:
    """Yield the paths of the images in `folder` and its sub-folders, in natural order, each after `prefix`.

    Hidden files and folders are skipped. Links to folders are followed, except those to a parent folder.
    """
    yield from _walk(os.fspath(folder), prefix, ())


def find_class_folders(root: str | os.PathLike) -> list[str]:
    """Return the names of the sub-folders of `root` that contain an image, in natural order."""
    names = [name for name in _sub_folders(root) if next(walk_images(os.path.join(root, name)), None) is not None]
    return sorted_naturally(names)


def split_folder(
    root: str | os.PathLike, *, valid_fraction: float, seed: int
) -> tuple[FolderImages, FolderImages, list[str]]:
    """Return training images, validation images and class names of a folder of class folders.

    `root`/train and `root`/val (or valid, validation) are the splits if both contain class folders. Otherwise
    `sample_valid_indices` selects `valid_fraction` of the images of each class for validation.

    Raises:
        UserError: no such folder, no class folders in it, or validation classes without a training folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f'{root}: {"not a folder" if root.exists() else "no such folder"}')
    valid = next((name for name in VALID_NAMES if _class_folders_if_any(root / name)), None)
    if valid and _class_folders_if_any(root / 'train'):
        return _given_split(root, valid)
    # train/ without a validation folder is split itself (test/ beside it is not for training).
    wrapped = set(find_class_folders(root)) <= {'train', 'test'} and _class_folders_if_any(root / 'train')
    base, prefix = (root / 'train', 'train/') if wrapped else (root, '')
    names = find_class_folders(base)
    if not names:
        raise UserError(f'{root}: no class folders with images in it; ' + _LAYOUT.format(root=root))
    train_images: tuple[list[str], list[int]] = ([], [])
    valid_images: tuple[list[str], list[int]] = ([], [])
    for label, name in enumerate(names):
        paths = list(walk_images(base / name, f'{prefix}{name}/'))
        valid_indices = set(sample_valid_indices(len(paths), name, valid_fraction, seed).tolist())
        for index, path in enumerate(paths):
            split_paths, split_labels = valid_images if index in valid_indices else train_images
            split_paths.append(path)
            split_labels.append(label)
    return _images(*train_images), _images(*valid_images), names


def labels_by_folder(paths: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Return (num_images,) int32 labels of images in folders that are named after classes.

    A class name is the outermost folder, or the whole path of the folder (`Fruit/Apple`). Unless every image has such
    a label, all are -1: folders of new photos may have any names.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    folders = [path.rpartition('/')[0] for path in paths]
    labels = np.array(
        [label_of.get(folder, label_of.get(folder.partition('/')[0], -1)) for folder in folders], np.int32
    )
    return labels if (labels >= 0).all() else np.full(len(labels), -1, np.int32)


def _class_folders_if_any(root: str | os.PathLike) -> list[str]:
    """Return the class folders of `root`; none if it is not a folder."""
    return find_class_folders(root) if os.path.isdir(root) else []


def _given_split(root: Path, valid: str) -> tuple[FolderImages, FolderImages, list[str]]:
    names = find_class_folders(root / 'train')
    unknown = [name for name in find_class_folders(root / valid) if name not in set(names)]
    if unknown:
        raise UserError(
            f'{root / valid}: class {unknown[0]!r} ({len(unknown)} in all) has no images in {root / "train"}'
        )
    splits = []
    for split in ('train', valid):
        paths, labels = [], []
        for label, name in enumerate(names):
            if (root / split / name).is_dir():
                class_paths = list(walk_images(root / split / name, f'{split}/{name}/'))
                paths += class_paths
                labels += [label] * len(class_paths)
        splits.append(_images(paths, labels))
    return splits[0], splits[1], names


def _images(paths: list[str], labels: list[int]) -> FolderImages:
    return FolderImages(paths, np.array(labels, np.int32))


def _sub_folders(root: str | os.PathLike) -> list[str]:
    with os.scandir(os.fspath(root)) as entries:
        return [entry.name for entry in entries if not entry.name.startswith('.') and entry.is_dir()]


def _walk(folder: str, prefix: str, parents: tuple[tuple[int, int], ...]) -> Iterator[str]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        return
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            if entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                images.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    for name in sorted_naturally(images):
        yield prefix + name
    for name in sorted_naturally(folders):
        yield from _walk(os.path.join(folder, name), f'{prefix}{name}/', (*parents, identity))
