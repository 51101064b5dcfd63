"""AliProducts as the challenge hands it out: train.json, val.json, image folders, product_tree.json."""

from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from lib.dataset.folder import sorted_naturally, walk_images
from lib.errors import UserError
from lib.formats.converted import Converted, Split
from lib.formats.product_tree import read_parents
from lib.formats.sources import Faults, check_entries, read_json

_FORM = '{"images": [{"image_id": "x.jpg", "class_id": "123"}, ...]}'


class _Image(msgspec.Struct, gc=False):
    image_id: str
    class_id: int | str


class _File(msgspec.Struct):
    images: list[_Image]


def convert_aliproducts(source: Path) -> Converted:
    """Convert the official files in `source`; val.json, test images and product_tree.json may be missing.

    Category ids are the class ids of train.json in numeric order; names keep the original id. Images of
    class 123 lie in train/123 or train/00123: whichever is there.

    Raises:
        UserError: train.json is missing or faulty (the first ten faults by position), the folder of a class
            is missing, or val.json has a class that train.json lacks.
    """
    if not (source / 'train.json').is_file():
        raise UserError(f'{source}: no train.json in it; the form is {_FORM}, with images in {source}/train/CLASS_ID/')
    splits, names, label_of = {}, [], {}
    for split in ('train', 'val'):
        path = source / f'{split}.json'
        if not path.is_file():
            continue
        ids, images = _read_images(path)
        if split == 'train':
            # The text of an id is kept, whichever of its spellings comes first.
            texts: dict[int, str] = {}
            for number, image in zip(ids.tolist(), images, strict=True):
                texts.setdefault(number, str(image.class_id))
            names = [texts[number] for number in sorted(texts)]
            label_of = {number: label for label, number in enumerate(sorted(texts))}
        _check_known(path, ids, label_of)
        folders = _class_folders(source / split, ids)
        pairs = zip(ids.tolist(), images, strict=True)
        paths = [f'{split}/{folders[number]}/{image.image_id}' for number, image in pairs]
        del images
        labels = np.fromiter((label_of[number] for number in ids.tolist()), np.int32, len(ids))
        splits[split] = Split(paths, labels)
    test = _test_images(source)
    if test:
        splits['test'] = Split(test, None)
    parents, warnings = read_parents(source / 'product_tree.json', list(label_of))
    return Converted(splits, names, parents, source, warnings)


def _read_images(path: Path) -> tuple[np.ndarray, list[_Image]]:
    """Return (num_images,) class ids and the entries."""
    try:
        images = read_json(path, _File).images
        ids = np.fromiter((_number(image.class_id) for image in images), np.int64, len(images))
        faulty = not len(ids) or ids.min() < 0 or not all(image.image_id for image in images)
    except UserError:
        faulty = True
    if faulty:
        _explain(path, read_json(path, Any))
    return ids, images


def _number(class_id: int | str) -> int:
    """Return the number that an id means (`00123` is 123), or -1."""
    if isinstance(class_id, str):
        class_id = int(class_id) if class_id.isdecimal() and len(class_id) < 19 else -1
    return class_id if 0 <= class_id < 2**63 else -1


def _explain(path: Path, tree: Any) -> NoReturn:
    """Raise UserError with what is wrong in a file that the typed reader refused."""
    entries = tree.get('images') if isinstance(tree, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{path}: must be {_FORM}')
    if not entries:
        raise UserError(f'{path}: lists no images')
    faults = Faults()
    kinds = {
        'image_id': ('a file name', lambda value: isinstance(value, str) and value != ''),
        'class_id': ('a number', lambda value: type(value) in (int, str) and _number(value) >= 0),
    }
    check_entries(f'{path}: images', entries, kinds, faults)
    faults.check()
    raise UserError(f'{path}: must be {_FORM}')


def _check_known(path: Path, ids: np.ndarray, label_of: dict[int, int]) -> None:
    unknown = [number for number in np.unique(ids).tolist() if number not in label_of]
    if unknown:
        row = int(np.argmax(ids == unknown[0]))
        raise UserError(
            f'{path}: images[{row}]: class {unknown[0]} has no image in train.json ({len(unknown)} such classes in all)'
        )


def _class_folders(folder: Path, ids: np.ndarray) -> dict[int, str]:
    """Return class id -> name of its folder: as it is, or with zeros in front."""
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; unpack the images of {folder.name}.json there')
    present = sorted((entry.name for entry in folder.iterdir() if entry.name.isdecimal()), key=len, reverse=True)
    folders = {int(name): name for name in present}  # the shortest name of a number wins
    faults = Faults()
    for number in np.unique(ids).tolist():
        if number not in folders:
            faults.add(str(folder), f'no folder {number} or {number:05d} for class {number}')
    faults.check()
    return folders


def _test_images(source: Path) -> list[str]:
    """Return the images of test/, or of test1/, test_2/, ..., and all folders in them."""
    folders = [entry.name for entry in source.iterdir() if entry.name.startswith('test') and entry.is_dir()]
    return [path for folder in sorted_naturally(folders) for path in walk_images(source / folder, f'{folder}/')]
