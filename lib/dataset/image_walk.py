"""Image files in folders: which files and folders are read, and in which order."""

import contextlib
import heapq
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from lib.dataset.image_format import EXTENSIONS, HEADER_BYTES, image_format
from lib.errors import UserError, unquoted
from lib.runtime.outline import outline
from lib.runtime.read_file import open_regular
from lib.runtime.text import count_of, first_few, sorted_naturally

# There may be millions of these beside photos: at most _MAX_OPENED per folder are opened, unless one is an image.
_SIDECARS = ('.txt', '.json', '.jsonl', '.xml', '.csv', '.tsv', '.yaml', '.yml', '.md', '.xmp', '.aae', '.npy', '.pt')
_MAX_OPENED = 8
# Raw photos: TIFF files with a thumbnail, whose sensor data no decoder here reads.
_RAW = ('.arw', '.cr2', '.cr3', '.dng', '.nef', '.nrw', '.orf', '.pef', '.raf', '.raw', '.rw2', '.sr2', '.srw')
# Files and folders that file managers, servers and archives create.
_SYSTEM_FILES = {'thumbs.db', 'ehthumbs.db', 'desktop.ini'}
_SYSTEM_FOLDERS = {
    '@eadir', '@recycle', '@recently-snapshot', '@sharebin', '@tmp', '#recycle', '#snapshot', '~snapshot',
    '$recycle.bin', 'recycler', 'system volume information', 'lost+found', 'found.000', '__macosx', '__pycache__',
    'network trash folder', 'temporary items',
}  # fmt: skip

_EXTENSION = re.compile(r'\.\w{1,10}')
_MAX_NAMES, _MAX_FOLDERS, _MAX_KINDS = 3, 10, 3
_PLURALS = {'broken link': 'broken links', 'parent link': 'parent links', 'pipe or device': 'pipes or devices'}


@dataclass
class LeftOut:
    """Files and folders that are not read.

    Attributes:
        names: names of the first files.
        kinds: extension or reason -> number of files.
        num_system: files of file managers (.DS_Store), not among the others.
        folders: name -> number of folders.
    """

    names: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    num_system: int = 0
    folders: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, kind: str) -> None:
        """Count a file."""
        self.kinds[kind] += 1
        self.names.append(name)

    def update(self, other: 'LeftOut', prefix: str) -> None:
        """Add those of a folder; `prefix` is put before its names."""
        self.names += [prefix + name for name in other.names[: _MAX_NAMES - len(self.names)]]
        self.kinds.update(other.kinds)
        self.num_system += other.num_system
        self.folders.update(other.folders)


Identity: TypeAlias = tuple[int, int]


class ImageWalk:
    """The images in the folders below a root, and what is left out.

    A file is an image by its extension; where that is unknown or missing, by its first bytes. Only regular files are
    read. Hidden files and folders are left out, and those of file managers and servers (@eaDir, lost+found). Links to
    folders are followed, except those to a parent folder.

    Attributes:
        left_out: folder, relative to the root -> what is left out of it.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        """Set the root, an existing folder; of one in object storage, all objects are listed. Raises: UserError."""
        outline(root)
        self.root = os.fspath(root)
        self.left_out: dict[str, LeftOut] = {}

    def images(self, folder: str = '') -> Iterator[str]:
        """Yield the paths, relative to the root, of the images in a folder and those below it, in natural order.

        Paths are separated by `/`, and spelled as on the disk.

        Raises:
            UserError: a folder cannot be read.
        """
        above = _parents(self.root) | ({_identity(self.root)} if folder else set())
        waiting: list[tuple[str, frozenset[Identity], bool]] = [(folder, above, True)]
        while waiting:
            folder, above, is_link = waiting.pop()
            path = self._path(folder)
            identity = _identity(path)
            if is_link:
                above |= _parents(path)
            if identity in above:
                outer, _, name = folder.rpartition('/')
                self.left_out.setdefault(outer, LeftOut()).add(name, 'parent link')
                continue
            folders, images = self.list(folder)
            prefix = f'{folder}/' if folder else ''
            for name in images:
                yield prefix + name
            # The last one is popped first.
            for name in reversed(folders):
                waiting.append((prefix + name, above | {identity}, os.path.islink(os.path.join(path, name))))

    def list(self, folder: str = '') -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the images directly in a folder, in natural order.

        Raises:
            UserError: the folder cannot be read.
        """
        path, left_out = self._path(folder), LeftOut()
        names: dict[str, list[str]] = {}
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    names.setdefault(_kind_of(entry, left_out), []).append(entry.name)
        except OSError as error:
            raise UserError(f'{path}: the folder cannot be read ({(error.strerror or str(error)).lower()})') from None
        names.pop(_LEFT_OUT, None)
        folders, images = names.pop(_FOLDER, []), names.pop(_IMAGE, [])
        for extension, unknown in sorted(names.items()):
            images += _images_among(path, sorted(unknown), extension, left_out)
        left_out.names = heapq.nsmallest(_MAX_NAMES, left_out.names)
        self.left_out[folder] = left_out
        return sorted_naturally(folders), sorted_naturally(images)

    def _path(self, folder: str) -> str:
        return os.path.join(self.root, folder) if folder else self.root


