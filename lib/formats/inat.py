"""Converter of iNaturalist's JSON (Van Horn et al., CVPR 2018): COCO's with one category per image."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lib.errors import UserError
from lib.formats.converted import UNLABELED, ConvertedDataset, ConvertedSplit
from lib.formats.sources import SourceErrors, check_entries, find_split_files, image_folder, read_json, short

_PATTERN = r'{split}(?:20\d\d)?\.json'
_RANKS = ('kingdom', 'phylum', 'class', 'order', 'family', 'genus')


_NUMBER = ('a number', lambda value: type(value) is int)
_ID = ('a number or a string', lambda value: type(value) in (int, str))
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
    names: list[str] = []
    parents: list[list[str]] | None = None
    label_of: dict[int, int] = {}
    for split, path in files.items():
        tree = _read(path)
        if split == 'train':
            names, parents, label_of = _categories(path, tree.categories)
        if split == 'test' and not tree.annotations:
            splits[split] = ConvertedSplit([image.file_name for image in tree.images], None)
        else:
            splits[split] = _labeled_split(path, tree, label_of)
    return ConvertedDataset(splits, names, parents, image_folder(source, image_root))


def _read(path: Path) -> _File:
    try:
        return read_json(path, _File)
    except UserError as error:
        tree, errors = read_json(path, Any), SourceErrors()
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
    counts = Counter(category['name'] for category in categories)
    names = [f'{c["name"]} ({c["id"]})' if counts[c['name']] > 1 else c['name'] for c in categories]
    parents = [_ancestors(category) for category in categories]
    return names, parents if any(parents) else None, label_of


def _ancestors(category: dict) -> list[str]:
    group = [category[rank] for rank in _RANKS if isinstance(category.get(rank), str)]
    above = category.get('supercategory')
    return group or ([above] if isinstance(above, str) else [])


def _labeled_split(path: Path, tree: _File, label_of: dict[int, int]) -> ConvertedSplit:
    row_of = {image.id: row for row, image in enumerate(tree.images)}
    labels = np.full(len(tree.images), UNLABELED, np.int32)
    errors = SourceErrors()
    for position, annotation in enumerate(tree.annotations or []):
        row, label = row_of.get(annotation.image_id), label_of.get(annotation.category_id)
        if row is None:
            errors.add(f'{path}: annotations[{position}]', f'image_id {short(annotation.image_id)} is no image')
        elif label is None:
            errors.add(f'{path}: annotations[{position}]', f'category_id {annotation.category_id} is no category')
        elif labels[row] != UNLABELED and labels[row] != label:
            errors.add(
                f'{path}: annotations[{position}]',
                f'a second category for image {short(annotation.image_id)}',
            )
        else:
            labels[row] = label
    errors.raise_if_any()
    for row in np.flatnonzero(labels == UNLABELED).tolist():
        errors.add(f'{path}: images[{row}]', f'{short(tree.images[row].file_name)} has no annotation')
    errors.raise_if_any()
    return ConvertedSplit([image.file_name for image in tree.images], labels)
