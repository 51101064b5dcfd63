"""The process of a script: its standard streams, and the signals that end it.

The streams are always open, take any text, and raise no error once their reader has ended. Ctrl-C, SIGTERM and SIGHUP
raise an exception, so that everything is cleaned up.
"""

import _thread
import ctypes
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

from lib.errors import one_line
from lib.runtime.early_interrupt import INTERRUPTED
from lib.runtime.mirror import with_urls

# Batch systems and torchrun send SIGTERM, a terminal that is closed sends SIGHUP. Windows has no SIGHUP.
TERMINATING = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name))
# torchrun and batch systems send a process a signal that they have already sent to its whole process group.
SAME_SIGNAL_SECONDS = 1.0
_CLEANUP_SECONDS, _AGAIN_SECONDS = 8.0, 0.05
# Enough for any run; a program that closes all descriptors it might have would take long with a million of them.
_OPEN_FILES = 1 << 16
_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MALLOC_KEPT_BYTES, _MALLOC_LARGEST_BLOCK = 1 << 30, 1 << 25  # the latter is the largest that glibc accepts
# Environment variable: id of the process whose end is a SIGTERM for this one, which is in another session.
PARENT = 'RECOGNIZER_PARENT'
_LINES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: 'terminated (SIGTERM)'}


class _Lossy(io.FileIO):
    """A standard stream whose errors are remembered instead of raised: losing the terminal must not lose a run.

    Attributes:
        error: the first one; later output is dropped.
    """

    error: OSError | None = None

    def write(self, data: object) -> int:
        """Write some of `data`, or drop all of it after an error."""
        while self.error is None:
            try:
                written = super().write(data)  # type: ignore[arg-type]  # any bytes-like object
            except OSError as error:
                self.error = error
            else:
                if written is not None:
                    return written
                select.select([], [self.fileno()], [])  # another process has made it non-blocking
        return memoryview(data).nbytes  # type: ignore[arg-type]


def prepare_streams() -> None:
    """Open the standard streams that the caller has closed, and make output take any text and never fail.

    A closed descriptor would be that of the next file that is opened, and a line for the terminal would be written into
    it. Streams that are no longer those of the process, as in tests, only get the handling of characters.
    """
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        _open(number)
        stream = getattr(sys, name)
        if number and (stream is None or stream is getattr(sys, f'__{name}__')):
            stream = _lossy(number, stream)
        elif stream is None:
            stream = open(number, encoding='utf-8', closefd=False)  # noqa: SIM115 - open until the process ends
        if stream is not getattr(sys, name):
            setattr(sys, name, stream)
            setattr(sys, f'__{name}__', stream)
        elif number and isinstance(stream, io.TextIOWrapper):
            # Characters that its encoding lacks, such as ё in cp1252.
            stream.reconfigure(errors='backslashreplace')


