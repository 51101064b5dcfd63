"""Folders with one sub-folder per class as a data set, split into training and validation without annotation files."""

import os
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib.dataset.image_walk import ImageWalk, left_out_lines
from lib.dataset.paths import path_as_text
from lib.errors import UserError, shown
from lib.runtime.seeding import Purpose, generator
from lib.runtime.text import count_of, few_names, first_few, nfc, sorted_naturally, visible

VALID_NAMES = ('val', 'valid', 'validation')
_LAYOUT = 'needed is one sub-folder per class, {root}/CLASS/photo.jpg (or {root}/train/CLASS and {root}/val/CLASS)'


@dataclass(frozen=True)
class FolderImages:
    """The images of one split.

    Attributes:
        paths: below the root, separated by `/`, spelled as on the disk.
        labels: (num_images,) int32.
    """

    paths: list[str]
    labels: np.ndarray


@dataclass(frozen=True)
class FolderDataset:
    """The splits of a folder of class folders.

    Attributes:
        names: names of the classes.
        valid_folder: the folder below the root whose images `valid` has; '' if they were held out.
        parents: folders around each class folder, the outermost first; [] if classes are not nested.
        notes: log lines about what was read in which way, and what was left out.
        warnings: lines about probable mistakes.
    """

    train: FolderImages
    valid: FolderImages
    names: list[str]
    valid_folder: str = ''
    parents: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class NoClassFolders(UserError):
    """A folder contains no class folder with an image."""


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


def class_name_of(folder: str) -> str:
    """Return the name of the class whose images are in a folder, from its path below the folder of all classes."""
    return nfc(path_as_text(folder))


