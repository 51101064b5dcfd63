"""Precision and memory format of training by the measured time of a step; measurements are stored in a JSON file."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lib.runtime.device import DTYPES, MEMORY_FORMATS, Device, has_bfloat16
from lib.runtime.timings import fastest, log_damage, milliseconds, read_entry, write_entry


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
        device: result of `pick_device`, which applies the options.
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


def times_text(formats: Sequence[StepFormat], times: StepTimes, origin: str) -> str:
    """Return the choice among `formats` for the log, such as 'precision: float32 (61 ms for 8 images; bfloat16 75 ms)'.

    Args:
        formats: the compared formats, the default first.
        origin: where the times are from, such as 'measured'.
    """
    column = 0 if len({name.precision for name in formats}) > 1 else 1
    label = ('precision', 'memory format')[column]
    chosen = fastest(times.seconds, formats[0])
    if chosen not in times.seconds:
        return f'{label}: {chosen[column]} by default, since no step could be measured'
    others = [
        f'; {name[column]} ' + (milliseconds(times.seconds[name]) if name in times.seconds else 'not measured')
        for name in formats
        if name != chosen
    ]
    images = f'{milliseconds(times.seconds[chosen])} for {times.num_images} images'
    return f'{label}: {chosen[column]} ({images}{"".join(others)}), {origin}'


def read_times(path: Path, key: str) -> StepTimes | None:
    """Return stored times; None if there are none. Damaged ones are logged."""
    stored = read_entry(path, key)
    times = None if stored is None else _times_of(stored)
    if stored is not None and times is None:
        log_damage(path)
    return times


def write_times(path: Path, key: str, times: StepTimes) -> None:
    """Store times, see `write_entry`."""
    seconds = {' '.join(name): value for name, value in times.seconds.items()}
    write_entry(path, key, {'images': times.num_images, 'seconds': seconds})


def _times_of(value: dict[str, Any]) -> StepTimes | None:
    """Return the times of an entry of the file; None if it has another form."""
    if not isinstance(value.get('seconds'), dict):
        return None
    num_images, times = value.get('images'), {}
    for text, number in value['seconds'].items():
        name = StepFormat(*text.split(' ')) if text.count(' ') == 1 else None
        is_number = isinstance(number, float | int) and math.isfinite(number) and number > 0
        if name is None or name.precision not in DTYPES or name.memory_format not in MEMORY_FORMATS or not is_number:
            return None
        times[name] = float(number)
    return StepTimes(num_images, times) if isinstance(num_images, int) else None
