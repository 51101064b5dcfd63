"""Converter of iNaturalist's JSON (Van Horn et al., CVPR 2018): COCO's with one category per image."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lib.errors import UserError, shown
from lib.formats.converted import UNLABELED, ConvertedDataset, ConvertedSplit
from lib.formats.sources import SourceErrors, check_entries, find_split_files, image_folder
from lib.runtime.json_file import read_json
from lib.runtime.read_file import MAX_JSON_BYTES
from lib.runtime.text import nfc, whole

_PATTERN = r'{split}(?:20\d\d)?\.json'
_RANKS = ('kingdom', 'phylum', 'class', 'order', 'family', 'genus')


_NUMBER = ('a number', lambda value: whole(value) is not None)
_ID = ('a number or a string', lambda value: whole(value) is not None or isinstance(value, str))
_IMAGE_KINDS = {'id': _ID, 'file_name': ('a path', lambda value: isinstance(value, str) and value != '')}
_ANNOTATION_KINDS = {'image_id': _ID, 'category_id': _NUMBER}


class _Image(msgspec.Struct, gc=False):
    id: int | str
    file_name: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation] | None = None
    categories: list[dict] | None = None


def convert_inat(
    source: Path,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    image_root: str | None = None,
) -> ConvertedDataset:
    """Convert train2018.json, val2018.json, test2018.json (any year, or none).

    The categories of the training file, sorted by id, are the classes; their parents are the taxonomic ranks if given,
    else the supercategory.

    Args:
        source: folder with the files, or the training file.
        train, val, test: the files, if their names differ from those above.
        image_root: folder that the file names are relative to; by default `source`, or the folder that contains it.

    Raises:
        UserError: files are missing, or their entries are invalid.
    """
    files = find_split_files(source, _PATTERN, {'train': train, 'val': val, 'test': test})
    if 'train' not in files:
        raise UserError(f'{source}: no train2018.json (any year), which contains the categories; name it with --train')
    splits: dict[str, ConvertedSplit] = {}
    warnings: list[str] = []
    names: list[str] = []
    parents: list[list[str]] | None = None
    label_of: dict[int, int] = {}
    for split, path in files.items():
        tree = _read(path)
        if split == 'train':
            names, parents, label_of = _categories(path, tree.categories)
        first, row_of = _distinct_images(path, tree.images)
        if len(first) < len(tree.images):
            count = len(tree.images) - len(first)
            are = 'is' if count == 1 else 'are'
            warnings.append(f'{path}: {count:,} of {len(tree.images):,} images {are} repeated, and read once')
        is_unlabeled = split == 'test' and not tree.annotations
        labels = None if is_unlabeled else _labels(path, tree, first, row_of, label_of)
        splits[split] = ConvertedSplit([tree.images[position].file_name for position in first], labels)
    return ConvertedDataset(splits, names, parents, image_folder(source, image_root), warnings)


def _read(path: Path) -> _File:
    try:
        return read_json(path, _File, max_bytes=MAX_JSON_BYTES)
    except UserError as error:
        tree, errors = read_json(path, Any, max_bytes=MAX_JSON_BYTES), SourceErrors()
        lists = {'images': _IMAGE_KINDS, 'annotations': _ANNOTATION_KINDS}
        for name, kinds in lists.items():
            if isinstance(tree, dict) and isinstance(tree.get(name), list):
                check_entries(f'{path}: {name}', tree[name], kinds, errors)
        errors.raise_if_any()
        raise error


def _categories(path: Path, categories: list[dict] | None) -> tuple[list[str], list[list[str]] | None, dict[int, int]]:
    """Return names, parents, and category id -> label."""
    if not categories:
        raise UserError(f'{path}: has no categories')
    errors = SourceErrors()
    kinds = {'id': _NUMBER, 'name': ('a string', lambda value: isinstance(value, str))}
    check_entries(f'{path}: categories', categories, kinds, errors)
    errors.raise_if_any()
    categories = sorted(categories, key=lambda category: category['id'])
    label_of = {category['id']: label for label, category in enumerate(categories)}
    if len(label_of) < len(categories):
        raise UserError(f'{path}: {len(categories)} categories have only {len(label_of)} different ids')
    names = [nfc(category['name']) for category in categories]
    counts = Counter(names)
    names = [
        f'{name} ({category["id"]})' if counts[name] > 1 else name
        for name, category in zip(names, categories, strict=True)
    ]
    parents = [_ancestors(category) for category in categories]
    return names, parents if any(parents) else None, label_of


def _ancestors(category: dict) -> list[str]:
    group = [category[rank] for rank in _RANKS if isinstance(category.get(rank), str)]
    above = category.get('supercategory')
    return group or ([above] if isinstance(above, str) else [])


def _distinct_images(path: Path, images: list[_Image]) -> tuple[list[int], dict[int | str, int]]:
    """Return the position of the first entry of each image, and image id -> row, the index of its image there.

    Merged files may list an image twice, with the same id or with two. Raises UserError if one id has two file names.
    """
    rows: dict[str, int] = {}
    first: list[int] = []
    row_of: dict[int | str, int] = {}
    errors = SourceErrors()
    for position, image in enumerate(images):
        row = rows.setdefault(nfc(image.file_name), len(first))
        if row == len(first):
            first.append(position)
        if row_of.setdefault(image.id, row) != row:
            other = first[row_of[image.id]]
            errors.add(
                f'{path}: images[{position}]',
                f'{shown(image.file_name)} has the id {shown(image.id)} of images[{other}], '
                f'{shown(images[other].file_name)}',
            )
    errors.raise_if_any()
    return first, row_of


def _labels(
    path: Path,
    tree: _File,
    first: list[int],
    row_of: dict[int | str, int],
    label_of: dict[int, int],
) -> np.ndarray:
    """Return the label of each image. Raises UserError if one has none or two."""
    labels = np.full(len(first), UNLABELED, np.int32)
    errors = SourceErrors()
    for position, annotation in enumerate(tree.annotations or []):
        row, label = row_of.get(annotation.image_id), label_of.get(annotation.category_id)
        if row is None:
            errors.add(f'{path}: annotations[{position}]', f'image_id {shown(annotation.image_id)} is no image')
        elif label is None:
            errors.add(
                f'{path}: annotations[{position}]', f'category_id {shown(annotation.category_id)} is no category'
            )
        elif labels[row] != UNLABELED and labels[row] != label:
            errors.add(
                f'{path}: annotations[{position}]',
                f'a second category for image {shown(annotation.image_id)}',
            )
        else:
            labels[row] = label
    errors.raise_if_any()
    for row in np.flatnonzero(labels == UNLABELED).tolist():
        position = first[row]
        errors.add(f'{path}: images[{position}]', f'{shown(tree.images[position].file_name)} has no annotation')
    errors.raise_if_any()
    return labels
