"""Downloaded data in one folder: archives are unpacked once, folders are linked, nothing is copied.

An archive is unpacked completely or not at all, no member is written outside of the folder, and the members may take
200 times the bytes of the archive, and 1 GB: photos do not compress, JSON compresses to a tenth.
"""

import errno
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

from lib.errors import UserError, shown
from lib.runtime.files import operation, remove, rename, sync_folder, temporary_folder, wait_for_lock, write_json
from lib.runtime.json_file import read_json
from lib.runtime.log import print_lines
from lib.runtime.read_file import RefusedFileError, check_regular, open_regular, reason_of
from lib.runtime.text import size_text

# What the modules raise for damaged bytes, beside OSError without number.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, ValueError, OverflowError,
    LookupError,
)  # fmt: skip
_COMPRESSIONS: dict[bytes, Any] = {b'\x1f\x8b': 'r:gz', b'BZh': 'r:bz2', b'\xfd7zXZ\0': 'r:xz'}
_MAX_EXPANSION, _FREE_BYTES, _BYTES_PER_MEMBER = 200, 10**9, 4096
SUFFIXES = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.zip')


def is_archive(path: Path) -> bool:
    """Return whether the path is a file with the suffix of an archive that `unpack` reads."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar (plain or compressed) or .zip into `folder`, which may contain files.

    All members are unpacked into a temporary folder and moved at the end, so that a refused or damaged archive, or a
    full disk, does not change `folder`.

    Raises:
        UserError: the file does not exist, is no archive or a damaged one, or has a member with an absolute path, with
            `..`, with a link out of the folder, or that is a device, or unpacks to more than photos would.
    """
    if not hasattr(tarfile, 'data_filter'):
        raise UserError('unpacking safely needs Python 3.11.4 or newer')
    with temporary_folder(folder / 'unpacking') as staging:
        _extract(archive, staging)
        _merge_into(staging, folder)


def _extract(archive: Path, staging: Path) -> None:
    try:
        check_regular(archive)
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, staging)
        else:
            _extract_tar(archive, staging)
        if not any(staging.iterdir()):
            raise UserError(f'{archive}: contains no file, so it is damaged; download it again')
    except FileNotFoundError as error:
        if str(error.filename) != str(archive):
            raise
        raise UserError(f'{archive}: no such file') from None
    except (RefusedFileError, IsADirectoryError) as error:
        raise UserError(f'{archive}: {reason_of(error)}') from None
    except tarfile.FilterError as error:
        raise UserError(f'{archive}: refused, {shown(error)}') from None
    except tarfile.ReadError:
        raise UserError(f'{archive}: neither a tar nor a zip archive, or a damaged one; download it again') from None
    except _DAMAGED as error:
        raise UserError(f'{archive}: damaged ({shown(error)}); download it again') from None
    except (RuntimeError, NotImplementedError) as error:  # zipfile: encrypted, unknown compression
        raise UserError(f'{archive}: cannot be unpacked ({shown(error)})') from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # of gzip and bzip2, and a position before the start
            raise
        raise UserError(f'{archive}: damaged ({shown(error)}); download it again') from None


def _extract_zip(archive: Path, staging: Path) -> None:
    budget = _Budget(archive)
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _check_name(archive, member.filename)
            budget.take(member.file_size)  # the module reads no more bytes than that
            file.extract(member, staging)  # a symbolic link becomes a small text file


def _extract_tar(archive: Path, staging: Path) -> None:
    with open_regular(archive) as file:
        start = file.read(8)
    # By the content, not by trying all: to xz, zeros are padding that it reads to their end.
    mode: Any = next((mode for magic, mode in _COMPRESSIONS.items() if start.startswith(magic)), 'r:')
    budget = _Budget(archive)
    with tarfile.open(archive, mode) as file:
        for member in file:
            # The data filter would only strip a leading slash; such an archive is refused.
            _check_name(archive, member.name)
            budget.take(member.size)
            file.extract(member, staging, filter='data')
            cast(Any, file).members = []  # tarfile stores every member, millions of them


