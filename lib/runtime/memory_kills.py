"""Processes that the kernel ends with SIGKILL when memory runs out: its counters on Linux. Imports nothing heavy."""

from collections.abc import Iterator
from pathlib import Path

_PROC, _CGROUPS = Path('/proc'), Path('/sys/fs/cgroup')
_MAX_BYTES = 1 << 20
_at_start: dict[str, int] = {}


def read_counters(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> dict[str, int]:
    """Return {path: oom_kill}, the processes ended on this machine, and in the cgroup of this process; {} if unknown.

    A container may see only one of them. The rank of a batch job may be in another cgroup than this process.
    """
    counters = {}
    for path in (proc / 'vmstat', *_cgroup_files(proc, cgroups)):
        for line in _text(path).splitlines():
            name, _, value = line.partition(' ')
            if name == 'oom_kill' and value.strip().isdecimal():
                counters[str(path)] = int(value)
    return counters


def _cgroup_files(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Yield where the counter of this process may be, for both versions of cgroups.

    In a container, the path in /proc/self/cgroup may be that of the machine, while its own cgroup is the root.
    """
    for line in _text(proc / 'self' / 'cgroup').splitlines():
        _, controllers, path = [*line.split(':', 2), '', ''][:3]
        version_1 = 'memory' in controllers.split(',')
        if version_1 or not controllers:
            root, name = (cgroups / 'memory', 'memory.oom_control') if version_1 else (cgroups, 'memory.events')
            own = root / path.lstrip('/') / name
            yield own if own.exists() else root / name


def _text(path: Path) -> str:
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            return file.read(_MAX_BYTES)
    except OSError:  # another system than Linux, or a container without it
        return ''


def remember_counters() -> None:
    """Note the counters at the start of a command."""
    _at_start.update(read_counters())


def num_killed() -> int | None:
    """Return how many processes the kernel has ended since `remember_counters`; None: it does not count them."""
    now = read_counters()
    return max((now[path] - before for path, before in _at_start.items() if path in now), default=None)


def reason_of_kill() -> str:
    """Return why a process of this machine was probably killed, such as 'most likely because memory ran out'."""
    count = num_killed()
    if not count:
        return 'most likely because memory ran out'
    return f'because memory ran out: the kernel has ended {count} process{"es" if count > 1 else ""} (oom_kill)'
