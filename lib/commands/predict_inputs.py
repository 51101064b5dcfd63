"""TEST.IMAGES in the config -> a split: a photo, a folder of photos, or a list on standard input."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from lib.builders.data import open_test_split, test_folder_split
from lib.builders.split import Split
from lib.config.defaults import Config
from lib.dataset.images import FileImages
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.runtime.shared_memory import to_shared_memory


def open_test_images(cfg: Config, class_names: Sequence[str], group: ProcessGroup) -> Split:
    """Return what test.py predicts: TEST.IMAGES where that is given, else the test split.

    Raises:
        UserError: no images there.
    """
    wanted = cfg.TEST.IMAGES
    if not wanted:
        return open_test_split(cfg, class_names)
    if wanted == '-':
        # Of several ranks, one has the standard input.
        lines = group.all_gather_objects(_lines() if group.is_main else None)[0]
        if not lines:
            raise UserError('TEST.IMAGES -: there is no path on standard input; give one a line')
        return _listed(lines, len(class_names), 'standard input')
    if Path(wanted).is_dir():
        return test_folder_split(wanted, class_names)
    if not Path(wanted).exists():
        raise UserError(f"TEST.IMAGES {wanted}: no such photo or folder ('-' reads a list from standard input)")
    return _listed([wanted], len(class_names), wanted)


def products_of(cfg: Config, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the number of each image's product, (n,) int64, and the products' names, in the order they come.

    Raises:
        UserError: TEST.PRODUCTS is no CSV of id,product, or lacks an image.
    """
    wanted = cfg.TEST.PRODUCTS
    if wanted == 'folder':
        owners = [str(Path(name).parent) for name in names]
    else:
        of_image = _read_products(wanted)
        missing = next((name for name in names if name not in of_image), None)
        if missing is not None:
            raise UserError(f'TEST.PRODUCTS {wanted}: no product is given for {missing}')
        owners = [of_image[name] for name in names]
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(owner, len(numbers)) for owner in owners], np.int64), list(numbers)


def _read_products(path: str) -> dict[str, str]:
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            rows = csv.DictReader(file)
            if not {'id', 'product'} <= set(rows.fieldnames or ()):
                raise UserError(f'TEST.PRODUCTS {path}: its first line must name the columns id and product')
            return {row['id']: row['product'] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f"TEST.PRODUCTS {path}: {reason}; give 'folder' or a CSV of id,product") from None


def _lines() -> list[str]:
    return [line for line in map(str.strip, sys.stdin) if line]


def _listed(paths: list[str], num_classes: int, source: str) -> Split:
    names = pa.array(paths, pa.large_string())
    return Split(FileImages(paths), to_shared_memory(np.full(len(paths), -1, np.int32)), num_classes, names, source)
