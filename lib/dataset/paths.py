"""Paths of images: one rule per annotation file maps annotated paths to files below a root.

The rule is chosen on a sample. A file that the rule does not find is searched under other spellings of its path:
`spelled_on_disk`.
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.errors import UserError, shown, unquoted, url_fault, url_scheme
from lib.runtime.outline import is_available
from lib.runtime.shared_memory import SharedArray, SharedFile, to_shared_memory
from lib.runtime.text import nfc

_SAMPLE = 16
_MAX_DEPTH = 12
_WINDOWS_ROOT = re.compile(r'(?:[A-Za-z]:[/\\]|\\)')


@dataclass(frozen=True)
class PathRule:
    """A mapping of annotated paths to paths that are joined to the root.

    Attributes:
        depth: leading folders to remove from an absolute path in addition to its root; None: none, nor the root.
            Absolute paths of Windows get this system's separators.
        has_backslashes: relative paths get this system's separators, too.
    """

    depth: int | None = None
    has_backslashes: bool = False

    def __call__(self, path: str) -> str:
        """Return the path to open."""
        if self.depth is None:
            return path.replace('\\', os.sep) if self.has_backslashes else path
        relative = self._leading.sub('', path)
        return relative.replace('\\', os.sep) if self.has_backslashes or _WINDOWS_ROOT.match(path) else relative

    @cached_property
    def _leading(self) -> re.Pattern:
        return re.compile(r'\A(?:[A-Za-z]:)?[/\\]+(?:[^/\\]+[/\\]+){' + str(self.depth) + '}')


class PathColumn(Sequence[str]):
    """The paths of a split in an Arrow column; each becomes a Python string on access only.

    Pickled to a worker process, it refers to shared memory: the annotations' cache file, or a copy made once.

    Attributes:
        arrow: (num_images,) Arrow strings, as annotated.
        rule: applied to each path on access.
    """

    def __init__(self, arrow: pa.Array, rule: PathRule = PathRule(), file: SharedFile | None = None) -> None:
        """Set the strings: of either offset width, none null. `file` holds their buffers, if they are in a file."""
        self.arrow = arrow
        self.rule = rule
        self._file = file

    def __len__(self) -> int:
        return len(self.arrow)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self.rule(path) for path in self.arrow[row].to_pylist()]
        return self.rule(self.arrow[int(row)].as_py())

    def to_pylist(self) -> list[str]:
        """Return all paths; for small splits and tests."""
        return list(self)

    def with_rule(self, rule: PathRule) -> 'PathColumn':
        """Return the same column under another rule."""
        column = PathColumn(self.arrow, rule, self._file)
        if '_shared_buffers' in self.__dict__:
            column.__dict__['_shared_buffers'] = self._shared_buffers
        return column

    @cached_property
    def _shared_buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and text in shared memory, of which pickle sends only the address."""
        _, offsets, text = self.arrow.buffers()
        wide = 'i8' if pa.types.is_large_string(self.arrow.type) else 'i4'
        first = self.arrow.offset * np.dtype(wide).itemsize
        if self._file is None:
            all_offsets = np.frombuffer(offsets, wide)[self.arrow.offset :][: len(self) + 1]
            return to_shared_memory(all_offsets), to_shared_memory(np.frombuffer(text, 'u1'))
        start = pa.py_buffer(self._file.memory).address
        return (
            SharedArray.at(self._file, wide, len(self) + 1, offsets.address - start + first),
            SharedArray.at(self._file, 'u1', text.size, text.address - start),
        )

    def __reduce__(self) -> tuple:
        return _column, (len(self), *self._shared_buffers, self.rule)


def _column(length: int, offsets: np.ndarray, text: np.ndarray, rule: PathRule) -> PathColumn:
    column = PathColumn(strings(length, offsets, text), rule)
    column.__dict__['_shared_buffers'] = offsets, text
    return column


