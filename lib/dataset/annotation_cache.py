"""Annotation cache: parsed columns in an Arrow file, written once and memory-mapped by later runs and all workers.

The file is an uncompressed Arrow IPC file of one record batch, which pandas and polars can read: path, label,
by_class, the rows sorted by class, and weight, if an image has one. The schema's metadata holds the start of each class
in by_class, the identity of the JSON file, and a checksum of all of this.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from lib.dataset.annotation_faults import are_weights
from lib.dataset.paths import PathColumn
from lib.runtime.checksums import checksum_of_columns
from lib.runtime.files import replace_atomically
from lib.runtime.shared_memory import SharedArray, SharedFile

_VERSION = 5
_SOURCE, _STARTS, _CHECKSUM = b'annotations', b'starts', b'crc32'  # metadata keys


class CacheDamaged(Exception):
    """A file is not a valid cache; the message states the fault."""


class FileStamp(msgspec.Struct, frozen=True):
    """Identity of a file's version, known without reading it."""

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int = 0

    @classmethod
    def of(cls, status: os.stat_result) -> 'FileStamp':
        """Return the stamp of an os.stat result."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


class CacheSource(msgspec.Struct, frozen=True, rename={'prefix': 'beginning'}):
    """The JSON file from which columns were parsed.

    Attributes:
        stamp, digest: stamp and digest of the JSON file; the digest is its SHA-256.
        prefix: (bytes, their SHA-256, entries in them) of the start of the file; (0, '', 0) if there is none.
        num_classes: as written there.
        warnings: oddities, without the file's name.
        classes_digest: as written there; '' if there is none.
        version: version of the cache format.
    """

    stamp: FileStamp
    digest: str
    prefix: tuple[int, str, int]
    num_classes: int
    warnings: list[str]
    classes_digest: str = ''
    version: int = _VERSION


@dataclass(frozen=True)
class CachedColumns:
    """The content of a cache.

    Attributes:
        paths: (num_images,) as annotated.
        labels: (num_images,) int32.
        starts: (num_classes + 1,) int64, the position at which each class begins in by_class.
        by_class: (num_images,) int32 (int64 from 2**31 images on), rows sorted by class, ascending within a class.
        source: the JSON file.
        weights: (num_images,) float32, above 0 and at most 1; None: all 1.
    """

    paths: PathColumn
    labels: np.ndarray
    starts: np.ndarray
    by_class: np.ndarray
    source: CacheSource
    weights: np.ndarray | None = None


def cache_paths(json: Path) -> list[Path]:
    """Return the possible paths of the cache of an annotation file: beside it, then in the user's cache folder."""
    beside = json.with_name(f'.{json.name}.arrow')
    name = hashlib.sha256(os.fsencode(os.path.realpath(json))).hexdigest()[:32]
    base = os.environ.get('XDG_CACHE_HOME', '')
    try:
        folder = Path(base) if os.path.isabs(base) else Path.home() / '.cache'
    except RuntimeError:  # no home folder
        return [beside]
    return [beside, folder / 'product-recognition' / f'{name}.arrow']


def save(json: Path, columns: CachedColumns) -> Path | None:
    """Write the columns to the first possible path that is writable and return it; None if there is none."""
    beside, *user_paths = cache_paths(json)
    for path in (beside, *user_paths):
        try:
            if path is not beside:
                _make_private(path.parent)
            _write(path, columns)
        except (OSError, pa.ArrowException):
            continue  # read-only, full, of another user, ...
        return path
    return None


