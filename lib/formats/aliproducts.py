"""Converter of the official files of AliProducts: train.json, val.json, image folders, product_tree.json."""

from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from lib.dataset.image_walk import ImageWalk
from lib.errors import UserError
from lib.formats.converted import ConvertedDataset, ConvertedSplit
from lib.formats.sources import SourceErrors, check_entries
from lib.runtime.json_file import read_json
from lib.runtime.read_file import MAX_JSON_BYTES
from lib.runtime.text import sorted_naturally


def read_parents(path: Path, class_ids: list[int]) -> tuple[list[list[str]] | None, list[str]]:
    """Return the ancestors of each class, root first, and warnings; (None, ...) without a readable hierarchy.

    The form of the file is not documented. Three forms are supported: nested objects or lists that end in class ids,
    `{child: parent, ...}`, and `[{"id": ..., "parent": ..., "name": ...}, ...]`. For any other, parents are None.
    """
    if not path.is_file():
        return None, []
    try:
        tree = read_json(path, Any, max_bytes=MAX_JSON_BYTES)
    except UserError as error:
        return None, [f'{error}; classes have no parents']
    chains = _chains(tree)
    parents = [chains.get(_key(number), []) for number in class_ids]
    num_with_parents = sum(map(bool, parents))
    if not num_with_parents:
        return None, [f'{path}: has no readable hierarchy of these classes; classes have no parents']
    if num_with_parents < len(parents):
        return parents, [f'{path}: {len(parents) - num_with_parents} of {len(parents)} classes have no parents']
    return parents, []


def _chains(tree: Any) -> dict[str, list[str]]:
    """Return node -> ancestors, root first."""
    if isinstance(tree, list) and tree and all(isinstance(node, dict) and 'id' in node for node in tree):
        parent_of = {_key(node['id']): _key(node.get('parent', node.get('parent_id', ''))) for node in tree}
        titles = {_key(node['id']): str(node.get('name') or node['id']) for node in tree}
        return {node: _ancestors(node, parent_of, titles) for node in parent_of}
    if isinstance(tree, dict) and tree and all(isinstance(parent, str | int | None) for parent in tree.values()):
        parent_of = {_key(child): _key(parent) for child, parent in tree.items()}
        return {node: _ancestors(node, parent_of, {}) for node in parent_of}
    return _ancestors_in_nested(tree)


def _ancestors(node: str, parent_of: dict[str, str], titles: dict[str, str]) -> list[str]:
    chain, seen = [], {node}
    parent = parent_of.get(node, '')
    while parent and parent not in seen:  # stop in a cycle
        seen.add(parent)
        chain.append(titles.get(parent, parent))
        parent = parent_of.get(parent, '')
    return chain[::-1]


def _ancestors_in_nested(tree: Any) -> dict[str, list[str]]:
    chains: dict[str, list[str]] = {}
    stack: list[tuple[Any, list[str]]] = [(tree, [])]
    while stack:
        node, above = stack.pop()
        if isinstance(node, dict):
            for name, below in node.items():
                chains.setdefault(_key(name), above)
                stack.append((below, [*above, str(name)]))
        elif isinstance(node, list):
            stack += [(item, above) for item in node]
        elif isinstance(node, str | int):
            chains.setdefault(_key(node), above)
    return chains


def _key(node: Any) -> str:
    """Return the key of a node, the same for 123, '123' and '00123'; '' for None."""
    text = '' if node is None else str(node)
    return (text.lstrip('0') or '0') if text.isdecimal() else text


_FORM = '{"images": [{"image_id": "x.jpg", "class_id": "123"}, ...]}'


class _Image(msgspec.Struct, gc=False):
    image_id: str
    class_id: int | str


class _File(msgspec.Struct):
    images: list[_Image]