def _identity(path: str) -> Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _parents(path: str) -> frozenset[Identity]:
    """Return the folders above a folder, where it really is."""
    parents = set()
    folder, above = '', os.path.dirname(os.path.realpath(path))
    while above != folder:
        folder, above = above, os.path.dirname(above)
        with contextlib.suppress(OSError):
            parents.add(_identity(folder))
    return frozenset(parents)


# Kinds of entries; any other kind is the extension of a file whose content is unknown.
_FOLDER, _IMAGE, _LEFT_OUT = '/folder', '/image', '/left out'


def _kind_of(entry: os.DirEntry, left_out: LeftOut) -> str:
    """Return the kind of an entry of a folder, and count it if it is left out."""
    name = entry.name.lower()
    extension = os.path.splitext(name)[1]
    try:
        is_file = entry.is_file()
        is_folder = not is_file and entry.is_dir()
    except OSError:  # links in a circle
        is_file = is_folder = False
    if is_folder:
        if not name.startswith('.') and name not in _SYSTEM_FOLDERS:
            return _FOLDER
        left_out.folders[entry.name] += 1
    elif not is_file:
        is_broken = entry.is_symlink() and not os.path.exists(entry.path)
        left_out.add(entry.name, 'broken link' if is_broken else 'pipe or device')
    elif extension in EXTENSIONS and not name.startswith('.'):
        return _IMAGE
    elif extension in EXTENSIONS and not name.startswith('._'):  # ._a.jpg: what macOS stores about a.jpg
        left_out.add(entry.name, 'hidden')
    elif name.startswith('.') or name in _SYSTEM_FILES:
        left_out.num_system += 1
    elif extension in _RAW:
        left_out.add(entry.name, extension)
    else:
        return extension
    return _LEFT_OUT


def _images_among(path: str, names: list[str], extension: str, left_out: LeftOut) -> list[str]:
    """Return the names of the files whose content is that of an image, and count the others."""
    num_opened = _MAX_OPENED if extension in _SIDECARS else len(names)
    images: list[str] = []
    for position, name in enumerate(names):
        kind = extension if _EXTENSION.fullmatch(extension) else 'without extension'
        if position < num_opened or images:
            try:
                with open_regular(os.path.join(path, name)) as file:
                    is_image = image_format(file.read(HEADER_BYTES)) is not None
            except OSError:
                is_image, kind = False, 'unreadable'
            if is_image:
                images.append(name)
                continue
        left_out.add(name, kind)
    return images


def left_out_lines(walk: ImageWalk, depth: int | None) -> list[str]:
    """Return log lines about what is left out of the folders of a walk; none if nothing is.

    Args:
        depth: number of folders in the path of a class, below which all folders are counted together; None: each
            folder is a class.
    """
    total, by_class = LeftOut(), dict[str, LeftOut]()
    for folder, left_out in walk.left_out.items():
        parts = folder.split('/')
        name = '/'.join(parts[:depth])
        by_class.setdefault(name, LeftOut()).update(
            left_out, ''.join(f'{part}/' for part in parts[len(parts[:depth]) :])
        )
        total.update(left_out, '')
    lines = []
    if total.kinds or total.num_system:
        counts = sorted(total.kinds.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f'{count:,} {_PLURALS.get(kind, kind) if count > 1 else kind}' for kind, count in counts[:_MAX_KINDS]]
        if len(counts) > _MAX_KINDS:
            kinds.append(f'{sum(count for _, count in counts[_MAX_KINDS:]):,} others')
        if total.num_system:
            kinds.append(f'{total.num_system:,} of file managers')
        number = total.kinds.total() + total.num_system
        lines.append(f'{walk.root}: {count_of(number, "file")} left out: {", ".join(kinds)}')
        named = {name: left_out for name, left_out in by_class.items() if left_out.kinds}
        lines += [_class_line(name, named[name]) for name in sorted_naturally(named)[:_MAX_FOLDERS]]
        if len(named) > _MAX_FOLDERS:
            lines.append(f'  and in {len(named) - _MAX_FOLDERS:,} more folders')
    if total.folders:
        counted = sorted(total.folders.items())
        folders = [f'{unquoted(name)} ({count:,})' if count > 1 else unquoted(name) for name, count in counted]
        lines.append(f'{walk.root}: folders left out: {first_few(folders)}')
    return lines


def _class_line(name: str, left_out: LeftOut) -> str:
    number = left_out.kinds.total()
    names = ', '.join(map(unquoted, left_out.names))
    return f'  {unquoted(name or ".")}: {number:,} ({names}{", ..." if number > len(left_out.names) else ""})'
