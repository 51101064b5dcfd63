"""Worker processes: a pool that runs tasks, the way processes are started, and their end with the main process."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from lib.errors import UserError
from lib.runtime.memory_kills import reason_of_kill
from lib.runtime.process import handled_signals

# (task, progress) -> result; progress(n) advances the progress bar by n.
Work = Callable[[Any, Callable[[int], None]], Any]
_TERMINATE_SECONDS = 4  # for `finally` blocks
_ORPHAN_SECONDS = 3.0


def run_in_processes(
    work: Work, tasks: Sequence[Any], *, num_workers: int, progress: Callable[[int], None]
) -> Generator[Any]:
    """Yield the result of `work` for each task, in the order in which the results arrive.

    Args:
        work: called in the processes; pickled once per process, so it may hold data that all tasks need.
        tasks: pickled one at a time.
        num_workers: number of processes; 0: run in this process, in order.
        progress: called in this process with the numbers that `work` reports.

    When the iterator is closed or an exception is raised (Ctrl-C, an error of a task), the processes are terminated
    with SIGTERM, so their `finally` blocks run.

    Raises:
        UserError, OSError: as raised by `work`; UserError also if a process was killed.
        RuntimeError: any other exception of `work`, with its traceback as text.
    """
    if num_workers == 0:
        for task in tasks:
            yield work(task, progress)
        return
    context = process_context(type(work).__module__)
    waiting = iter(tasks)
    workers: dict[Connection, Any] = {}
    try:
        for _ in range(min(num_workers, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that the pipe is closed when the process ends
            workers[ours] = process
            _send(ours, work)
            _send(ours, next(waiting))
        while workers:
            for connection in cast(list[Connection], wait(list(workers))):
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
                    connection.close()  # which ends the process
                    workers.pop(connection).join()
                else:
                    _send(connection, task)
    finally:
        _end(list(workers.values()))


def num_cores() -> int:
    """Return the number of CPU cores that this process may use; containers and batch systems may limit it."""
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
    return UserError(f'a process that reads images was killed, {reason_of_kill()}; use a smaller --RUN_NUM_WORKERS')


def _end(processes: list) -> None:
    for process in processes:
        process.terminate()
    end = time.monotonic() + _TERMINATE_SECONDS
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection) -> None:
    """Run tasks until the pipe is closed; end within a task when the main process has ended or sends SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one terminates this one
    # So that `finally` blocks run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _block([signal.SIGTERM], block=False)
    main_process = multiprocessing.parent_process()
    assert main_process is not None
    threading.Thread(target=_terminate_with, args=(main_process,), daemon=True).start()
    try:
        work = connection.recv()
        while True:
            connection.send(_outcome(work, connection.recv(), lambda count: connection.send(('progress', count))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _terminate_with(main_process: multiprocessing.process.BaseProcess) -> None:
    main_process.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_SECONDS)  # in a long call into a library, no signal is handled
    os._exit(1)


def _outcome(work: Work, task: Any, progress: Callable[[int], None]) -> tuple[str, Any]:
    try:
        return 'done', work(task, progress)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except (UserError, OSError) as error:
        return 'failed', error
    except Exception:
        return 'failed', RuntimeError(f'in a worker process:\n{traceback.format_exc()}')


def process_context(
    preload: str,
) -> 'multiprocessing.context.ForkServerContext | multiprocessing.context.SpawnContext':
    """Return a multiprocessing context: a fork server that has imported `preload`, or spawn on Windows.

    Forking this process itself may hang, because it has threads. The new processes block Ctrl-C, SIGTERM and SIGHUP: a
    terminal or a batch system sends them to all processes of a run, and the main process still needs the workers to
    save a checkpoint.
    """
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    from multiprocessing import forkserver, resource_tracker  # Windows has none

    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([preload])  # imported once, not in every process
    # Blocked signals are inherited. Starting the resource tracker, which ignores the other two, unblocks them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, handled_signals())
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def exit_with_parent() -> None:
    """End this process when the process that started it has ended or sends SIGTERM; SIGTERM of others is ignored.

    A fork server lives as long as its processes, and torch's watchdog in a worker only checks for the fork server, so
    without this thread, both would outlive a killed main process.
    """
    _block([signal.SIGTERM])
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(main_process: multiprocessing.process.BaseProcess) -> None:
    if not hasattr(signal, 'sigtimedwait'):  # macOS, Windows
        # Here, the sender of a signal is unknown, so SIGTERM of any process ends this one.
        _block([signal.SIGTERM], block=False)
        main_process.join()
        os._exit(1)
    while main_process.is_alive():
        received = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if received is not None and received.si_pid == main_process.pid:
            break
    os._exit(1)


def _block(signals: Sequence[signal.Signals], *, block: bool = True) -> None:
    """Block signals in this thread and in those that it starts, or unblock them; does nothing on Windows."""
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_BLOCK if block else signal.SIG_UNBLOCK, signals)
