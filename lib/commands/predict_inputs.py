"""TEST.IMAGES in the config -> a split: a photo, a folder of photos, or a list on standard input."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from lib.builders.data import open_test_split, test_folder_split
from lib.builders.split import DatasetSplit
from lib.config.defaults import Config
from lib.dataset.images import FileImages
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.runtime.shared_memory import to_shared_memory


def open_test_images(cfg: Config, class_names: Sequence[str], group: ProcessGroup) -> DatasetSplit:
    """Open the images that test.py predicts: TEST.IMAGES if given, else the test split.

    Raises:
        UserError: there are no images.
    """
    source = cfg.TEST.IMAGES
    if not source:
        return open_test_split(cfg, class_names)
    if source == '-':
        # Only one of several ranks has the standard input.
        lines = group.all_gather_objects(_lines() if group.is_main else None)[0]
        if not lines:
            raise UserError('TEST.IMAGES -: there is no path on standard input; give one per line')
        return _listed(lines, len(class_names), 'standard input')
    if Path(source).is_dir():
        return test_folder_split(source, class_names)
    if not Path(source).exists():
        raise UserError(f"TEST.IMAGES {source}: no such photo or folder ('-' reads a list from standard input)")
    return _listed([source], len(class_names), source)


def products_of(cfg: Config, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the index of each image's product, (n,) int64, and the product names, in the order of first images.

    Raises:
        UserError: TEST.PRODUCTS is not a CSV of id,product, or lacks an image.
    """
    source = cfg.TEST.PRODUCTS
    if source == 'folder':
        products = [str(Path(name).parent) for name in names]
    else:
        product_of = _read_products(source)
        missing = next((name for name in names if name not in product_of), None)
        if missing is not None:
            raise UserError(f'TEST.PRODUCTS {source}: no product is given for {missing}')
        products = [product_of[name] for name in names]
    indices: dict[str, int] = {}
    return np.array([indices.setdefault(product, len(indices)) for product in products], np.int64), list(indices)


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


def _listed(paths: list[str], num_classes: int, source: str) -> DatasetSplit:
    names = pa.array(paths, pa.large_string())
    return DatasetSplit(
        FileImages(paths), to_shared_memory(np.full(len(paths), -1, np.int32)), num_classes, names, source
    )
