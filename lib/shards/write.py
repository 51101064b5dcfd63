"""Writing shards: plain tar files in WebDataset's form, each with its part of the index.

What becomes of an image when it is packed: a small JPEG without metadata, or its bytes as they are.
"""

import json
import os
import tarfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from lib.dataset.decode import FORMATS, DecodeError, decode
from lib.dataset.images import EncodedImages
from lib.errors import UserError
from lib.runtime.files import replace_atomically
from lib.shards.index import COLUMNS, Shard, read_table, write_table

# Names that WebDataset and timm know; a format that is not listed is called by its own name.
_ENDINGS = {'JPEG': 'jpg', 'MPO': 'jpg', 'TIFF': 'tif'}
UNKNOWN = 'bin'


@dataclass(frozen=True)
class Stored:
    """One image as it is packed.

    Attributes:
        data: empty when nothing is stored.
        ending: of the member's name, without the dot.
        width, height: pixels, as the header has them; 0 where unknown.
        fault: why it cannot be decoded; '' where nothing is known to be wrong.
    """

    data: bytes
    ending: str = 'jpg'
    width: int = 0
    height: int = 0
    fault: str = ''


@dataclass(frozen=True)
class Reencode:
    """Decode upright, shrink until the short side is `short_side` (never enlarge), write a JPEG of `quality`.

    No metadata survives, GPS positions least of all. Lanczos, since packing happens once and its result is resized
    again in training; 4:2:0, as cameras write it: a fifth smaller and faster to decode than 4:4:4.
    """

    short_side: int
    quality: int = 90

    def settings(self) -> dict[str, Any]:
        """Return what decides the bytes, for the index."""
        return {'images': 'reencode', 'short_side': self.short_side, 'quality': self.quality}

    def __call__(self, data: bytes) -> Stored:
        """Return what is packed; nothing for an image that cannot be decoded."""
        try:
            image = self._shrunk(decode(data))
        except DecodeError as error:
            return Stored(b'', fault=str(error))
        pixels = np.ascontiguousarray(np.asarray(image))
        encoded = simplejpeg.encode_jpeg(pixels, quality=self.quality, colorsubsampling='420', fastdct=False)
        return Stored(encoded, 'jpg', image.width, image.height)

    def _shrunk(self, image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        if shorter <= self.short_side:
            return image
        width, height = (max(1, round(side * self.short_side / shorter)) for side in image.size)
        # From 3 on, Pillow's documentation calls the first, coarse step indistinguishable.
        return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


@dataclass(frozen=True)
class Copy:
    """Keep the bytes, metadata included. Only the header is looked at, for the ending of the name and the size."""

    def settings(self) -> dict[str, Any]:
        """Return what decides the bytes, for the index."""
        return {'images': 'copy'}

    def __call__(self, data: bytes) -> Stored:
        """Return what is packed: the bytes, whatever they are."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                image = Image.open(BytesIO(data), formats=FORMATS)
        except Exception:  # parsers of headers fail in many ways; `decode` knows what to say, and more formats
            return self._of_unknown_form(data)
        return Stored(data, _ENDINGS.get(image.format, image.format.lower()), *image.size)

    def _of_unknown_form(self, data: bytes) -> Stored:
        try:
            return Stored(data, UNKNOWN, *decode(data).size)
        except DecodeError as error:
            return Stored(data, UNKNOWN, fault=str(error))


PARTS = 'parts'
# So many undecodable images always pass, as in training.
MIN_BAD = 10


class Encoding(Protocol):
    """Reencode or Copy."""

    def settings(self) -> dict[str, Any]: ...

    def __call__(self, data: bytes) -> Stored: ...


@dataclass(frozen=True)
class ShardTask:
    """The rows of one shard: first_row, first_row + 1, ... with their labels and names as annotated."""

    number: int
    first_row: int
    labels: np.ndarray
    names: pa.LargeStringArray


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f'{number:06d}.tar'


def part_path(folder: Path, number: int) -> Path:
    """Return where a shard's part of the index lies until the whole is written."""
    return folder / PARTS / f'{number:06d}.arrow'


@dataclass(frozen=True)
class ShardWriter:
    """Writes shard after shard into `folder`; called in any process, with any shard.

    Attributes:
        images: by row.
        encoding: what becomes of each image.
        max_bad_fraction: a shard with more undecodable images than this (10 always pass) is not written: most likely
            the disk is not mounted, or the images are elsewhere.
    """

    folder: Path
    images: EncodedImages
    encoding: Encoding
    max_bad_fraction: float

    def __call__(self, task: ShardTask, progress: Callable[[int], None]) -> int:
        """Write a shard, then its part of the index, whose presence says that the shard is whole; return its number.

        Raises:
            UserError: too many images cannot be decoded, or one cannot be read.
            OSError: writing fails.
        """
        path = self.folder / shard_name(task.number)
        rows = _Rows(task.number)
        with replace_atomically(path) as temporary:
            with tarfile.open(temporary, 'w', format=tarfile.PAX_FORMAT) as tar:
                for place, label in enumerate(task.labels.tolist()):
                    row, name = task.first_row + place, task.names[place].as_py()
                    rows.add(tar, row, label, name, *self._stored(row))
                    progress(1)
            self._check(task, rows)
            shard = Shard(path.name, os.path.getsize(temporary), rows.num_images, rows.source_bytes)
        with replace_atomically(part_path(self.folder, task.number)) as temporary:
            write_table(temporary, rows.table(), shard)
        return task.number

    def _stored(self, row: int) -> tuple[Stored, int]:
        """Return what is packed of an image, and how many bytes it had."""
        try:
            data = self.images.read(row)
        except FileNotFoundError:
            return Stored(b'', fault='no such file'), 0
        except DecodeError as error:  # packed before, and lost since
            return Stored(b'', fault=str(error)), 0
        except OSError as error:
            raise UserError(f'{self.images.name(row)}: cannot be read ({error.strerror or error})') from None
        return self.encoding(data), len(data)

    def _check(self, task: ShardTask, rows: '_Rows') -> None:
        bad = [place for place, fault in enumerate(rows.columns['fault']) if fault]
        if len(bad) > max(MIN_BAD, self.max_bad_fraction * len(task.labels)):
            first = self.images.name(task.first_row + bad[0])
            raise UserError(
                f'{len(bad)} of {len(task.labels)} images cannot be decoded, more than DATASET.MAX_BAD_FRACTION '
                f'{self.max_bad_fraction:g}; the first is {first} ({rows.columns["fault"][bad[0]]}). Shards that are '
                'finished are kept'
            )


@dataclass
class _Rows:
    """The index's columns as they grow, and the sums that go with them."""

    shard: int
    num_images: int = 0
    source_bytes: int = 0
    columns: dict[str, list] = field(default_factory=lambda: {name: [] for name in COLUMNS.names})

    def add(self, tar: tarfile.TarFile, row: int, label: int, name: str, stored: Stored, source_bytes: int) -> None:
        """Append one sample to the archive; an image without bytes gets a row, but no members."""
        key, offset = f'{row:09d}', 0
        if stored.data:
            offset = tar.offset + tarfile.BLOCKSIZE
            _add(tar, f'{key}.{stored.ending}', stored.data)
            about = {'fpath': name}
            if label >= 0:
                about['category_id'] = label
                _add(tar, f'{key}.cls', str(label).encode())
            _add(tar, f'{key}.json', json.dumps(about, ensure_ascii=False).encode())
            self.num_images += 1
        self.source_bytes += source_bytes
        values = {
            'shard': self.shard, 'offset': offset, 'length': len(stored.data), 'crc32': zlib.crc32(stored.data),
            'label': label, 'path': name, 'width': stored.width, 'height': stored.height, 'fault': stored.fault,
        }  # fmt: skip
        for column, values_so_far in self.columns.items():
            values_so_far.append(values[column])

    def table(self) -> pa.Table:
        return pa.table(self.columns, COLUMNS)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # TarInfo's defaults are no time and nobody's: the same images give the same archive. Names are short and plain,
    # so each member is one block of header, then the bytes.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def read_part(folder: Path, number: int) -> tuple[pa.Table, Shard] | None:
    """Return a finished shard's part of the index; None if it is not finished, or its file is not as it was."""
    try:
        table, shard = read_table(part_path(folder, number), Shard)
        whole = (folder / shard.name).stat().st_size == shard.size
    except (OSError, ValueError, msgspec.ValidationError):
        return None
    return (table, shard) if whole else None
