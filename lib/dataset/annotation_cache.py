"""Annotation columns kept as an Arrow file: written once, mapped by every later run and by every worker.

The file is an uncompressed Arrow IPC file of one record batch, which pandas or polars read too: path, label, and
by_class, the rows sorted by class. Where each class begins in by_class, and what the columns were read from, stands in
the schema's metadata.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from lib.dataset.paths import PathColumn
from lib.runtime.files import replace_atomically
from lib.runtime.shared_memory import SharedArray, SharedFile

_VERSION = 1
_ABOUT, _STARTS = b'annotations', b'starts'


class Damaged(Exception):
    """A file that is no sound cache of ours; the message says in what."""


class Stamp(msgspec.Struct, frozen=True):
    """What tells that a file is the one that was read, without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> 'Stamp':
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class About(msgspec.Struct, frozen=True):
    """What the columns were read from.

    Attributes:
        stamp, digest: of the JSON file; the digest is its SHA-256.
        beginning: (bytes, their SHA-256, entries in them) of the file's beginning; (0, '', 0) when there is none.
        num_classes: as written there.
        warnings: what is odd, without the file's name in front.
        version: of this form.
    """

    stamp: Stamp
    digest: str
    beginning: tuple[int, str, int]
    num_classes: int
    warnings: list[str]
    version: int = _VERSION


@dataclass(frozen=True)
class Columns:
    """What the cache holds.

    Attributes:
        paths: (num_images,) as annotated.
        labels: (num_images,) int32.
        starts: (num_classes + 1,) int64, where each class begins in by_class.
        by_class: (num_images,) int32 (int64 from 2**31 images on), rows of one class side by side, in rising order.
        about: what they were read from.
    """

    paths: PathColumn
    labels: np.ndarray
    starts: np.ndarray
    by_class: np.ndarray
    about: About


def places(json: Path) -> list[Path]:
    """Return where the cache of an annotation file may lie: beside it, else in the user's own cache folder."""
    beside = json.with_name(f'.{json.name}.arrow')
    name = hashlib.sha256(os.fsencode(os.path.realpath(json))).hexdigest()[:32]
    base = os.environ.get('XDG_CACHE_HOME', '')
    try:
        folder = Path(base) if os.path.isabs(base) else Path.home() / '.cache'
    except RuntimeError:  # no home
        return [beside]
    return [beside, folder / 'product-recognition' / f'{name}.arrow']


def save(json: Path, columns: Columns) -> Path | None:
    """Write the columns to the first place that takes them; None when none does, which is no error."""
    beside, *own = places(json)
    for place in (beside, *own):
        try:
            if place is not beside:
                _make_private(place.parent)
            _write(place, columns)
        except (OSError, pa.ArrowException):
            continue  # read-only, full, of another user, ...
        return place
    return None


def _make_private(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if os.name == 'posix' and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError(f'{folder} is open to others')


def _write(place: Path, columns: Columns) -> None:
    metadata = {_ABOUT: msgspec.json.encode(columns.about), _STARTS: np.asarray(columns.starts, '<i8').tobytes()}
    arrays = {'path': columns.paths.arrow, 'label': pa.array(columns.labels), 'by_class': pa.array(columns.by_class)}
    batch = pa.record_batch(arrays).replace_schema_metadata(metadata)
    with replace_atomically(place) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        writer.write_batch(batch)


def load(place: Path) -> Columns | None:
    """Map a cache file; None when there is none.

    Raises:
        Damaged: cut short, of another form or version, or its numbers cannot be right. Everything that a wrong
            number could lead astray is checked; a changed letter in a path is not noticed.
    """
    try:
        file = SharedFile.open(place)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Damaged(str(error)) from None
    try:
        reader = pa.ipc.open_file(pa.py_buffer(file.memory))
        metadata = reader.schema.metadata or {}
        about = msgspec.json.decode(metadata[_ABOUT], type=About)
        batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
        batch.validate()
        paths, labels, by_class = (batch.column(name) for name in ('path', 'label', 'by_class'))
        starts = np.frombuffer(metadata[_STARTS], '<i8').astype(np.int64)
    except (pa.ArrowException, msgspec.DecodeError, KeyError, AttributeError, OSError, ValueError) as error:
        raise Damaged(' '.join(str(error).split())[:200] or type(error).__name__) from None
    if about.version != _VERSION:
        raise Damaged(f'it is of version {about.version}, not {_VERSION}')
    wide = pa.int32() if by_class.type == pa.int32() else pa.int64()
    if paths.type not in (pa.string(), pa.large_string()) or labels.type != pa.int32() or by_class.type != wide:
        raise Damaged('its columns are of other types')
    if batch.num_rows == 0 or any(column.null_count or column.offset for column in (paths, labels, by_class)):
        raise Damaged('its columns have holes')
    whole = pa.py_buffer(file.memory)
    for buffer in (buffer for column in (paths, labels, by_class) for buffer in column.buffers() if buffer):
        if not 0 <= buffer.address - whole.address <= whole.size - buffer.size:
            raise Damaged('it is compressed')
    columns = Columns(PathColumn(paths, file=file), _array(file, labels), starts, _array(file, by_class), about)
    _check(columns)
    return columns


def _array(file: SharedFile, column: pa.Array) -> np.ndarray:
    place = column.buffers()[1].address - pa.py_buffer(file.memory).address
    return SharedArray.at(file, 'i4' if column.type == pa.int32() else 'i8', len(column), place)


def _check(columns: Columns) -> None:
    """Raise Damaged if a number points outside of what it points into."""
    length, num_classes = len(columns.labels), columns.about.num_classes
    text = columns.paths.arrow.buffers()[2]
    wide = np.int64 if pa.types.is_large_string(columns.paths.arrow.type) else np.int32
    offsets = np.frombuffer(columns.paths.arrow.buffers()[1], wide)[: length + 1]
    starts = columns.starts
    sound = (
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
    )
    num_bytes, _, num_rows = columns.about.beginning
    if not sound or not 0 <= num_rows <= length or not 0 <= num_bytes <= columns.about.stamp.size:
        raise Damaged('its numbers cannot be right')
