"""Functions that run in the decoder process of tests; each such process imports them, so they import little."""

import os
import time

import numpy as np


def reversed_bytes(data: bytes, times: int) -> tuple[np.ndarray, str]:
    """Return the bytes in reverse order, repeated, and the number of the process."""
    return np.frombuffer(data[::-1] * times, np.uint8).reshape(times, len(data)), str(os.getpid())


def take_memory(data: bytes) -> tuple[np.ndarray, str]:
    """Return more than is allowed."""
    return np.ones(1_200_000_000, np.uint8), ''


def take_time(data: bytes) -> tuple[np.ndarray, str]:
    """Compute without end."""
    while True:
        pass


def end_by(data: bytes, number: int) -> tuple[np.ndarray, str]:
    """End the process by a signal; with 0, wait."""
    os.kill(os.getpid(), number)
    time.sleep(1000)
    return np.empty(0, np.uint8), ''


def fail(data: bytes) -> tuple[np.ndarray, str]:
    """Fail as a mistake in this code does."""
    raise KeyError('a mistake in a decoder')
