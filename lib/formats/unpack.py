"""Archives from elsewhere: unpacked as a whole or not at all, and nowhere but where they are meant to go.

Downloaded files to one folder: archives unpacked once, folders linked, nothing copied.
"""

import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

import msgspec

from lib.errors import UserError
from lib.runtime.files import write_json

SUFFIXES = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.zip')


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive which `unpack` reads."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar (plain or compressed) or .zip into `folder`, among what is there already.

    Everything is first unpacked beside its place and moved in at the end, so that a refused or damaged
    archive, or a full disk, leaves `folder` as it was.

    Raises:
        UserError: no such file, no archive, a damaged one, or a member with an absolute path, with `..`,
            with a link that leads out, or that is a device.
    """
    if not hasattr(tarfile, 'data_filter'):
        raise UserError('unpacking safely needs Python 3.11.4 or newer')
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix='.unpacking-', dir=folder))
    try:
        _extract(archive, staging)
        _move_in(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _extract(archive: Path, staging: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, staging)
        elif tarfile.is_tarfile(archive):
            _extract_tar(archive, staging)
        else:
            raise UserError(f'{archive}: neither a tar nor a zip archive, or a damaged one; download it again')
    except FileNotFoundError as error:
        if error.filename != str(archive):
            raise
        raise UserError(f'{archive}: no such file') from None
    except tarfile.FilterError as error:
        raise UserError(f'{archive}: refused, {error}') from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise UserError(f'{archive}: damaged ({error}); download it again') from None
    except (RuntimeError, NotImplementedError) as error:  # zipfile: encrypted, unknown compression
        raise UserError(f'{archive}: cannot be unpacked ({error})') from None


def _extract_zip(archive: Path, staging: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _check_name(archive, member.filename)
            file.extract(member, staging)  # a symbolic link comes out as a small text file


def _extract_tar(archive: Path, staging: Path) -> None:
    with tarfile.open(archive) as file:
        for member in file:
            # The data filter would only strip a leading slash; such an archive was not made for us.
            _check_name(archive, member.name)
            file.extract(member, staging, filter='data')
            file.members = []  # tarfile remembers every member, millions of them


def _check_name(archive: Path, name: str) -> None:
    path = PureWindowsPath(name)  # reads / and \ alike
    if PurePosixPath(name).is_absolute() or path.is_absolute() or path.drive or '..' in path.parts:
        raise UserError(f'{archive}: refused, its member {name!r} leads out of the folder')


def _move_in(source: Path, target: Path) -> None:
    """Move what is in `source` into `target`; folders are merged, files replaced."""
    for entry in os.scandir(source):
        place = target / entry.name
        if entry.is_dir(follow_symlinks=False) and place.is_dir() and not place.is_symlink():
            _move_in(Path(entry.path), place)
        else:
            if place.is_symlink():
                place.unlink()  # the link, not what it points to
            Path(entry.path).replace(place)


_LEDGER = '.unpacked.json'
_DEPTH = 3


def unpack_new(source: Path, folder: Path) -> None:
    """Unpack `source`, an archive or the archives in a folder, into `folder`, but none a second time.

    Raises:
        UserError: see `lib.formats.unpack.unpack`.
    """
    ledger = folder / _LEDGER
    done = msgspec.json.decode(ledger.read_bytes()) if ledger.is_file() else {}
    for archive in [source] if source.is_file() else sorted(filter(is_archive, source.iterdir())):
        status = archive.stat()
        state = [status.st_size, status.st_mtime_ns]
        if done.get(archive.name) == state:
            print(f'{archive} was unpacked before (remove {ledger} to do it again)', flush=True)
            continue
        print(f'unpacking {archive} ...', flush=True)
        unpack(archive, folder)
        done[archive.name] = state
        write_json(ledger, done)


def find_marked(folder: Path, marks: tuple[str, ...]) -> Path | None:
    """Return the shallowest folder, `folder` or up to three levels below, that holds all files of `marks`."""
    level = [folder] if folder.is_dir() else []
    for _ in range(_DEPTH + 1):
        for candidate in level:
            if all((candidate / mark).is_file() for mark in marks):
                return candidate
        # Class folders by the thousand hold no marks; AliProducts has 50,030 of them.
        level = [
            Path(entry.path)
            for parent in level
            if parent.name not in ('train', 'val', 'test')
            for entry in sorted(os.scandir(parent), key=lambda entry: entry.name)
            if entry.is_dir() and not entry.name.startswith('.')
        ]
    return None


def link_into(source: Path, names: list[str], folder: Path) -> None:
    """Make `folder`/name a link to `source`/name for the names that are there; older links are replaced.

    Raises:
        UserError: something that is no link is in the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        link, target = folder / name, (source / name).resolve()
        if not target.exists():
            continue
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise UserError(f'{link} is there already and no link; move it away to use {target}')
        link.symlink_to(target, target_is_directory=target.is_dir())
