"""The index beside the shards: where each row's bytes lie, in Arrow columns that every process maps."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from lib.errors import UserError

INDEX, FORMAT = 'index.arrow', 1
_AGAIN = 'pack again: python tools/pack.py'
_KEY = b'packed'

COLUMNS = pa.schema(
    [
        ('shard', pa.int32()),  # its place in Contents.shards
        ('offset', pa.int64()),  # of the image's bytes in the shard
        ('length', pa.int32()),  # bytes; 0 where nothing is stored
        ('crc32', pa.uint32()),  # of these bytes
        ('label', pa.int32()),  # -1 without
        ('path', pa.large_string()),  # the name as annotated
        ('width', pa.int32()),  # pixels, as the image's header has them; 0 where unknown
        ('height', pa.int32()),
        ('fault', pa.large_string()),  # why it could not be decoded when it was packed; '' where it could
    ]
)


class Shard(msgspec.Struct):
    """One tar file: its name, its size, how many images it holds, and how many bytes those had before."""

    name: str
    size: int
    num_images: int
    source_bytes: int


class Contents(msgspec.Struct):
    """What an index says of the whole.

    Attributes:
        settings: how the images were encoded, in what portions.
        digest: of names and labels: Split.digest().
        class_names: None where classes have no names; `parents` as in ClassNames.
    """

    settings: dict[str, Any]
    digest: str
    num_classes: int
    shards: list[Shard]
    class_names: list[str] | None = None
    parents: list[list[str]] = []
    format: int = FORMAT


def write_table(path: Path, table: pa.Table, about: msgspec.Struct) -> None:
    """Write columns in one piece, uncompressed, so that a reader maps them as they are."""
    table = table.combine_chunks().replace_schema_metadata({_KEY: msgspec.json.encode(about)})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))


def read_table(path: Path, about: type) -> tuple[pa.Table, Any]:
    """Map a file that `write_table` wrote, and return its columns and what it says about them.

    Raises:
        OSError, ValueError: it cannot be read, or is none. (Arrow's and msgspec's own errors are ValueErrors.)
    """
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    if table.schema.remove_metadata() != COLUMNS:
        raise ValueError(f'its columns are {table.schema.names}')
    return table, msgspec.json.decode((table.schema.metadata or {}).get(_KEY, b''), type=about)


class PackedIndex:
    """The columns of one split as arrays over the mapped file: no Python object an image.

    Attributes:
        path: of the index; the shards lie beside it.
        contents: what the index says of the whole.
        table: all columns.
        names: (num_images,) Arrow strings.
        labels, shards, offsets, lengths, checksums: (num_images,) integers.
        faults: (num_images,) Arrow strings.
    """

    def __init__(self, path: Path) -> None:
        """Open the index at `path`. Raises: UserError when it cannot be used."""
        self.path = path
        try:
            self.table, self.contents = read_table(path, Contents)
        except FileNotFoundError:
            raise UserError(f'{path}: no such file; {_AGAIN} --PACK_OUT {path.parent.parent}') from None
        except (OSError, ValueError) as error:
            raise UserError(f'{path}: is no index of packed images ({error}); {_AGAIN}') from None
        if self.contents.format != FORMAT:
            raise UserError(f'{path}: has format {self.contents.format}, this program reads {FORMAT}; {_AGAIN}')
        self.shards, self.offsets, self.lengths, self.checksums, self.labels = (
            _in_one_piece(self.table[name]).to_numpy() for name in ('shard', 'offset', 'length', 'crc32', 'label')
        )
        self.names: pa.LargeStringArray = _in_one_piece(self.table['path'])
        self.faults: pa.LargeStringArray = _in_one_piece(self.table['fault'])

    def __len__(self) -> int:
        return len(self.labels)

    def check(self) -> list[str]:
        """Look for what can be seen without reading images; return warnings.

        Raises:
            UserError: a shard is missing, or the columns point to nowhere.
        """
        path, shards, num_classes = self.path, self.contents.shards, self.contents.num_classes
        inside = (self.shards >= 0) & (self.shards < len(shards)) & (self.offsets >= 0) & (self.lengths >= 0)
        inside &= (self.labels >= -1) & (self.labels < num_classes)
        if not inside.all() or not len(self):
            row = int(np.argmin(inside)) if len(self) else 0
            raise UserError(f'{path}: is damaged (row {row} has a shard, place or label that there is not); {_AGAIN}')
        names = self.contents.class_names
        if (names is not None and len(names) != num_classes) or any(Path(s.name).name != s.name for s in shards):
            raise UserError(f'{path}: is damaged (class or shard names); {_AGAIN}')
        return self._check_sizes()

    def _check_sizes(self) -> list[str]:
        warnings = []
        for number, shard in enumerate(self.contents.shards):
            path = self.path.with_name(shard.name)
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                warnings.append(
                    f'{path}: no such file, but {self.path.name} lists it with {shard.num_images} images; copy it here '
                    'again, or write it anew with the command that packed it'
                )
                continue
            if size != shard.size:
                lost = np.count_nonzero((self.shards == number) & (self.offsets + self.lengths > size))
                warnings.append(
                    f'{path}: has {size} bytes, but {shard.size} were written: {lost} of its images are lost; the '
                    'command that packed it writes it anew'
                )
        return warnings


def _in_one_piece(column: pa.ChunkedArray) -> pa.Array:
    # combine_chunks alone would copy the one piece that there is.
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
