"""Precision and memory format of training by the measured time of a step; measurements are stored in a JSON file."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from lib.runtime.checksums import sealed, unsealed
from lib.runtime.device import DTYPES, MEMORY_FORMATS, Device, hardware_name, has_bfloat16
from lib.runtime.files import read_json, write_json
from lib.runtime.log import LOGGER

MIN_GAIN = 1.05  # a smaller speedup over the default may be noise
_ROUNDS = 5
_MAX_STORED = 256  # measurements in a file; the oldest are removed
_KEY = 'key'  # of an entry, which is part of its checksum


class StepFormat(NamedTuple):
    """How training steps are computed: a key of DTYPES, and a key of MEMORY_FORMATS."""

    precision: str
    memory_format: str

    @classmethod
    def of(cls, device: Device) -> 'StepFormat':
        """Return the format of training on `device`."""
        precision = next(name for name, dtype in DTYPES.items() if dtype == device.train_dtype)
        memory_format = next(name for name, value in MEMORY_FORMATS.items() if value == device.memory_format)
        return cls(precision, memory_format)

    def apply(self, device: Device) -> Device:
        """Return `device` with this format of training. Evaluation keeps its precision."""
        return replace(device, train_dtype=DTYPES[self.precision], memory_format=MEMORY_FORMATS[self.memory_format])


class StepTimes(NamedTuple):
    """Measured steps: number of images, and seconds per step of each format that was measured."""

    num_images: int
    seconds: dict[StepFormat, float]


def candidates(device: Device, precision: str = 'auto', memory_format: str = 'auto') -> list[StepFormat]:
    """Return the formats among which the faster one may depend on the model; the first is the default.

    On CPUs, the precision: bfloat16 is slower than float32 for depthwise convolutions, also where the hardware computes
    it. On GPUs, the memory format.

    Args:
        device: of `pick_device`, which applies the options.
        precision, memory_format: the options.
    """
    default = StepFormat.of(device)
    if device.main.type != 'cpu':
        names = [default.memory_format] if memory_format != 'auto' else ['channels_last', 'contiguous']
        return [StepFormat(default.precision, name) for name in names]
    precisions = [default.precision]
    if precision == 'auto' and has_bfloat16():
        precisions += [name for name in ('float32', 'bfloat16') if name != default.precision]
    return [StepFormat(name, default.memory_format) for name in precisions]


def fastest(seconds: Mapping[StepFormat, float], default: StepFormat) -> StepFormat:
    """Return the format of the least time; the default, if it was measured, unless another is MIN_GAIN times as fast.

    With no times, the default.
    """
    if not seconds:
        return default
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds.get(default, math.inf) > MIN_GAIN * seconds[best] else default


def time_steps(
    formats: Sequence[StepFormat],
    step: Callable[[StepFormat], float],
    *,
    until: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[StepFormat, float]:
    """Return the least of a few times that `step` returns for each format: one step to warm up, then alternately.

    No step begins after the time `until`. A format that was only warmed up until then is not in the result.
    """
    times: dict[StepFormat, float] = {}
    for number in range(1 + _ROUNDS):
        for name in formats:
            if clock() >= until:
                return times
            elapsed = step(name)
            if number:
                times[name] = min(elapsed, times.get(name, math.inf))
    return times


def times_text(formats: Sequence[StepFormat], times: StepTimes, origin: str) -> str:
    """Return the choice among `formats` for the log, such as 'precision: float32 (61 ms for 8 images; bfloat16 75 ms)'.

    Args:
        formats: that were compared, the default first.
        origin: where the times are from, such as 'measured'.
    """
    column = 0 if len({name.precision for name in formats}) > 1 else 1
    label = ('precision', 'memory format')[column]
    chosen = fastest(times.seconds, formats[0])
    if chosen not in times.seconds:
        return f'{label}: {chosen[column]} by default, since no step could be measured'
    others = [
        f'; {name[column]} ' + (_milliseconds(times.seconds[name]) if name in times.seconds else 'not measured')
        for name in formats
        if name != chosen
    ]
    images = f'{_milliseconds(times.seconds[chosen])} for {times.num_images} images'
    return f'{label}: {chosen[column]} ({images}{"".join(others)}), {origin}'


def _milliseconds(seconds: float) -> str:
    return f'{1000 * seconds:.3g} ms' if seconds < 1 else f'{seconds:.2f} s'


def measurement_key(device: Device, *model: str) -> str:
    """Return the text under which the times of a model are stored: the model, the hardware and the library."""
    hardware = hardware_name(device.main)
    threads = f'{torch.get_num_threads()} threads' if device.main.type == 'cpu' else ''
    return ', '.join(part for part in (*model, hardware, threads, f'torch {torch.__version__}') if part)


def read_times(path: Path, key: str) -> StepTimes | None:
    """Return stored times; None if there are none. A damaged file is logged."""
    stored = _read(path)
    if key not in stored:
        return None
    times = _times_of(key, stored[key])
    if times is None:
        LOGGER.info('%s: damaged; measuring again', path)
    return times


def write_times(path: Path, key: str, times: StepTimes) -> None:
    """Store times, beside the newest of other keys. A failure is logged: the times are measured again next time."""
    stored = {name: value for name, value in _read(path).items() if name != key}
    kept = list(stored.items())[1 - _MAX_STORED :]
    content = {'images': times.num_images, 'seconds': {' '.join(name): value for name, value in times.seconds.items()}}
    content = {name: value for name, value in sealed({_KEY: key, **content}).items() if name != _KEY}
    try:
        write_json(path, dict(kept) | {key: content})
    except OSError as error:
        LOGGER.warning('%s: not written: %s', path, error.strerror or error)


def _read(path: Path) -> dict[str, object]:
    content = read_json(path)
    if isinstance(content, dict):
        return content
    if path.exists():
        LOGGER.info('%s: damaged; measuring again', path)
    return {}


def _times_of(key: str, entry: object) -> StepTimes | None:
    """Return the times of an entry of the file; None if it has another checksum or form."""
    value = unsealed({**entry, _KEY: key}) if isinstance(entry, dict) else None
    if value is None or not isinstance(value.get('seconds'), dict):
        return None
    num_images, times = value.get('images'), {}
    for text, number in value['seconds'].items():
        name = StepFormat(*text.split(' ')) if text.count(' ') == 1 else None
        is_number = isinstance(number, float | int) and math.isfinite(number) and number > 0
        if name is None or name.precision not in DTYPES or name.memory_format not in MEMORY_FORMATS or not is_number:
            return None
        times[name] = float(number)
    return StepTimes(num_images, times) if isinstance(num_images, int) else None