def strings(length: int, offsets: np.ndarray, text: np.ndarray) -> pa.Array:
    """Return Arrow strings over offsets (`length` + 1, int32 or int64) and UTF-8 bytes, without a copy."""
    kind = pa.string() if offsets.dtype.itemsize == 4 else pa.large_string()
    return pa.Array.from_buffers(kind, length, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def comparable_paths(texts: pa.Array) -> pa.Array:
    """Return paths in NFC and with `/` for backslashes: equal for one image. Nearly always, it is the same object.

    A text that is not UTF-8 is an error of Arrow's, so `texts` are valid.
    """
    _, offsets, text = texts.buffers()
    wide = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    offsets = np.frombuffer(offsets, wide)[texts.offset :][: len(texts) + 1]
    used = np.frombuffer(text or b'', np.uint8)[offsets[0] : offsets[-1]]
    if (used == ord('\\')).any():
        texts = pc.replace_substring(texts, '\\', '/')
    # A part of a text in NFC is in NFC, too, so one check of all of them together is enough.
    if used.max(initial=0) < 128 or unicodedata.is_normalized('NFC', used.tobytes().decode()):
        return texts
    return pc.utf8_normalize(texts, form='NFC')


def spelled_on_disk(path: str) -> str | None:
    """Return the spelling under which an image exists: as given, with `/` for backslashes, or equal under NFC.

    Systems differ in the form of accented characters (macOS decomposes them) and in separators. Return None if there is
    no such file.
    """
    for spelling in dict.fromkeys((path, path.replace('\\', os.sep))):
        if is_available(spelling):
            return spelling
        if not spelling.isascii():
            # Usually the whole path has one form, which is faster than the list of a folder of millions of files.
            composed, decomposed = (unicodedata.normalize(form, spelling) for form in ('NFC', 'NFD'))
            candidates = itertools.chain((composed, decomposed), _spellings_by_folder(spelling))
            found = next(filter(is_available, candidates), None)
            if found:
                return found
    return None


def _spellings_by_folder(path: str) -> Iterator[str]:
    """Yield the existing paths that are equal under NFC: each part is as in the list of its folder.

    There may be several, since this system allows two folders whose names are equal under NFC.
    """
    folder, name = os.path.split(path)
    if not name:
        yield path
        return
    for parent in _spellings_by_folder(folder) if folder else ('',):
        names = (name,) if name.isascii() else _names_in(parent or '.').get(nfc(name), ())
        yield from filter(os.path.lexists, (os.path.join(parent, spelled) for spelled in names))


def _names_in(folder: str) -> dict[str, list[str]]:
    try:
        return _names_at(folder, os.stat(folder).st_mtime_ns)
    except OSError:  # of another user, for example
        return {}


@lru_cache(maxsize=64)
def _names_at(folder: str, mtime_ns: int) -> dict[str, list[str]]:
    """Return name in NFC -> names on disk, of the names that are not ASCII."""
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if not name.isascii():
            names.setdefault(nfc(name), []).append(name)
    return names


def refuse_urls(paths: PathColumn | pa.Array | Sequence[str], root: str, source: str) -> None:
    """Raise UserError if one of the paths is a URL, and not a file below `root` with such a name."""
    num_paths = len(paths)
    column = paths.arrow if isinstance(paths, PathColumn) else paths
    if isinstance(column, pa.Array):
        column = column.filter(pc.match_substring(column, '://')).to_pylist()
    urls = [path for path in column if '://' in path and (url_scheme(path) or url_fault(path))]
    if urls and not os.path.exists(os.path.join(root, urls[0])):
        count = f'{len(urls):,} of {num_paths:,} images {"is a URL" if len(urls) == 1 else "are URLs"}'
        raise UserError(
            f'{source}: {count}, such as {unquoted(urls[0])}; download them first, since only local paths are read'
        )


def choose_path_rule(paths: PathColumn | pa.Array, root: str, source: str) -> tuple[PathRule, str]:
    """Return the rule under which the paths exist when joined to `root`, and a log line ('' for relative paths).

    A relative path is below `root`. Absolute paths are used unchanged if they exist. Otherwise they come from another
    machine, and are searched below `root` with more and more of their leading folders removed. Backslashes separate
    folders if no image exists otherwise.

    Raises:
        UserError: none of a sample of the images exists.
    """
    rows = np.unique(np.linspace(0, len(paths) - 1, _SAMPLE).astype(int))
    sample = [str(paths[int(row)]) for row in rows]
    absolute = [path for path in sample if _is_absolute(path)]
    if not absolute:
        return _relative_rule(sample, root, source)
    if any(map(is_available, absolute)) or any(map(spelled_on_disk, absolute)):
        return PathRule(), f'{source}: absolute paths are used unchanged'
    has_backslashes = _has_backslashes([path for path in sample if not _is_absolute(path)], root)
    for depth in range(_MAX_DEPTH):
        rule = PathRule(depth, has_backslashes)
        tried = [rule(path) for path in absolute]
        if any(spelled_on_disk(os.path.join(root, path)) for path in tried):
            example = os.path.join(root, unquoted(tried[0]))
            paths_text = f'{unquoted(absolute[0])} -> {example}'
            return rule, f'{source}: absolute paths of another machine are read under {root}: {paths_text}'
    raise UserError(_missing(absolute[0], unquoted(absolute[0]), source))


def _relative_rule(sample: list[str], root: str, source: str) -> tuple[PathRule, str]:
    if _has_backslashes(sample, root):
        return PathRule(has_backslashes=True), f'{source}: backslashes in paths separate folders'
    if not any(spelled_on_disk(os.path.join(root, path)) for path in sample):
        raise UserError(_missing(sample[0], os.path.join(root, unquoted(sample[0])), source))
    return PathRule(), ''


def _has_backslashes(sample: list[str], root: str) -> bool:
    """Return whether backslashes separate folders: no image with one in its path exists, but one with `/` does."""
    joined = [os.path.join(root, path) for path in sample if '\\' in path and os.sep != '\\']
    return not any(map(is_available, joined)) and any(map(spelled_on_disk, joined))


def _is_absolute(path: str) -> bool:
    return path.startswith('\\') or PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def _missing(written: str, tried: str, source: str) -> str:
    return f'{source}: image {shown(written)} and others do not exist (searched for {tried})'


_UNDECODABLE = re.compile('[\ud800-\udfff]')
# An escape, or a name that looks like one: its backslash is escaped.
_ESCAPED = re.compile(r'\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})')
_ESCAPE = re.compile(r'\\x([0-9a-f]{2})|\\u([0-9a-f]{4})')


def path_as_text(path: str) -> str:
    r"""Return a path as valid text: each byte of a name that is not UTF-8 becomes `\xff`.

    Different paths become different texts, and `path_from_text` returns the path.
    """
    if path.isascii() and '\\' not in path:
        return path
    if os.sep == '/':  # elsewhere, a backslash is no part of a name
        path = _ESCAPED.sub(r'\\x5c', path)
    return _UNDECODABLE.sub(_escape, path)


def path_from_text(text: str) -> str:
    """Return the path of which `path_as_text` made the text."""
    if '\\' not in text:
        return text
    return _ESCAPE.sub(lambda match: _unescape(int(match[1] or match[2], 16)), text)


def _escape(match: re.Match) -> str:
    code = ord(match[0])
    # Python's surrogateescape: bytes from 0x80 on. Windows allows other halves of surrogate pairs.
    return f'\\x{code - 0xDC00:02x}' if 0xDC80 <= code <= 0xDCFF else f'\\u{code:04x}'


def _unescape(code: int) -> str:
    return chr(code + 0xDC00) if 0x80 <= code <= 0xFF else chr(code)


@dataclass(frozen=True)
class TextPathRule(PathRule):
    """Opens paths that `path_as_text` made."""

    def __call__(self, path: str) -> str:
        """Return the path to open."""
        return path_from_text(path)
