"""Shard index: the position of each image's bytes in the shards, in Arrow columns that every process memory-maps."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa

from lib.dataset.annotation_rows import MAX_CLASSES
from lib.errors import UserError, shown
from lib.runtime.checksums import checksum_of_columns
from lib.runtime.mirror import is_mirrored
from lib.runtime.read_file import check_regular
from lib.runtime.storage import materialize, size_of
from lib.runtime.text import few_names

INDEX, FORMAT = 'index.arrow', 1
SETTINGS = 'pack.json'  # of a split; packing writes it first
INFO = '_info.json'  # of all splits, which timm reads; packing writes it last
RAW = 'raw'  # settings['images'] of images stored as uncompressed TIFF files, whose last bytes are the pixels
_KEY, _CHECKSUM = b'packed', b'crc32'  # of the metadata

COLUMNS = pa.schema(
    [
        ('shard', pa.int32()),  # its number in Contents.shards
        ('offset', pa.int64()),  # of the image's bytes in the shard
        ('length', pa.int32()),  # bytes; 0 if nothing is stored
        ('crc32', pa.uint32()),  # of these bytes
        ('label', pa.int32()),  # -1 if unknown
        ('path', pa.large_string()),  # the name as annotated
        ('width', pa.int32()),  # pixels, from the image's header; 0 if unknown
        ('height', pa.int32()),
        ('fault', pa.large_string()),  # the reason why it could not be decoded when it was packed; '' if it could
    ]
)


class Shard(msgspec.Struct):
    """One tar file: its name, its size in bytes, the images in it, and the bytes that they had before."""

    name: str
    size: int
    num_images: int
    source_bytes: int


class Contents(msgspec.Struct):
    """Metadata of an index.

    Attributes:
        settings: encoding of the images and images per shard.
        digest: digest of names and labels: DatasetSplit.digest().
        class_names: None if classes have no names.
        parents: as in ClassNames.
    """

    settings: dict[str, Any]
    digest: str
    num_classes: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLASSES)]
    shards: list[Shard]
    class_names: list[str] | None = None
    parents: list[list[str]] = []
    format: int = FORMAT


def write_table(path: Path, table: pa.Table, metadata: msgspec.Struct) -> None:
    """Write columns as one uncompressed record batch, so that a reader can map them, with a checksum."""
    table, encoded = table.combine_chunks(), msgspec.json.encode(metadata)
    table = table.replace_schema_metadata({_KEY: encoded, _CHECKSUM: b'%d' % _checksum(table, encoded)})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))


def read_table(path: Path, metadata_type: type, *, verify: bool = True) -> tuple[pa.Table, Any]:
    """Map a file of `write_table`; return its columns and metadata.

    Args:
        verify: compare the content with its checksum; files of earlier versions have none.

    Raises:
        OSError, ValueError: it cannot be read, or has another form or another checksum. (msgspec's errors are
            ValueErrors.)
    """
    check_regular(path)
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
    except pa.ArrowException as error:  # some of which are no ValueErrors
        raise ValueError(str(error)) from None
    if table.schema.remove_metadata() != COLUMNS:
        raise ValueError(f'its columns are {few_names(table.schema.names)}')
    table.validate(full=verify)
    if any(column.null_count for column in table.columns):
        raise ValueError('values are missing')
    encoded, expected = ((table.schema.metadata or {}).get(key) for key in (_KEY, _CHECKSUM))
    if verify and expected is not None and expected != b'%d' % _checksum(table, encoded or b''):
        raise ValueError('its checksum does not match')
    return table, msgspec.json.decode(encoded or b'', type=metadata_type)


def _checksum(table: pa.Table, metadata: bytes) -> int:
    if any(column.num_chunks > 1 for column in table.columns):
        raise ValueError('it has several record batches')
    return checksum_of_columns({name: _single_chunk(table[name]) for name in table.schema.names}, metadata)


class PackedIndex:
    """The columns of one split as arrays over the mapped file, without a Python object per image.

    Attributes:
        path: path of the index; the shards are in the same folder.
        identity: identity of its file: size, mtime, ctime, inode.
        contents: the metadata.
        table: all columns.
        names: (num_images,) Arrow strings.
        labels, shards, offsets, lengths, checksums, widths, heights: (num_images,) integers.
        faults: (num_images,) Arrow strings.
    """

    def __init__(self, path: Path, identity: tuple[int, ...] = ()) -> None:
        """Open the index at `path`.

        Args:
            identity: identity of the index that another process has verified; then this one only compares the identity.

        Raises:
            UserError: it cannot be used.
        """
        self.path = path
        try:
            if not identity:
                materialize(path)
            status = path.stat()
            self.identity = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            if identity and self.identity != identity:
                raise UserError(f'{path}: was replaced while it was in use; run the command again')
            self.table, self.contents = read_table(path, Contents, verify=not identity)
        except FileNotFoundError:
            raise UserError(f'{path}: no such file') from None
        except (OSError, ValueError) as error:
            raise UserError(f'{path}: is not an index of packed images ({shown(error)})') from None
        if self.contents.format != FORMAT:
            raise UserError(f'{path}: has format {shown(self.contents.format)}, but must have {FORMAT}')
        self.shards, self.offsets, self.lengths, self.checksums, self.labels, self.widths, self.heights = (
            _single_chunk(self.table[name]).to_numpy()
            for name in ('shard', 'offset', 'length', 'crc32', 'label', 'width', 'height')
        )
        self.names: pa.LargeStringArray = _single_chunk(self.table['path'])
        self.faults: pa.LargeStringArray = _single_chunk(self.table['fault'])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_raw(self) -> bool:
        """Return whether the images are stored as pixels, which need no decoding."""
        return self.contents.settings.get('images') == RAW

    def check(self) -> list[str]:
        """Check the columns and the shards' sizes without reading images; return warnings.

        Raises:
            UserError: a number in the columns is out of range, or a name is invalid.
        """
        path, shards, num_classes = self.path, self.contents.shards, self.contents.num_classes
        is_valid = (self.shards >= 0) & (self.shards < len(shards)) & (self.offsets >= 0) & (self.lengths >= 0)
        is_valid &= (self.labels >= -1) & (self.labels < num_classes)
        if not is_valid.all() or not len(self):
            row = int(np.argmin(is_valid)) if len(self) else 0
            raise UserError(f'{path}: is damaged (shard, offset or label of row {row} is out of range)')
        names = self.contents.class_names
        if (names is not None and len(names) != num_classes) or any(Path(s.name).name != s.name for s in shards):
            raise UserError(f'{path}: is damaged (class or shard names)')
        return self._check_sizes()

    def _check_sizes(self) -> list[str]:
        warnings = []
        for number, shard in enumerate(self.contents.shards):
            path = self.path.with_name(shard.name)
            try:
                size = size_of(path) if is_mirrored(path) and not path.exists() else path.stat().st_size
            except FileNotFoundError:
                warnings.append(
                    f'{path}: no such file, but {self.path.name} lists it with {shard.num_images} images; copy it here '
                    'again, or run the command that packed it, which writes it again'
                )
                continue
            if size != shard.size:
                num_lost = np.count_nonzero((self.shards == number) & (self.offsets + self.lengths > size))
                warnings.append(
                    f'{path}: has {size} bytes, but {shard.size} were written: {num_lost} of its images are lost; the '
                    'command that packed it writes it again'
                )
        return warnings


def _single_chunk(column: pa.ChunkedArray) -> pa.Array:
    # combine_chunks alone would copy a single chunk.
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
