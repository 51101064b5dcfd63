"""Shard writer: plain tar files in WebDataset's form, each with its part of the index."""

import json
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from lib.dataset.decode import DecodeError
from lib.dataset.image_format import HEIC_HINT, hint_of
from lib.dataset.images import EncodedImages
from lib.errors import UserError
from lib.runtime.files import replace_atomically
from lib.runtime.uploads import release
from lib.shards.encode import Encoding, PackedImage
from lib.shards.index import COLUMNS, Shard, read_table, write_table

PARTS = 'parts'  # folder of the index parts
MIN_BAD = 10  # this many undecodable images are always accepted, as in training


class TooManyBadImages(UserError):
    """More images of a shard than allowed cannot be decoded.

    Attributes:
        num_bad, num_images: undecodable images, and all images of the shard.
        first: name and fault of the first one.
    """

    def __init__(self, num_bad: int, num_images: int, first: str) -> None:
        super().__init__(num_bad, num_images, first)
        self.num_bad, self.num_images, self.first = num_bad, num_images, first

    def __str__(self) -> str:
        return f'{self.num_bad} of {self.num_images} images cannot be decoded; the first is {self.first}'


@dataclass(frozen=True)
class ShardTask:
    """The rows of one shard: first_row, first_row + 1, ... with their labels and annotated names."""

    number: int
    first_row: int
    labels: np.ndarray
    names: pa.LargeStringArray


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f'{number:06d}.tar'


def part_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's part of the index, which exists until the whole index is written."""
    return folder / PARTS / f'{number:06d}.arrow'


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards into `folder`. Any process can call it with any shard.

    Attributes:
        images: by row.
        encoding: applied to each image.
        max_bad_fraction: limit of undecodable images in a shard (10 are always accepted). Beyond it, most likely the
            disk is not mounted, or the images are in another folder.
    """

    folder: Path
    images: EncodedImages
    encoding: Encoding
    max_bad_fraction: float

    def __call__(self, task: ShardTask, progress: Callable[[int], None]) -> int:
        """Write a shard, then its part of the index, which marks the shard as complete; return its number.

        Raises:
            TooManyBadImages: more images than allowed cannot be decoded.
            UserError: an image cannot be read.
            OSError: writing fails.
        """
        path = self.folder / shard_name(task.number)
        rows = _IndexRows(task.number)
        with replace_atomically(path) as temporary:
            with tarfile.open(temporary, 'w', format=tarfile.PAX_FORMAT) as tar:
                for position, label in enumerate(task.labels.tolist()):
                    row, name = task.first_row + position, task.names[position].as_py()
                    rows.add(tar, row, label, name, *self._pack(row))
                    progress(1)
            self._check(task, rows)
            shard = Shard(path.name, os.path.getsize(temporary), rows.num_images, rows.source_bytes)
        release(path)
        with replace_atomically(part_path(self.folder, task.number)) as temporary:
            write_table(temporary, rows.table(), shard)
        return task.number

    def _pack(self, row: int) -> tuple[PackedImage, int]:
        """Return the packed image and the number of bytes that it had."""
        try:
            data = self.images.read(row)
        except FileNotFoundError:
            return PackedImage(b'', fault='no such file'), 0
        except DecodeError as error:  # in the shards of an earlier pack, damaged since
            return PackedImage(b'', fault=str(error)), 0
        except OSError as error:
            raise UserError(f'{self.images.name(row)}: cannot be read ({error.strerror or error})') from None
        return self.encoding(data), len(data)

    def _check(self, task: ShardTask, rows: '_IndexRows') -> None:
        bad = [position for position, fault in enumerate(rows.columns['fault']) if fault]
        if len(bad) > max(MIN_BAD, self.max_bad_fraction * len(task.labels)):
            name, faults = self.images.name(task.first_row + bad[0]), rows.columns['fault']
            hint = hint_of(faults[position] for position in bad[1:]) if HEIC_HINT not in faults[bad[0]] else ''
            raise TooManyBadImages(len(bad), len(task.labels), f'{name} ({faults[bad[0]]}){hint}')


@dataclass
class _IndexRows:
    """The growing columns of an index part, and their sums."""

    shard: int
    num_images: int = 0
    source_bytes: int = 0
    columns: dict[str, list] = field(default_factory=lambda: {name: [] for name in COLUMNS.names})

    def add(
        self, tar: tarfile.TarFile, row: int, label: int, name: str, packed: PackedImage, source_bytes: int
    ) -> None:
        """Append one sample to the archive; an image without bytes has a row, but no members."""
        key, offset = f'{row:09d}', 0
        if packed.data:
            offset = tar.offset + tarfile.BLOCKSIZE
            _add(tar, f'{key}.{packed.extension}', packed.data)
            annotation: dict[str, str | int] = {'fpath': name}
            if label >= 0:
                annotation['category_id'] = label
                _add(tar, f'{key}.cls', str(label).encode())
            _add(tar, f'{key}.json', json.dumps(annotation, ensure_ascii=False).encode())
            self.num_images += 1
        self.source_bytes += source_bytes
        values = {
            'shard': self.shard, 'offset': offset, 'length': len(packed.data), 'crc32': zlib.crc32(packed.data),
            'label': label, 'path': name, 'width': packed.width, 'height': packed.height, 'fault': packed.fault,
        }  # fmt: skip
        for column, values_so_far in self.columns.items():
            values_so_far.append(values[column])

    def table(self) -> pa.Table:
        """Return the columns."""
        return pa.table(self.columns, COLUMNS)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # TarInfo's defaults have no time and no owner: equal images give equal archives. Names are short and ASCII, so
    # each member has a header of one block.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def read_part(folder: Path, number: int) -> tuple[pa.Table, Shard] | None:
    """Return the index part of a shard; None if the shard is not finished, or its file has another size."""
    try:
        table, shard = read_table(part_path(folder, number), Shard)
        is_complete = (folder / shard.name).stat().st_size == shard.size
    except (OSError, ValueError, msgspec.ValidationError):
        return None
    return (table, shard) if is_complete else None
