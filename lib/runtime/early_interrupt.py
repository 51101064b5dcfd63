"""Ctrl-C while a script starts: the first import of lib/commands/cli.py, so it imports only what Python has loaded."""

import os
import sys
from types import TracebackType

INTERRUPTED = 'interrupted'
_INTERRUPT_CODE = 130  # 128 + SIGINT


def end_quietly() -> None:
    """Let Ctrl-C end this process in one line while `ending_signals` is not active: before and after the command."""
    uncaught, unraisable = sys.excepthook, sys.unraisablehook

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(INTERRUPTED, file=sys.stderr, flush=True)
            os._exit(_INTERRUPT_CODE)
        uncaught(kind, error, trace)

    def ignore(lost: 'sys.UnraisableHookArgs') -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt | SystemExit):  # Terminated is one
            unraisable(lost)

    sys.excepthook, sys.unraisablehook = end, ignore