def _make_private(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if os.name == 'posix' and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError(f'{folder} is writable by others')


def _write(path: Path, columns: CachedColumns) -> None:
    metadata = {_SOURCE: msgspec.json.encode(columns.source), _STARTS: np.asarray(columns.starts, '<i8').tobytes()}
    arrays = {'path': columns.paths.arrow, 'label': pa.array(columns.labels), 'by_class': pa.array(columns.by_class)}
    if columns.weights is not None:
        arrays['weight'] = pa.array(columns.weights)
    metadata[_CHECKSUM] = b'%d' % checksum_of_columns(arrays, metadata[_SOURCE], metadata[_STARTS])
    batch = pa.record_batch(arrays).replace_schema_metadata(metadata)
    with replace_atomically(path, alone=True) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        writer.write_batch(batch)


def load(path: Path) -> CachedColumns | None:
    """Memory-map a cache file; return None if it does not exist.

    Raises:
        CacheDamaged: truncated, of another format or version, or with another checksum than that of its content. All
            numbers that are used as indices or offsets are checked before.
    """
    try:
        file = SharedFile.open(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CacheDamaged(str(error)) from None
    try:
        reader = pa.ipc.open_file(pa.py_buffer(file.memory))
        metadata = reader.schema.metadata or {}
        source = msgspec.json.decode(metadata[_SOURCE], type=CacheSource)
        if reader.num_record_batches != 1:
            raise CacheDamaged(f'it has {reader.num_record_batches} record batches, not 1')
        batch = reader.get_batch(0)
        batch.validate()
        values = {name: batch.column(name) for name in ('path', 'label', 'by_class')}
        if 'weight' in batch.schema.names:
            values['weight'] = batch.column('weight')
        paths, labels, by_class = (values[name] for name in ('path', 'label', 'by_class'))
        starts = np.frombuffer(metadata[_STARTS], '<i8').astype(np.int64)
    except (pa.ArrowException, msgspec.DecodeError, KeyError, AttributeError, OSError, ValueError) as error:
        raise CacheDamaged(' '.join(str(error).split())[:200] or type(error).__name__) from None
    if source.version != _VERSION:
        raise CacheDamaged(f'it has version {source.version}, not {_VERSION}')
    row_type = pa.int32() if by_class.type == pa.int32() else pa.int64()
    if paths.type not in (pa.string(), pa.large_string()) or labels.type != pa.int32() or by_class.type != row_type:
        raise CacheDamaged('its columns have other types')
    if 'weight' in values and values['weight'].type != pa.float32():
        raise CacheDamaged('its column of weights has another type')
    if batch.num_rows == 0 or any(column.null_count or column.offset for column in values.values()):
        raise CacheDamaged('its columns have missing values')
    whole = pa.py_buffer(file.memory)
    for buffer in (buffer for column in values.values() for buffer in column.buffers() if buffer):
        if not 0 <= buffer.address - whole.address <= whole.size - buffer.size:
            raise CacheDamaged('it is compressed')
    columns = CachedColumns(
        PathColumn(paths, file=file),
        _array(file, labels),
        starts,
        _array(file, by_class),
        source,
        values['weight'].to_numpy() if 'weight' in values else None,
    )
    _check(columns)
    if metadata.get(_CHECKSUM) != b'%d' % checksum_of_columns(values, metadata[_SOURCE], metadata[_STARTS]):
        raise CacheDamaged('its checksum does not match')
    return columns


def _array(file: SharedFile, column: pa.Array) -> np.ndarray:
    offset = column.buffers()[1].address - pa.py_buffer(file.memory).address
    return SharedArray.at(file, 'i4' if column.type == pa.int32() else 'i8', len(column), offset)


def _check(columns: CachedColumns) -> None:
    """Raise CacheDamaged if an index or offset is out of range."""
    length, num_classes = len(columns.labels), columns.source.num_classes
    text = columns.paths.arrow.buffers()[2]
    dtype = np.int64 if pa.types.is_large_string(columns.paths.arrow.type) else np.int32
    offsets: np.ndarray = np.frombuffer(columns.paths.arrow.buffers()[1], dtype)[: length + 1]
    starts = columns.starts
    is_valid = (
        offsets[0] == 0
        and offsets[-1] <= text.size
        and bool((offsets[1:] > offsets[:-1]).all())
        and len(starts) == num_classes + 1
        and (starts[0], starts[-1]) == (0, length)
        and bool((starts[1:] >= starts[:-1]).all())
        and columns.labels.min() >= 0
        and columns.labels.max() < num_classes
        and columns.by_class.min() >= 0
        and columns.by_class.max() < length
        and (columns.weights is None or are_weights(columns.weights))
    )
    num_bytes, _, num_rows = columns.source.prefix
    if not is_valid or not 0 <= num_rows <= length or not 0 <= num_bytes <= columns.source.stamp.size:
        raise CacheDamaged('its numbers cannot be right')
