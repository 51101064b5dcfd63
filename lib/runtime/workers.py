"""Processes that take tasks one at a time, and are gone when the one that started them is."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from lib.errors import UserError

# (task, progress) -> result; progress(n) says that n more of whatever the bar counts are done.
Work = Callable[[Any, Callable[[int], None]], Any]
_PATIENCE_SECONDS = 10


def run_tasks(work: Work, tasks: Sequence[Any], *, num_workers: int, progress: Callable[[int], None]) -> Iterator[Any]:
    """Yield the result of `work` for each task, in the order in which they come.

    Args:
        work: called in the processes; pickled once for each of them, so it may hold what all tasks need.
        tasks: pickled as they are handed out.
        num_workers: processes; 0 works in this one, in order.
        progress: called here with what `work` reports.

    When the iterator is closed or anything is raised (Ctrl-C, an error of one task), the processes are ended at once
    but politely: their `finally` blocks run.

    Raises:
        UserError, OSError: as raised by `work`; UserError too when a process was killed.
        RuntimeError: anything else that was raised, with its traceback as text.
    """
    if num_workers == 0:
        for task in tasks:
            yield work(task, progress)
        return
    context = fresh_processes(type(work).__module__)
    waiting = iter(tasks)
    workers: dict[Connection, Any] = {}
    try:
        for _ in range(min(num_workers, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            workers[ours] = process
            _send(ours, work)
            _send(ours, next(waiting))
        while workers:
            for connection in wait(list(workers)):
                kind, value = _receive(connection)
                if kind == 'progress':
                    progress(value)
                    continue
                if kind == 'failed':
                    raise value
                yield value
                try:
                    task = next(waiting)
                except StopIteration:
                    connection.close()  # the process ends
                    workers.pop(connection).join()
                else:
                    _send(connection, task)
    finally:
        _end(list(workers.values()))


def num_cores() -> int:
    """Return how many cores this process may use: a container or a batch system may have given it a part of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _send(connection: Connection, value: Any) -> None:
    try:
        connection.send(value)
    except (BrokenPipeError, ConnectionResetError):
        raise _killed() from None


def _receive(connection: Connection) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        raise _killed() from None


def _killed() -> UserError:
    return UserError(
        'a process that reads images was killed, most likely for want of memory; a smaller --RUN_NUM_WORKERS needs less'
    )


def _end(processes: list) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection) -> None:
    """Do tasks until the pipe ends, which it also does when the other process dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process tells us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    try:
        work = connection.recv()
        while True:
            connection.send(_outcome(work, connection.recv(), lambda count: connection.send(('progress', count))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _outcome(work: Work, task: Any, progress: Callable[[int], None]) -> tuple[str, Any]:
    try:
        return 'done', work(task, progress)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except (UserError, OSError) as error:
        return 'failed', error
    except Exception:
        return 'failed', RuntimeError(f'in a worker process:\n{traceback.format_exc()}')


def fresh_processes(preload: str) -> multiprocessing.context.BaseContext:
    """Return how processes start: from a clean one that has imported `preload`; forking one with threads may hang.

    They are born deaf to SIGTERM: batch systems send it to all processes of a run, and the main one still needs them.
    """
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    from multiprocessing import forkserver, resource_tracker  # Windows has none

    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([preload])  # imported once, not in every process
    # A process inherits which signals are blocked. The tracker first, since starting it unblocks them.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def exit_with_parent() -> None:
    """End this process when the one that started it is gone, or sends SIGTERM; nobody else's SIGTERM counts.

    A forkserver lives as long as its processes do, and torch's watchdog of a worker asks for the forkserver only: when
    the main process is killed, both would stay for ever.
    """
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(main_process: multiprocessing.Process) -> None:
    if not hasattr(signal, 'sigtimedwait'):  # macOS, Windows
        if hasattr(signal, 'pthread_sigmask'):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # in this thread, so nobody can tell whose
        main_process.join()
        os._exit(1)
    while main_process.is_alive():
        told = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if told is not None and told.si_pid == main_process.pid:
            break
    os._exit(1)
