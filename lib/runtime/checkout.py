"""The checkout of the code that runs: its scripts, as a user types them, and its git commit."""

import os
import re
import subprocess
from pathlib import Path

from lib.runtime.read_file import MB, read_text

CHECKOUT = Path(__file__).resolve().parents[2]
# Untracked notes or data change no result, so only these count as changes.
_CODE = ('*.py', 'lib', 'configs', 'tools')
_SECONDS = 10  # `git status` on a slow network disk must not delay a run for long
_MAX_BYTES = 64 * MB  # of a list of references
_COMMIT = re.compile(r'[0-9a-f]{40}|[0-9a-f]{64}')


def path_to_type(name: str) -> str:
    """Return the path of a script or config of the checkout: relative in the current folder, else absolute."""
    path = CHECKOUT / name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def describe_commit(root: Path = CHECKOUT) -> str:
    """Return the commit of the checkout at `root`, and whether its code was changed since; never raises.

    Without a usable git program, the commit is read from the files of the checkout.
    """
    if not (root / '.git').exists():
        return 'unknown (not a git checkout)'
    commit = _git(root, 'rev-parse', '--verify', '--quiet', 'HEAD')
    if commit is not None and _COMMIT.fullmatch(commit):
        changes = _git(root, 'status', '--porcelain', '--ignore-submodules', '--', *_CODE)
        if changes is None:
            return f'{commit} (changes unknown: git status failed)'
        return f'{commit} (with uncommitted changes)' if changes else commit
    commit = _read_commit(root)
    return 'unknown (no commit can be read)' if commit is None else f'{commit} (changes unknown: git failed)'


def _git(root: Path, *arguments: str) -> str | None:
    """Return the output of git in the checkout at `root`, not in one that contains it; None if it fails."""
    # Variables of a git command that started this process would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    environment |= {'GIT_CEILING_DIRECTORIES': str(root.parent), 'GIT_OPTIONAL_LOCKS': '0'}
    # fsmonitor is a program that the settings of a repository may name.
    command = ['git', '-c', 'core.fsmonitor=false', '-C', str(root), *arguments]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode('utf-8', 'replace').strip()


def _read_commit(root: Path) -> str | None:
    """Return the commit that .git/HEAD names, also in a worktree or a submodule; None if the files do not have it."""
    try:
        folder = root / '.git'
        if folder.is_file():
            folder = root / _text(folder).partition('gitdir:')[2].strip()
        common = folder / 'commondir'
        shared = folder / _text(common).strip() if common.is_file() else folder
        head = _text(folder / 'HEAD').strip()
        name = head.removeprefix('ref:').strip() if head.startswith('ref:') else ''
        found = _read_reference(name, folder, shared) if name else head
    except (OSError, UnicodeDecodeError):
        return None
    return found if _COMMIT.fullmatch(found) else None


def _text(path: Path) -> str:
    return read_text(path, max_bytes=_MAX_BYTES)


def _read_reference(name: str, folder: Path, shared: Path) -> str:
    """Return the commit of a branch, from its own file or from packed-refs; '' if it has none."""
    for file in (folder / name, shared / name):
        if file.is_file():
            return _text(file).strip()
    packed = shared / 'packed-refs'
    lines = _text(packed).splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.split()[1:] == [name]), '')