class _Budget:
    """The bytes that the members of an archive may still take on the disk."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._limit = self._left = _MAX_EXPANSION * archive.stat().st_size + _FREE_BYTES

    def take(self, num_bytes: int) -> None:
        """Subtract a member. Raises: UserError."""
        self._left -= num_bytes + _BYTES_PER_MEMBER
        if self._left < 0:
            raise UserError(f'{self._archive}: refused, it unpacks to more than {size_text(self._limit)}')


def _check_name(archive: Path, name: str) -> None:
    path = PureWindowsPath(name)  # handles / and \
    if PurePosixPath(name).is_absolute() or path.is_absolute() or path.drive or '..' in path.parts:
        raise UserError(f'{archive}: refused, its member {shown(name)} leads out of the folder')


def _merge_into(source: Path, target: Path) -> None:
    """Move the contents of `source` into `target`; folders are merged, files are replaced."""
    for entry in os.scandir(source):
        destination = target / entry.name
        if entry.is_dir(follow_symlinks=False) and destination.is_dir() and not destination.is_symlink():
            _merge_into(Path(entry.path), destination)
        else:
            if destination.is_symlink():
                remove(destination)  # the link, not its target
            rename(Path(entry.path), destination)


_RECORD = '.unpacked.json'
_MAX_DEPTH = 3
_WAIT_SECONDS = 3600


def unpack_once(source: Path, folder: Path) -> None:
    """Unpack `source`, an archive or the archives in a folder, into `folder`, unless they were unpacked before.

    Another process that unpacks into the folder is waited for.

    Raises:
        UserError: see `lib.formats.unpack.unpack`.
    """
    with wait_for_lock(folder, _WAIT_SECONDS):
        _unpack_missing(source, folder)


def _unpack_missing(source: Path, folder: Path) -> None:
    record = folder / _RECORD
    done = read_json(record, dict[str, list[int]], hint='; remove it') if record.exists() else {}
    for archive in [source] if source.is_file() else sorted(filter(is_archive, source.iterdir())):
        status = archive.stat()
        state = [status.st_size, status.st_mtime_ns]
        if done.get(archive.name) == state:
            print_lines([f'{archive} was unpacked before (remove {record} to unpack it again)'])
            continue
        print_lines([f'unpacking {archive} ...'])
        unpack(archive, folder)
        done[archive.name] = state
        write_json(record, done)


def find_folder_with(folder: Path, file_names: tuple[str, ...]) -> Path | None:
    """Return the shallowest folder, `folder` or up to three levels below, that contains all of the files."""
    level = [folder] if folder.is_dir() else []
    for _ in range(_MAX_DEPTH + 1):
        for candidate in level:
            if all((candidate / name).is_file() for name in file_names):
                return candidate
        # Class folders are skipped; AliProducts has 50,030 of them.
        level = [
            Path(entry.path)
            for parent in level
            if parent.name not in ('train', 'val', 'test')
            for entry in sorted(os.scandir(parent), key=lambda entry: entry.name)
            if entry.is_dir() and not entry.name.startswith('.')
        ]
    return None


def link_into(source: Path, names: list[str], folder: Path) -> None:
    """Make `folder`/name a link to `source`/name for all names that exist in `source`; older links are replaced.

    Raises:
        UserError: `folder`/name exists and is no link.
    """
    with wait_for_lock(folder):
        _link_into(source, names, folder)


def _link_into(source: Path, names: list[str], folder: Path) -> None:
    for name in names:
        link, target = folder / name, (source / name).resolve()
        if not target.exists():
            continue
        if link.is_symlink():
            remove(link)
        elif link.exists():
            raise UserError(f'{link} exists and is no link; move it away to use {target}')
        with operation('write', link):
            link.symlink_to(target, target_is_directory=target.is_dir())
    sync_folder(folder)
