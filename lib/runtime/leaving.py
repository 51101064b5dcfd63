"""Calls that may take long, such as those that wait for a server, and that a process leaves behind when it ends."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar('Result')
_waiting: set[object] = set()  # one per call that has not returned


def call(work: Callable[[], Result]) -> Result:
    """Return the result of `work`; a signal interrupts the main thread at once, although the library does not return.

    Handlers of signals run between two instructions of the main thread. So another thread calls `work` for it, and ends
    with the process.
    """
    if threading.current_thread() is threading.main_thread():
        result: Future[Result] = Future()
        threading.Thread(target=_fill, args=(result, work), daemon=True, name='request').start()
        try:
            return result.result()
        finally:
            del result  # its exception refers to this frame
    token = object()
    _waiting.add(token)
    try:
        return work()
    finally:
        _waiting.discard(token)


def _fill(result: 'Future[Result]', work: Callable[[], Result]) -> None:
    try:
        result.set_result(call(work))
    except BaseException as error:
        result.set_exception(error)
    finally:
        del result


def is_waiting() -> bool:
    """Return whether a call has not returned."""
    return bool(_waiting)


def exit_without_waiting(code: int) -> None:
    """End the process if a call has not returned: at any other end of the process, Arrow waits for the server."""
    if is_waiting():
        os._exit(code)
