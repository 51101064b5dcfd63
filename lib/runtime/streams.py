"""The standard streams of a script: always open, for any text, and without an error once nobody reads them."""

import io
import os
import select
import sys
from contextlib import suppress
from typing import TextIO

from lib.errors import one_line


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
        sys.stderr.write(f'{one_line(text)}\n')
        sys.stderr.flush()
