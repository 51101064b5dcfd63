"""Choices by measured times: of a few ways to compute the same, the fastest; measurements are stored in a JSON file."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from lib.runtime.checksums import sealed, unsealed
from lib.runtime.device import Device, hardware_name
from lib.runtime.files import read_json, write_json
from lib.runtime.log import LOGGER

Name = TypeVar('Name')
MIN_GAIN = 1.05  # a smaller speedup over the default may be noise
_ROUNDS = 5
_MAX_STORED = 256  # measurements in a file; the oldest are removed
_KEY = 'key'  # of an entry, which is part of its checksum


def fastest(seconds: Mapping[Name, float], default: Name) -> Name:
    """Return the choice of the least time; the default, if it was measured, unless another is MIN_GAIN times as fast.

    With no times, the default.
    """
    if not seconds:
        return default
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds.get(default, math.inf) > MIN_GAIN * seconds[best] else default


def time_steps(
    names: Sequence[Name],
    step: Callable[[Name], float],
    *,
    until: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, float]:
    """Return the least of a few times that `step` returns for each name: one step to warm up, then alternately.

    No step begins after the time `until`. A name that was only warmed up until then is not in the result.
    """
    times: dict[Name, float] = {}
    for number in range(1 + _ROUNDS):
        for name in names:
            if clock() >= until:
                return times
            elapsed = step(name)
            if number:
                times[name] = min(elapsed, times.get(name, math.inf))
    return times


def milliseconds(seconds: float) -> str:
    """Return a short time for the log, such as '61.2 ms'."""
    return f'{1000 * seconds:.3g} ms' if seconds < 1 else f'{seconds:.2f} s'


def measurement_key(device: Device, *model: str) -> str:
    """Return the text under which the times of a model are stored: the model, the hardware and the library."""
    hardware = hardware_name(device.main)
    threads = f'{torch.get_num_threads()} threads' if device.main.type == 'cpu' else ''
    return ', '.join(part for part in (*model, hardware, threads, f'torch {torch.__version__}') if part)


def read_entry(path: Path, key: str) -> dict[str, Any] | None:
    """Return the JSON object stored under a key; None without one. A damaged file or entry is logged."""
    stored = _read(path)
    if key not in stored:
        return None
    entry = stored[key]
    content = unsealed({**entry, _KEY: key}) if isinstance(entry, dict) else None
    if content is None:
        log_damage(path)
    return content


def write_entry(path: Path, key: str, content: Mapping[str, Any]) -> None:
    """Store JSON values under a key, beside the newest of other keys. A failure is logged: it is measured again."""
    kept = [(name, value) for name, value in _read(path).items() if name != key][1 - _MAX_STORED :]
    entry = {name: value for name, value in sealed({_KEY: key, **content}).items() if name != _KEY}
    try:
        write_json(path, dict(kept) | {key: entry})
    except OSError as error:
        LOGGER.warning('%s: not written: %s', path, error.strerror or error)


def log_damage(path: Path) -> None:
    """Log that measurements are damaged."""
    LOGGER.info('%s: damaged; measuring again', path)


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if isinstance(content, dict):
        return content
    if path.exists():
        log_damage(path)
    return {}