def convert_aliproducts(source: Path) -> ConvertedDataset:
    """Convert the official files in `source`; val.json, test images and product_tree.json are optional.

    Category ids are the class ids of train.json in numeric order; class names are the original ids. Images of class 123
    are in train/123 or train/00123, whichever exists.

    Raises:
        UserError: train.json is missing or invalid (the first ten errors with their positions), the folder of a class
            is missing, or val.json has a class without images in train.json.
    """
    if not (source / 'train.json').is_file():
        raise UserError(f'{source}: contains no train.json ({_FORM}, with images in {source}/train/CLASS_ID/)')
    splits: dict[str, ConvertedSplit] = {}
    names: list[str] = []
    label_of: dict[int, int] = {}
    for split in ('train', 'val'):
        path = source / f'{split}.json'
        if not path.is_file():
            continue
        ids, images = _read_images(path)
        if split == 'train':
            # The name is the first spelling of an id.
            texts: dict[int, str] = {}
            for number, image in zip(ids.tolist(), images, strict=True):
                texts.setdefault(number, str(image.class_id))
            names = [texts[number] for number in sorted(texts)]
            label_of = {number: label for label, number in enumerate(sorted(texts))}
        _check_labels(path, ids, label_of)
        folders = _class_folders(source / split, ids)
        pairs = zip(ids.tolist(), images, strict=True)
        paths = [f'{split}/{folders[number]}/{image.image_id}' for number, image in pairs]
        del images
        labels = np.fromiter((label_of[number] for number in ids.tolist()), np.int32, len(ids))
        splits[split] = ConvertedSplit(paths, labels)
    test = _test_images(source)
    if test:
        splits['test'] = ConvertedSplit(test, None)
    parents, warnings = read_parents(source / 'product_tree.json', list(label_of))
    return ConvertedDataset(splits, names, parents, source, warnings)


def _read_images(path: Path) -> tuple[np.ndarray, list[_Image]]:
    """Return (num_images,) class ids and the entries."""
    try:
        images = read_json(path, _File, max_bytes=MAX_JSON_BYTES).images
        ids = np.fromiter((_number(image.class_id) for image in images), np.int64, len(images))
        invalid = not len(ids) or ids.min() < 0 or not all(image.image_id for image in images)
    except UserError:
        invalid = True
    if invalid:
        _raise_errors(path, read_json(path, Any, max_bytes=MAX_JSON_BYTES))
    return ids, images


def _number(class_id: int | str) -> int:
    """Return an id as a number (`00123` is 123), or -1 if it is invalid."""
    if isinstance(class_id, str):
        class_id = int(class_id) if class_id.isdecimal() and len(class_id) < 19 else -1
    return class_id if 0 <= class_id < 2**63 else -1


def _raise_errors(path: Path, tree: Any) -> NoReturn:
    """Raise UserError with the errors in a file that the typed reader refused."""
    entries = tree.get('images') if isinstance(tree, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{path}: must be {_FORM}')
    if not entries:
        raise UserError(f'{path}: lists no images')
    errors = SourceErrors()
    kinds = {
        'image_id': ('a file name', lambda value: isinstance(value, str) and value != ''),
        'class_id': ('a number', lambda value: type(value) in (int, str) and _number(value) >= 0),
    }
    check_entries(f'{path}: images', entries, kinds, errors)
    errors.raise_if_any()
    raise UserError(f'{path}: must be {_FORM}')


def _check_labels(path: Path, ids: np.ndarray, label_of: dict[int, int]) -> None:
    unknown = [number for number in np.unique(ids).tolist() if number not in label_of]
    if unknown:
        row = int(np.argmax(ids == unknown[0]))
        raise UserError(
            f'{path}: images[{row}]: class {unknown[0]} has no image in train.json ({len(unknown)} such classes in all)'
        )


def _class_folders(folder: Path, ids: np.ndarray) -> dict[int, str]:
    """Return class id -> name of its folder, which may have leading zeros."""
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; unpack the images of {folder.name}.json there')
    present = sorted((entry.name for entry in folder.iterdir() if entry.name.isdecimal()), key=len, reverse=True)
    folders = {int(name): name for name in present}  # of several names of a number, the shortest
    errors = SourceErrors()
    for number in np.unique(ids).tolist():
        if number not in folders:
            errors.add(str(folder), f'no folder {number} or {number:05d} for class {number}')
    errors.raise_if_any()
    return folders


def _test_images(source: Path) -> list[str]:
    """Return the images of test/, or of test1/, test_2/, ..., and all folders in them."""
    walk = ImageWalk(source)
    folders = [entry.name for entry in source.iterdir() if entry.name.startswith('test') and entry.is_dir()]
    return [path for folder in sorted_naturally(folders) for path in walk.images(folder)]
