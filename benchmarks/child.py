"""One side of a comparison in a new process: its results, seconds, and peak anonymous memory. Needs Linux."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from lib.errors import UserError

_SECONDS_BETWEEN_SAMPLES = 0.005

Run = Callable[[], dict[str, float]]
Prepare = Callable[[Path, str], Run]


def measure(prepare: Prepare, folder: Path, argument: str) -> dict[str, float]:
    """Run prepare(folder, argument)() in a new process; return its results with `seconds`, `before_gb` and `peak_gb`.

    Raises:
        UserError: the process has died.
    """
    context = multiprocessing.get_context('spawn')
    source, sink = context.Pipe()
    process = context.Process(target=in_child, args=(prepare, folder, argument, sink))
    process.start()
    sink.close()  # so that the pipe is closed if the process dies
    try:
        source.recv()
        before = peak = anonymous_bytes(process.pid)
        source.send('start')
        pause = _SECONDS_BETWEEN_SAMPLES
        while not source.poll(pause):
            started = time.perf_counter()
            peak = max(peak, anonymous_bytes(process.pid))
            pause = max(_SECONDS_BETWEEN_SAMPLES, 10 * (time.perf_counter() - started))
        results = source.recv()
    except (EOFError, ConnectionError):
        raise UserError('a process that was measured has died; if it was killed, memory was not enough') from None
    process.join()
    return {**results, 'before_gb': before / 1e9, 'peak_gb': peak / 1e9}


def in_child(prepare: Prepare, folder: Path, argument: str, sink: Connection) -> None:
    """Prepare, send a signal, run, and send the results with the seconds."""
    multiprocessing.set_start_method('fork', force=True)  # cleanlab relies on it; a spawned process would spawn
    run = prepare(folder, argument)
    sink.send('ready')
    sink.recv()
    started = time.perf_counter()
    results = run()
    sink.send({**results, 'seconds': time.perf_counter() - started})


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous and shared memory of a process and its children, in bytes; 0 of one that has ended.

    Needs Linux. Pages that processes share since fork are counted once, by smaps_rollup, which is slow, and so is read
    only where there are children.
    """
    folder = Path(f'/proc/{pid}')
    try:
        children = (folder / 'task' / str(pid) / 'children').read_text(encoding='ascii').split()
        if not children:
            return _sum_of(folder / 'status', ('RssAnon:', 'RssShmem:'))
        pids = [pid, *map(int, children)]
        return sum(_sum_of(Path(f'/proc/{one}/smaps_rollup'), ('Pss_Anon:', 'Pss_Shmem:')) for one in pids)
    except OSError:
        return 0


def _sum_of(path: Path, names: tuple[str, ...]) -> int:
    lines = [line.split() for line in path.read_text(encoding='ascii').splitlines()]
    return 1024 * sum(int(line[1]) for line in lines if line[0] in names)
