"""TEST.IMAGES and TEST.PART in the config -> the images to predict, and the source that their files are named after."""

import codecs
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from lib.builders.data import open_test_split
from lib.builders.split import DatasetSplit, annotated_split, test_folder_split
from lib.config.defaults import Config
from lib.dataset.annotations import read_test_images
from lib.dataset.image_format import EXTENSIONS
from lib.dataset.images import FileImages
from lib.dataset.paths import path_as_text, refuse_urls
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError, shown
from lib.formats.sources import SourceErrors, read_csv
from lib.runtime.files import file_exists
from lib.runtime.log import LOGGER
from lib.runtime.mirror import url_of
from lib.runtime.read_file import read_bytes, reason_of
from lib.runtime.shared_memory import to_shared_memory
from lib.runtime.text import count_of, nfc, rounded_code_warnings

_LIST_SUFFIXES = ('.txt', '.lst')
_MAX_LIST_BYTES = 1 << 30  # ten million paths


@dataclass(frozen=True)
class Source:
    """The origin of the images of a prediction.

    Attributes:
        name: name of its last folder or file; file names contain it.
        identity: equal for the same source only: an absolute path, or the digest of a list on standard input.
    """

    name: str
    identity: str


@dataclass(frozen=True)
class Part:
    """One of `count` parts of the images.

    Attributes:
        number: from 1; 0 for all parts, which are merged.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f'part_{self.number}_of_{self.count}'


def parse_part(text: str) -> Part | None:
    """Return the part that TEST.PART gives; None if it is empty. Raises: UserError."""
    if not text:
        return None
    match = re.fullmatch(r'(merge|[0-9]{1,9})/([0-9]{1,9})', text.strip())
    if match:
        is_merge, count = match[1] == 'merge', int(match[2])
        number = 0 if is_merge else int(match[1])
        if number in range(not is_merge, count + 1) and count:
            return Part(number, count)
    raise UserError(
        f'TEST.PART is {shown(text)}, but must be K/N, the K-th of N parts, K from 1 to N, such as 3/64; or merge/N'
    )


def test_source_name(cfg: Config) -> str:
    """Return the name of the source where TEST.IMAGES is empty."""
    chosen = cfg.DATASET.TEST_JSON or cfg.DATASET.TEST_ROOT
    return _source_at(chosen).name if chosen else 'test'


def open_test_images(cfg: Config, class_names: Sequence[str], group: ProcessGroup) -> tuple[DatasetSplit, Source]:
    """Open the images that test.py predicts: TEST.IMAGES if given, else the test split. All ranks must call it.

    Raises:
        UserError: there are no images.
    """
    given = cfg.TEST.IMAGES
    if given == '-' or (given.lower().endswith(_LIST_SUFFIXES) and Path(given).is_file()):
        # Rank 0 alone reads: standard input exists once, and the others wait for the list.
        paths = group.broadcast_object(_without_folders(listed_paths(_read_list(given))) if group.is_main else [])
        if not paths:
            where = 'on standard input' if given == '-' else 'in this file'
            raise UserError(f'TEST.IMAGES {given}: there is no path {where}; give one per line')
        if given != '-':
            return _listed(paths, len(class_names), given), _source_at(given)
        digest = hashlib.sha256(b'\0'.join(map(os.fsencode, [os.getcwd(), *paths]))).hexdigest()
        return _listed(paths, len(class_names), 'standard input'), Source('stdin', f'standard input {digest[:16]}')
    with group.main_first():
        return _open_split(cfg, class_names)


def _open_split(cfg: Config, class_names: Sequence[str]) -> tuple[DatasetSplit, Source]:
    given, dataset = cfg.TEST.IMAGES, cfg.DATASET
    if not given:
        split = open_test_split(cfg, class_names)
        chosen = _source_at(dataset.TEST_JSON or dataset.TEST_ROOT or split.source)
        # The paths in an annotation file are below a folder, so the file alone does not identify the images.
        root = url_of(Path(dataset.TEST_ROOT or dataset.ROOT).resolve())
        return split, Source(test_source_name(cfg), f'{chosen.identity} in {root}')
    if Path(given).is_dir():
        return test_folder_split(given, class_names), _source_at(given)
    if not Path(given).exists():
        raise UserError(
            f"TEST.IMAGES {given}: no such photo, folder or list of paths (.txt; '-': a list on standard input)"
        )
    if not Path(given).is_file():
        raise UserError(
            f'TEST.IMAGES {given}: is neither a file nor a folder; pipe a list of paths in with --TEST_IMAGES -'
        )
    return _listed([given], len(class_names), given), _source_at(given)


def open_unlabeled(cfg: Config, key: str, source: str, num_classes: int) -> DatasetSplit:
    """Open photos whose labels are ignored: a folder, or the JSON of a test split.

    Args:
        key: key of the option whose value `source` is.

    Raises:
        UserError: there are none.
    """
    if not source:
        option = key.replace('.', '_')
        raise UserError(f'{key} is empty: --{option} FOLDER, or a JSON of {{"images": [{{"image_id": ...}}]}}')
    if Path(source).is_dir():
        split = test_folder_split(source, ())
    elif not file_exists(source):
        raise UserError(f'{key} {source}: no such folder or file')
    else:
        listed = read_test_images(source, num_classes)
        try:  # as in all annotation files, or beside the file
            split = annotated_split(listed, cfg.DATASET.ROOT)
        except UserError:
            split = annotated_split(listed, str(Path(source).parent))
    unknown = to_shared_memory(np.full(len(split), -1, np.int32))
    return replace(split, labels=unknown, num_classes=num_classes, by_class=None)


def _source_at(path: str) -> Source:
    whole = Path(path).resolve()
    return Source(path_as_text(whole.name if whole.is_dir() else whole.stem), path_as_text(url_of(whole)))


def listed_paths(content: bytes) -> list[str]:
    """Return the paths in a list: one per line, or, where it contains NUL bytes (find -print0), each before a NUL.

    A byte order mark is removed, and text in UTF-16, as PowerShell writes it, is decoded. Paths are as spelled, blanks
    included; bytes that are not UTF-8 become surrogates, as in all paths of Python. Empty lines are skipped.
    """
    for mark, encoding in ((codecs.BOM_UTF16_LE, 'utf-16-le'), (codecs.BOM_UTF16_BE, 'utf-16-be')):
        if content.startswith(mark):
            content = content[len(mark) :].decode(encoding, 'replace').encode('utf-8', 'replace')
    content = content.removeprefix(codecs.BOM_UTF8)
    parts = content.split(b'\0') if b'\0' in content else re.split(rb'\r\n|\n|\r', content)
    return [part.decode('utf-8', 'surrogateescape') for part in parts if part.strip()]


def _without_folders(paths: list[str]) -> list[str]:
    """Return the paths without those of folders, which `find FOLDER` lists too."""
    # One stat per path would take long for millions of photos, and folders are not named like photos.
    files = [path for path in paths if path.lower().endswith(EXTENSIONS) or not os.path.isdir(path)]
    if len(files) < len(paths):
        LOGGER.info('%s in the list left out', count_of(len(paths) - len(files), 'folder'))
    return files


def _read_list(given: str) -> bytes:
    try:
        if given != '-':
            return read_bytes(given, max_bytes=_MAX_LIST_BYTES)
        content = sys.stdin.buffer.read(_MAX_LIST_BYTES + 1) if sys.stdin is not None else b''
    except OSError as error:
        raise UserError(f'TEST.IMAGES {given}: {reason_of(error)}') from None
    if len(content) > _MAX_LIST_BYTES:
        raise UserError(f'TEST.IMAGES -: standard input is longer than {_MAX_LIST_BYTES >> 30} GB')
    return content


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
        missing = next((name for name in names if nfc(name) not in product_of), None)
        if missing is not None:
            raise UserError(f'TEST.PRODUCTS {source}: no product is given for {missing}')
        products = [product_of[nfc(name)] for name in names]
    indices: dict[str, int] = {}
    return np.array([indices.setdefault(nfc(product), len(indices)) for product in products], np.int64), list(indices)


def _read_products(path: str) -> dict[str, str]:
    """Return the id of each image, in NFC -> its product."""
    errors = SourceErrors()
    try:
        rows = read_csv(Path(path), ('id', 'product'), errors)
        where, header = next(rows)
        if not {'id', 'product'} <= set(header):
            raise UserError(f'{where}: its first line must name the columns id and product')
        image, product = header.index('id'), header.index('product')
        product_of = {nfc(fields[image]): fields[product] for _, fields in rows}
        errors.raise_if_any()
    except UserError as error:
        raise UserError(f"TEST.PRODUCTS {error}; give 'folder' or a CSV of id,product") from None
    for warning in rounded_code_warnings(list(dict.fromkeys(product_of.values())), 'product'):
        LOGGER.warning('TEST.PRODUCTS %s: %s', path, warning)
    return product_of


def _listed(paths: list[str], num_classes: int, source: str) -> DatasetSplit:
    refuse_urls(paths, '', source)
    names = pa.array(map(path_as_text, paths), pa.large_string())
    labels = to_shared_memory(np.full(len(paths), -1, np.int32))
    return DatasetSplit(FileImages(paths), labels, num_classes, names, source)
