"""Decoder process: runs what may take much memory or time on an image, within limits that the system enforces.

A decoder is one call of C code, which no thread and no signal handler can stop. So each thread that needs one has a
child process, started on demand and kept for the next image: it has the address space that it needs plus the limit
(Linux), and a timer of its CPU time ends it (all systems but Windows, where its time in total counts). What it sends is
read as pixels and text only. It is an ordinary subprocess, since workers are daemons, which multiprocessing allows no
children, and it ends when the process that started it ends.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from lib.dataset.decode_cost import MAX_BYTES, MAX_SECONDS, DecodeError, TooLargeError, check_bytes, too_slow
from lib.errors import UserError

# By the clock: only against a decoder that waits without end, since a busy machine may give a process a hundredth of a
# core, and good images must not count as bad then. Windows has no timer of CPU time.
_MAX_WALL_SECONDS = (120 if hasattr(signal, 'setitimer') else 6) * MAX_SECONDS
_CRASHES = {getattr(signal, name, None) for name in ('SIGSEGV', 'SIGBUS', 'SIGABRT', 'SIGFPE', 'SIGILL')}
_STOPS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]
_START = 'import sys; sys.path[:] = sys.argv[1:]; from lib.dataset.decode_process import serve; serve()'
_ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')

Decoding = Callable[..., tuple[np.ndarray, str]]

_is_decoder_process = False
_idle: list['_Decoder'] = []


def run_apart(decoding: Decoding, data: bytes, *arguments: Any) -> tuple[np.ndarray, str]:
    """Return decoding(data, *arguments), which are an array of uint8 and a text, from a decoder process.

    Args:
        decoding: function of a module; in the decoder process itself, it is called directly.
        arguments: numbers and texts.

    Raises:
        DecodeError: as raised there, also for an image that exceeds a limit or crashes its decoder.
        UserError: no process can be started.
    """
    if _is_decoder_process:
        return decoding(data, *arguments)
    check_bytes(3 * len(data))  # here, there, and a part of it
    request = {
        'module': decoding.__module__,
        'name': decoding.__name__,
        'args': arguments,
        'num_bytes': len(data),
        'max_bytes': MAX_BYTES - 2 * len(data),
        'max_seconds': MAX_SECONDS,
    }
    for attempts_left in (1, 0):
        decoder = _take_idle() or _Decoder()
        try:
            answer, pixels = decoder(request, data)
        except EOFError:
            _raise_reason(decoder)
            if not attempts_left:
                raise DecodeError(f'its decoder was ended twice ({decoder.end})') from None
            continue  # ended from outside, perhaps as memory was full
        _idle.append(decoder)
        if 'fault' in answer:
            raise RuntimeError(f'in a decoder process:\n{answer["fault"]}')
        if 'error' in answer:
            raise (TooLargeError if answer.get('is_too_large') else DecodeError)(str(answer['error']))
        return pixels, str(answer['note'])
    raise AssertionError('unreachable')


def _take_idle() -> '_Decoder | None':
    try:
        return _idle.pop()
    except IndexError:
        return None


def _raise_reason(decoder: '_Decoder') -> None:
    """Raise DecodeError if the image is the reason why its decoder has ended."""
    if decoder.is_overdue or decoder.end == getattr(signal, 'SIGPROF', None):
        raise too_slow() from None
    if decoder.end in _CRASHES:
        raise DecodeError(f'crashes its decoder ({signal.Signals(decoder.end).name})') from None


class _Decoder:
    """A running decoder process.

    Attributes:
        end: when it has ended: the signal that ended it, or minus its exit status.
        is_overdue: True if it was ended for its time.
    """

    def __init__(self) -> None:
        """Start the process. Raises: UserError."""
        self.end, self.is_overdue = 0, False
        root = str(Path(__file__).resolve().parents[2])
        # Blocked signals are inherited: what stops this process comes to the whole group, and the images of a batch
        # that is still needed must not count as unreadable.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS) if hasattr(signal, 'pthread_sigmask') else None
        try:
            self._process = subprocess.Popen(
                [sys.executable, '-c', _START, root, *filter(None, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # complaints of decoders
                env={**os.environ, **_ONE_THREAD},
            )
        except OSError as error:
            raise UserError(
                f'large images are decoded in a separate process, which cannot be started ({error.strerror}); '
                'use a smaller --RUN_NUM_WORKERS'
            ) from None
        finally:
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __call__(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        """Return the answer and the pixels. Raises: EOFError, when the process has ended."""
        timer = threading.Timer(_MAX_WALL_SECONDS, self._stop)
        timer.daemon = True
        timer.start()
        try:
            return self._exchange(request, data)
        except (OSError, EOFError, ValueError):  # ValueError: half a line
            self.kill()
            raise EOFError from None
        except BaseException:  # Ctrl-C: the answer to come would be taken for that to the next request
            self.kill()
            raise
        finally:
            timer.cancel()

    def _exchange(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        requests, answers = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        requests.write(json.dumps(request).encode() + b'\n')
        requests.write(data)
        requests.flush()
        answer = json.loads(answers.readline() or 'null')
        if not isinstance(answer, dict):
            raise EOFError
        shape = tuple(map(int, answer.get('shape', (0,))))
        check_bytes(np.prod(shape, dtype=float))
        pixels = np.empty(shape, np.uint8)
        if pixels.size and answers.readinto(pixels.reshape(-1).data) < pixels.size:  # type: ignore[attr-defined]
            raise EOFError
        return answer, pixels

    def _stop(self) -> None:
        self.is_overdue = True
        self._process.kill()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self.end = -self._process.returncode
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                cast(BinaryIO, pipe).close()
            except OSError:  # of the rest of a request
                continue


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().kill()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_idle.clear)  # they belong to the parent


def serve() -> None:
    """Answer requests until the other process closes the pipe. This is the main function of a decoder process."""
    global _is_decoder_process
    _is_decoder_process = True
    requests, answers = os.fdopen(os.dup(0), 'rb'), os.fdopen(os.dup(1), 'wb')
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # decoders may write there
        os.dup2(nowhere, descriptor)
    if hasattr(signal, 'SIGPROF'):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    try:
        while line := requests.readline():
            request = json.loads(line)
            answer, pixels = _answer(request, requests.read(request['num_bytes']))
            answers.write(json.dumps(answer).encode() + b'\n')
            answers.write(np.ascontiguousarray(pixels).reshape(-1).data)
            answers.flush()
            del answer, pixels  # the next request may come much later
    except (OSError, ValueError):
        os._exit(1)  # the other process has ended


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    nothing = np.empty(0, np.uint8)
    decoding = getattr(import_module(request['module']), request['name'])
    try:
        with _limits(request['max_bytes'], request['max_seconds']):
            pixels, note = decoding(data, *request['args'])
    except DecodeError as error:
        return {'error': str(error), 'is_too_large': isinstance(error, TooLargeError)}, nothing
    except MemoryError:
        return {'error': f'needs more than {MAX_BYTES / 1e9:g} GB to decode', 'is_too_large': True}, nothing
    except Exception:
        return {'fault': traceback.format_exc()}, nothing
    return {'shape': pixels.shape, 'note': note}, pixels


@contextmanager
def _limits(max_bytes: int, max_seconds: float) -> Iterator[None]:
    """Limit the time within, and the memory to `max_bytes` more than now."""
    if hasattr(signal, 'setitimer'):
        signal.setitimer(signal.ITIMER_PROF, max_seconds)
    if sys.platform == 'linux':
        import resource

        with open('/proc/self/statm', 'rb') as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        allowed = now + max_bytes if before[1] == resource.RLIM_INFINITY else min(now + max_bytes, before[1])
        resource.setrlimit(resource.RLIMIT_AS, (allowed, before[1]))
    try:
        yield
    finally:
        if sys.platform == 'linux':
            resource.setrlimit(resource.RLIMIT_AS, before)
        if hasattr(signal, 'setitimer'):
            signal.setitimer(signal.ITIMER_PROF, 0)
