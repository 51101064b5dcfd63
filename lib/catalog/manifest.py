"""The manifest of a catalog: which files belong to it. It is replaced atomically, all other files never change."""

import hashlib
import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from lib.catalog.rows import Codec
from lib.errors import UserError
from lib.runtime.checksums import checksum, in_threads, sealed, unsealed
from lib.runtime.files import remove, write_json
from lib.runtime.json_file import Count, read_json
from lib.runtime.read_file import open_regular
from lib.runtime.storage import exists
from lib.runtime.uploads import refresh

MANIFEST, FORMAT, PREFIX = 'catalog.json', 2, 'part-'
_CHUNK_BYTES = 1 << 22
_BULK = ('.arrow', '.index', '.left', '.whitening')  # endings of files that are downloaded when they are opened
Name = Annotated[str, Meta(pattern=r'^part-[0-9a-f]+\.[a-z]+$')]


class File(msgspec.Struct, frozen=True):
    """A file of the folder: name, bytes, CRC-32 of the CRC-32 of its chunks."""

    name: Name
    size: Count
    crc32: Count

    @classmethod
    def at(cls, path: Path) -> 'File':
        """Return the entry of a file that was written."""
        return cls(path.name, path.stat().st_size, _checksum_of(path))

    def check(self, folder: Path, *, verify: bool) -> Path:
        """Return its path.

        Args:
            verify: compare its content with the checksum, not only its size.

        Raises:
            FileNotFoundError: another process has removed it after it replaced the manifest.
            ValueError: another size or checksum.
        """
        path = folder / self.name
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size != self.size:
            raise ValueError(f'{path}: has {size:,} bytes, not {self.size:,}')
        if verify and _checksum_of(path) != self.crc32:
            raise ValueError(f'{path}: its checksum does not match')
        return path


class Segment(msgspec.Struct, frozen=True):
    """Rows that were written together.

    Attributes:
        rows: their file.
        index, kind: of approximate search; None and '': they are searched exactly.
        left: bits of the rows that are left, 8 per byte, the lowest first; None: all.
    """

    num_rows: Annotated[int, Meta(ge=1, le=2**40)]
    num_products: Count
    rows: File
    index: File | None = None
    kind: Annotated[str, Meta(pattern='^(|hnsw|ivfpq)$')] = ''
    left: File | None = None
    num_removed: Count = 0

    @property
    def num_left(self) -> int:
        """Rows that are not removed."""
        return self.num_rows - self.num_removed

    @property
    def files(self) -> list[File]:
        """All its files."""
        return [file for file in (self.rows, self.index, self.left) if file is not None]


class Manifest(msgspec.Struct, frozen=True):
    """The content of catalog.json.

    Attributes:
        version: version of the features: a fingerprint of backbone and preprocessing.
        num_features: number of features of the model.
        width: values per code, after whitening.
        codes, scale: codes and scale of the codec.
        kind: auto, exact, hnsw or ivfpq.
        whitening: mean and projection; None: features are only scaled to length 1.
        segments: their rows are disjoint.
    """

    version: str
    num_features: Annotated[int, Meta(ge=1, le=2**20)]
    width: Annotated[int, Meta(ge=1, le=2**20)]
    codes: Annotated[str, Meta(pattern='^(float16|int8|binary)$')]
    kind: Annotated[str, Meta(pattern='^(auto|exact|hnsw|ivfpq)$')]
    scale: float = 1.0
    whitening: File | None = None
    segments: tuple[Segment, ...] = ()
    format: int = FORMAT

    @property
    def codec(self) -> Codec:
        """The form of its codes."""
        return Codec(self.codes, self.width, self.scale)

    @property
    def index_kind(self) -> str:
        """The kind of the indexes of large segments."""
        return 'ivfpq' if self.kind == 'auto' else self.kind

    @property
    def files(self) -> list[File]:
        """All files that belong to the catalog."""
        first = [] if self.whitening is None else [self.whitening]
        return first + [file for segment in self.segments for file in segment.files]


def part_name(*content: bytes | memoryview | np.ndarray) -> str:
    """Return the name, without suffix, of a file with this content.

    So a command that is run again after a kill writes the same files.
    """
    digest = hashlib.blake2b(digest_size=12)
    for part in content:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return PREFIX + digest.hexdigest()


def has_catalog(folder: Path) -> bool:
    """Return whether a folder contains a catalog; one in a bucket is brought up to date once per process."""
    refresh(folder, _BULK)
    return exists(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a catalog.

    Raises:
        UserError: there is none, it is damaged, or of another version of this program.
    """
    path = folder / MANIFEST
    if not has_catalog(folder):
        raise UserError(f'{folder} contains no {MANIFEST}: python tools/index.py builds a catalog')
    content = unsealed(read_json(path, hint='; build the catalog again, in another folder'))
    if content is None:
        raise UserError(f'{path}: is damaged; build the catalog again, in another folder')
    if content.get('format') != FORMAT:
        raise UserError(f'{path}: was written by another version of this program; build the catalog again')
    try:
        return msgspec.convert(content, Manifest)
    except msgspec.ValidationError:
        raise UserError(f'{path}: has another form than a catalog; build it again, in another folder') from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Switch the catalog to a manifest whose files are written; then remove those that belong to no catalog."""
    write_json(folder / MANIFEST, sealed(msgspec.to_builtins(manifest)))
    remove_unused(folder, manifest)


def remove_unused(folder: Path, manifest: Manifest) -> None:
    """Remove files of earlier manifests and of killed commands. Only under the lock of the folder."""
    used = {file.name for file in manifest.files}
    for path in folder.glob(f'{PREFIX}*'):
        if path.name not in used:
            with suppress(OSError):  # Windows removes no file that a reader has mapped: the next command does
                remove(path)


def _checksum_of(path: Path) -> int:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory, memoryview(memory) as whole:
            starts = range(0, size, _CHUNK_BYTES)

            def of_chunk(start: int) -> int:
                with whole[start : start + _CHUNK_BYTES] as chunk:
                    return checksum(chunk)

            values: list[Any] = list(in_threads(of_chunk, starts, len(starts)))
    return checksum(np.array(values, np.uint32))
