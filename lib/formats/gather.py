"""Downloaded files to one folder: archives unpacked once, folders linked, nothing copied."""

import os
from pathlib import Path

import msgspec

from lib.errors import UserError
from lib.formats.unpack import is_archive, unpack
from lib.runtime.files import write_json

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