def use_huge_pages() -> None:
    """Let torch place its tensors in huge pages, unless the user has decided; before torch is imported.

    Page faults take half of the time of a depthwise network on a CPU under Linux: of tf_efficientnet_lite0 at 224 px,
    predictions take 0.60 times as long with huge pages, and training 0.86.
    """
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MB for the next tensors, unless the user has decided.

    Otherwise each huge page that torch frees goes back to the system, which clears it before torch gets it again:
    normalizing a batch of 64 images of 112 px takes four times as long.
    """
    if sys.platform == 'linux' and not any(name.startswith('MALLOC_') for name in os.environ):
        with suppress(AttributeError, OSError):  # another C library
            malloc_option = ctypes.CDLL(None).mallopt
            malloc_option(_MALLOC_TRIM_THRESHOLD, _MALLOC_KEPT_BYTES)
            malloc_option(_MALLOC_MMAP_THRESHOLD, _MALLOC_LARGEST_BLOCK)


def allow_open_files() -> None:
    """Raise the soft limit of open files to the hard one: each worker process takes several descriptors."""
    with suppress(ImportError, OSError, ValueError):  # Windows; macOS allows fewer than its hard limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open(number: int) -> None:
    """Open the null device as a descriptor that is closed."""
    try:
        os.fstat(number)
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.set_inheritable(number, True)


def _lossy(number: int, stream: TextIO | None) -> io.TextIOWrapper:
    """Return a text stream like `stream` that remembers errors."""
    if stream is not None:
        _flush(stream)
    raw = _Lossy(number, 'w', closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, 'encoding', None) or 'utf-8',
        errors='backslashreplace',
        line_buffering=number == 2 or raw.isatty(),
        write_through=getattr(stream, 'write_through', False),
    )


def _flush(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        stream.flush()


def output_error() -> OSError | None:
    """Flush the output and return the error of standard output; None if everything could be written."""
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    raw = getattr(getattr(sys.stdout, 'buffer', None), 'raw', None)
    return raw.error if isinstance(raw, _Lossy) else None


def write_error_line(text: str) -> None:
    """Write one line to standard error; one write, so that the lines of several processes do not mix."""
    with suppress(OSError, ValueError):  # a stream of the caller may raise
        sys.stderr.write(f'{with_urls(one_line(text))}\n')
        sys.stderr.flush()


class Terminated(SystemExit):
    """SIGTERM or SIGHUP ends the command; the exit code is 128 + the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def handled_signals() -> list[signal.Signals]:
    """Return the signals that end a command; without SIGHUP if the caller ignores it, as nohup does."""
    return [signal.SIGINT, *(s for s in TERMINATING if s != _hangup() or signal.getsignal(s) is not signal.SIG_IGN)]


def _hangup() -> signal.Signals | None:
    return getattr(signal, 'SIGHUP', None)


def raise_for(number: int) -> NoReturn:
    """Raise the exception of a signal: KeyboardInterrupt for Ctrl-C, else Terminated."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def end_line(number: int) -> str:
    """Return the line that a command ends with after a signal."""
    return _LINES.get(signal.Signals(number), f'ended by {signal.Signals(number).name}')


class EndingSignal:
    """The signal that ends this command.

    Attributes:
        number: number of the first signal; None: none was received.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._received_at = 0.0

    def handle(self, number: int, frame: object) -> None:
        """Raise the exception of the signal; a repetition within a second, and an ignored Ctrl-C, change nothing."""
        if self.number is not None and time.monotonic() - self._received_at < SAME_SIGNAL_SECONDS:
            return
        if self.number is None:
            self.number = number
            threading.Thread(target=self._end_at_last, daemon=True).start()
        self._received_at = time.monotonic()
        raise_for(number)

    def repeat(self) -> None:
        """Raise the exception again; it was raised in a destructor, where exceptions are lost."""
        if self.number is not None:
            self._received_at = 0.0
            # Not here, which is still within the destructor.
            again = threading.Timer(_AGAIN_SECONDS, _signal_main_thread, [self.number])
            again.daemon = True
            again.start()

    def _end_at_last(self) -> None:
        """End the process if the exception was lost in a library, or if cleaning up takes too long."""
        time.sleep(_CLEANUP_SECONDS)
        assert self.number is not None
        write_error_line(end_line(self.number))
        os._exit(128 + self.number)


def end_with_parent() -> None:
    """Send this process SIGTERM when the process in the environment variable PARENT has ended; it is the parent."""
    parent = os.environ.pop(PARENT, '')  # not for the processes that this one starts
    if not parent.isdecimal() or not hasattr(os, 'getppid'):
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _signal_main_thread(number: int) -> None:
    if hasattr(signal, 'pthread_kill'):
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, number)  # which also interrupts a system call
    else:
        _thread.interrupt_main(signal.Signals(number))


@contextmanager
def ending_signals() -> Iterator[EndingSignal]:
    """Let Ctrl-C, SIGTERM and SIGHUP raise an exception in the main thread within the block."""
    ending = EndingSignal()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    numbers = [number for number in handled_signals() if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ending.handle) for number in numbers}
    hook = sys.unraisablehook

    def repeat_if_lost(lost: 'sys.UnraisableHookArgs') -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt | Terminated):
            ending.repeat()
        else:
            hook(lost)

    sys.unraisablehook = repeat_if_lost
    try:
        yield ending
    finally:
        sys.unraisablehook = hook
        if ending.number is None:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