def split_folder(root: str | os.PathLike, *, valid_fraction: float, seed: int, nested: bool = False) -> FolderDataset:
    """Return training images, validation images and class names of a folder of class folders.

    `root`/train and `root`/val (or valid, validation; in any case) are the splits if both contain class folders.
    Otherwise `sample_valid_indices` selects `valid_fraction` of the images of each class for validation.

    Args:
        nested: a class is a folder that directly contains images, at any depth, named by its path (`Fruit/Apple`);
            False: a class is an outermost folder with all images in and below it.

    Raises:
        UserError: no such folder, or validation classes without a training folder.
        NoClassFolders: no class folders in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f'{root}: {"not a folder" if root.exists() else "no such folder"}')
    return _Reader(ImageWalk(root), nested).read(valid_fraction, seed)


class _Reader:
    """Reads the splits from the folders below a root."""

    def __init__(self, walk: ImageWalk, nested: bool) -> None:
        self._walk, self._nested = walk, nested
        self._root = walk.root
        self._folders, self._loose = walk.list()
        self._images_of: dict[str, list[str]] = {}
        self._loose_in: dict[str, list[str]] = {}
        self._classes_of: dict[str, dict[str, list[str]]] = {}
        self._merged: list[str] = []  # folders whose class has another folder

    def read(self, valid_fraction: float, seed: int) -> FolderDataset:
        """Return the splits. Raises: UserError."""
        train = self._folder_named('train')
        valids = filter(None, map(self._folder_named, VALID_NAMES))
        valid = next((folder for folder in valids if self._classes(folder)), '')
        if train and valid and self._classes(train):
            return self._result([train, valid], *self._given_split(train, valid))
        # train/ without a validation folder is split itself (test/ beside it is not for training).
        others = [folder for folder in self._folders if folder.lower() not in ('train', 'test')]
        is_wrapped = bool(train and self._classes(train)) and not any(map(self._images_in, others))
        base = train if is_wrapped else ''
        return self._result([base], *self._random_split(base, valid_fraction, seed))

    def _given_split(self, train: str, valid: str) -> tuple[list[str], FolderImages, FolderImages]:
        of_train, of_valid = self._classes(train), self._classes(valid)
        unknown = sorted_naturally(of_valid.keys() - of_train.keys())
        if unknown:
            raise UserError(
                f'{Path(self._root, valid)}: class {shown(unknown[0])} ({len(unknown)} in all) has no images in '
                f'{Path(self._root, train)}'
            )
        names = sorted_naturally(of_train)
        train_images, valid_images = (
            _images([of_split.get(name, []) for name in names]) for of_split in (of_train, of_valid)
        )
        return names, train_images, valid_images

    def _random_split(
        self, base: str, valid_fraction: float, seed: int
    ) -> tuple[list[str], FolderImages, FolderImages]:
        classes = self._classes(base)
        names = sorted_naturally(classes)
        if not names:
            raise NoClassFolders(self._no_classes())
        train: list[list[str]] = []
        valid: list[list[str]] = []
        for name in names:
            paths = classes[name]
            valid_indices = set(sample_valid_indices(len(paths), name, valid_fraction, seed).tolist())
            train.append([path for index, path in enumerate(paths) if index not in valid_indices])
            valid.append([paths[index] for index in sorted(valid_indices)])
        return names, _images(train), _images(valid)

    def _folder_named(self, name: str) -> str:
        """Return the sub-folder of this name, in lower case if there are several; '' if there is none."""
        return next((folder for folder in sorted(self._folders, reverse=True) if folder.lower() == name), '')

    def _images_in(self, folder: str) -> list[str]:
        if folder not in self._images_of:
            self._images_of[folder] = list(self._walk.images(folder))
        return self._images_of[folder]

    def _classes(self, base: str) -> dict[str, list[str]]:
        """Return class name -> its images, of the class folders in a folder of the root."""
        if base not in self._classes_of:
            by_folder: dict[str, list[str]] = {}
            for top in [base] if base else self._folders:
                for path in self._images_in(top):
                    by_folder.setdefault(self._class_folder(path, base), []).append(path)
            self._loose_in[base] = by_folder.pop('', [])
            classes: dict[str, list[str]] = {}
            for folder, paths in by_folder.items():
                name = class_name_of(folder)
                if name in classes:
                    self._merged.append(visible(folder))
                    paths = sorted_naturally(classes[name] + paths)
                classes[name] = paths
            self._classes_of[base] = classes
        return self._classes_of[base]

    def _class_folder(self, path: str, base: str) -> str:
        """Return the path of an image's class folder below `base`; '' if the image is in none."""
        folder = path[len(base) + 1 if base else 0 :].rpartition('/')[0]
        return folder if self._nested else folder.partition('/')[0]

    def _no_classes(self) -> str:
        more = [line.removeprefix(f'{self._root}: ') for line in left_out_lines(self._walk, 1)[:1]]
        if self._loose:
            more.append(f'{count_of(len(self._loose), "image is", "images are")} directly in it')
        found = f' ({"; ".join(more)})' if more else ''
        return f'{self._root}: no class folders with images in it{found}; {_LAYOUT.format(root=self._root)}'

    def _result(self, bases: list[str], names: list[str], train: FolderImages, valid: FolderImages) -> FolderDataset:
        depth = 2 if bases[0] else 1  # of class folders
        folders = dict.fromkeys(path.rpartition('/')[0] for path in train.paths + valid.paths)
        notes = self._about_nesting(folders, depth) + left_out_lines(self._walk, None if self._nested else depth)
        if self._merged:
            notes.append(f'{self._root}: one class, though spelled in two Unicode forms: {first_few(self._merged)}')
        warnings = []
        loose = [*self._loose, *(path for base in bases for path in self._loose_in.get(base, []))]
        if loose:
            images = count_of(len(loose), 'image is', 'images are')
            warnings.append(f'{self._root}: {images} in no class folder: {few_names(loose)}')
        empty = self._without_images(folders, depth)
        if empty:
            folders_are = count_of(len(empty), 'folder is', 'folders are')
            warnings.append(f'{self._root}: {folders_are} no class, without images: {few_names(empty)}')
        parents = [name.split('/')[:-1] for name in names] if self._nested else []
        valid_folder = bases[1] if len(bases) > 1 else ''
        return FolderDataset(train, valid, names, valid_folder, parents if any(parents) else [], notes, warnings)

    def _about_nesting(self, folders: Collection[str], depth: int) -> list[str]:
        """Return log lines about folders with images inside of class folders."""
        inner = [folder for folder in folders if folder.count('/') >= depth]
        if inner and not self._nested:
            lines = [
                f'{self._root}: folders inside class folders count for the outer class: {few_names(inner)}',
                '  to make each of them a class: --DATASET_NESTED_CLASSES True',
            ]
        else:
            around = {parent for folder in inner for parent in _parents(folder)}
            outer = [folder for folder in folders if folder in around]
            lines = [f'{self._root}: classes with classes inside: {few_names(outer)}'] if outer else []
        return lines

    def _without_images(self, folders: Collection[str], depth: int) -> list[str]:
        """Return the folders that would be classes if there were images in or below them."""
        with_images = {parent for folder in folders for parent in _parents(folder)} | set(folders)
        empty = [folder for folder in self._walk.left_out if folder and folder not in with_images]
        if not self._nested:
            return [folder for folder in empty if folder.count('/') + 1 == depth]
        # The outermost of them.
        return [folder for folder in empty if folder.count('/') + 1 >= depth and not {*empty} & {*_parents(folder)}]


def _parents(folder: str) -> list[str]:
    """Return the folders around a folder, the innermost first."""
    parts = folder.split('/')
    return ['/'.join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _images(paths_of: list[list[str]]) -> FolderImages:
    """Return the images of classes 0, 1, ..."""
    labels = np.repeat(np.arange(len(paths_of), dtype=np.int32), [len(paths) for paths in paths_of])
    return FolderImages([path for paths in paths_of for path in paths], labels)


def labels_by_folder(paths: Sequence[str], class_names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the labels of images in folders that are named after classes, and the other folders.

    A class name is the path of the image's folder (`Fruit/Apple`), or the beginning of it (`Fruit`); the longest one
    counts.

    Returns:
        (num_images,) int32, -1 where no folder is named after a class; the paths of these folders.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    labels: dict[str, int] = {}
    of_images = np.empty(len(paths), np.int32)
    for row, path in enumerate(paths):
        folder = path.rpartition('/')[0]
        if folder not in labels:
            named = (label_of.get(class_name_of(name)) for name in (folder, *_parents(folder)) if name)
            labels[folder] = next((label for label in named if label is not None), -1)
        of_images[row] = labels[folder]
    return of_images, [folder for folder, label in labels.items() if label < 0 and folder]
