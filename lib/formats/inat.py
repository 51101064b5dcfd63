"""iNaturalist's JSON (Van Horn et al., CVPR 2018), which is COCO's with one category an image."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lib.errors import UserError
from lib.formats.converted import UNLABELLED, Converted, Split
from lib.formats.sources import Faults, check_entries, find_split_files, read_json, short

_PATTERN = r'{split}(?:20\d\d)?\.json'
_RANKS = ('kingdom', 'phylum', 'class', 'order', 'family', 'genus')


_NUMBER = ('a number', lambda value: type(value) is int)
_ID = ('a number or a text', lambda value: type(value) in (int, str))
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
) -> Converted:
    """Convert train2018.json, val2018.json, test2018.json (any year, or none).

    Categories of the training file, sorted by their id, are the classes; parents are the taxonomic ranks
    where they are given, else the supercategory.

    Args:
        source: folder with the files, or the training file.
        train, val, test: the files, where names do not tell.
        image_root: folder that the file names start from; `source` (or the folder it lies in) by default.
    """
    files = find_split_files(source, _PATTERN, {'train': train, 'val': val, 'test': test})
    if 'train' not in files:
        raise UserError(f'{source}: no train2018.json or the like, which holds the categories; name it with --train')
    splits: dict[str, Split] = {}
    names, parents, label_of = [], None, {}
    for split, path in files.items():
        tree = _read(path)
        if split == 'train':
            names, parents, label_of = _categories(path, tree.categories)
        if split == 'test' and not tree.annotations:
            splits[split] = Split([image.file_name for image in tree.images], None)
        else:
            splits[split] = _labelled(path, tree, label_of)
    base = source if source.is_dir() else source.parent
    return Converted(splits, names, parents, Path(image_root) if image_root else base)


def _read(path: Path) -> _File:
    try:
        return read_json(path, _File)
    except UserError as error:
        tree, faults = read_json(path, Any), Faults()
        lists = {'images': _IMAGE_KINDS, 'annotations': _ANNOTATION_KINDS}
        for name, kinds in lists.items():
            if isinstance(tree, dict) and isinstance(tree.get(name), list):
                check_entries(f'{path}: {name}', tree[name], kinds, faults)
        faults.check()
        raise error


def _categories(path: Path, categories: list[dict] | None):
    """Return names, parents, and category id -> label."""
    if not categories:
        raise UserError(f'{path}: has no categories')
    faults = Faults()
    kinds = {'id': _NUMBER, 'name': ('a text', lambda value: isinstance(value, str))}
    check_entries(f'{path}: categories', categories, kinds, faults)
    faults.check()
    categories = sorted(categories, key=lambda category: category['id'])
    label_of = {category['id']: label for label, category in enumerate(categories)}
    if len(label_of) < len(categories):
        raise UserError(f'{path}: {len(categories) - len(label_of)} categories repeat the id of another')
    often = Counter(category['name'] for category in categories)
    names = [f'{c["name"]} ({c["id"]})' if often[c['name']] > 1 else c['name'] for c in categories]
    parents = [_ancestors(category) for category in categories]
    return names, parents if any(parents) else None, label_of


def _ancestors(category: dict) -> list[str]:
    group = [category[rank] for rank in _RANKS if isinstance(category.get(rank), str)]
    above = category.get('supercategory')
    return group or ([above] if isinstance(above, str) else [])


def _labelled(path: Path, tree: _File, label_of: dict[int, int]) -> Split:
    row_of = {image.id: row for row, image in enumerate(tree.images)}
    labels = np.full(len(tree.images), UNLABELLED, np.int32)
    faults = Faults()
    for position, annotation in enumerate(tree.annotations or []):
        row, label = row_of.get(annotation.image_id), label_of.get(annotation.category_id)
        if row is None:
            faults.add(f'{path}: annotations[{position}]', f'image_id {short(annotation.image_id)} is no image')
        elif label is None:
            faults.add(f'{path}: annotations[{position}]', f'category_id {annotation.category_id} is no category')
        elif labels[row] != UNLABELLED and labels[row] != label:
            faults.add(
                f'{path}: annotations[{position}]',
                f'a second category for image {short(annotation.image_id)}',
            )
        else:
            labels[row] = label
    faults.check()
    for row in np.flatnonzero(labels == UNLABELLED):
        faults.add(f'{path}: images[{row}]', f'{short(tree.images[row].file_name)} has no annotation')
    faults.check()
    return Split([image.file_name for image in tree.images], labels)
