"""The choice among measured formats, the order of the measured steps, and the file of earlier measurements."""

import json
import logging
import random

import pytest
import torch

from lib.runtime import precision as module
from lib.runtime import timings
from lib.runtime.checksums import sealed
from lib.runtime.device import DTYPES, MEMORY_FORMATS, Device
from lib.runtime.log import LOGGER
from lib.runtime.precision import (
    StepFormat,
    StepTimes,
    candidates,
    read_times,
    times_text,
    write_times,
)
from lib.runtime.timings import fastest, measurement_key, time_steps

FLOAT32, BFLOAT16 = StepFormat('float32', 'channels_last'), StepFormat('bfloat16', 'channels_last')
CONTIGUOUS = StepFormat('bfloat16', 'contiguous')
CPU, CUDA = torch.device('cpu'), torch.device('cuda', 0)
TIMES = StepTimes(8, {BFLOAT16: 0.0364, FLOAT32: 0.061})


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize('default', [BFLOAT16, FLOAT32])
@pytest.mark.parametrize(
    ('bfloat16', 'float32', 'expected'),
    [
        (0.036, 0.061, BFLOAT16),
        (0.061, 0.036, FLOAT32),
        (0.100, 0.096, None),  # a gain of 4 % may be noise
        (0.096, 0.100, None),
        (0.100, 0.095, FLOAT32),
        (0.095, 0.100, BFLOAT16),
    ],
)
def test_the_fastest_wins_over_the_default_by_more_than_noise(default, bfloat16, float32, expected):
    assert fastest({BFLOAT16: bfloat16, FLOAT32: float32}, default) == (expected or default)


def test_what_was_not_measured_is_chosen_by_default_only():
    assert fastest({}, BFLOAT16) == BFLOAT16
    assert fastest({BFLOAT16: 1.0}, BFLOAT16) == BFLOAT16
    assert fastest({FLOAT32: 1.0}, BFLOAT16) == FLOAT32  # the default failed, so its slower substitute is right


@pytest.mark.parametrize(
    ('device', 'has_bfloat16', 'options', 'expected'),
    [
        (Device(CPU, (), torch.bfloat16, None), True, (), [BFLOAT16, FLOAT32]),
        (Device(CPU, (), None, None), True, (), [FLOAT32, BFLOAT16]),
        (Device(CPU, (), None, None), False, (), [FLOAT32]),
        (Device(CPU, (), torch.bfloat16, torch.bfloat16), True, ('bfloat16',), [BFLOAT16]),
        (Device(CPU, (), torch.float16, torch.float16), True, ('float16',), [StepFormat('float16', 'channels_last')]),
        (
            Device(CPU, (), None, None, torch.contiguous_format), True, ('auto', 'contiguous'),
            [StepFormat('float32', 'contiguous'), CONTIGUOUS],
        ),
        (Device(CUDA, (0,), torch.bfloat16, None), False, (), [BFLOAT16, CONTIGUOUS]),
        (Device(CUDA, (0,), torch.bfloat16, torch.bfloat16), False, ('bfloat16',), [BFLOAT16, CONTIGUOUS]),
        (
            Device(CUDA, (0,), torch.bfloat16, None, torch.contiguous_format), False, ('auto', 'contiguous'),
            [CONTIGUOUS],
        ),
    ],
)  # fmt: skip
def test_candidates(monkeypatch, device, has_bfloat16, options, expected):
    monkeypatch.setattr(module, 'has_bfloat16', lambda: has_bfloat16)
    assert candidates(device, *options) == expected


@pytest.mark.parametrize('memory_format', MEMORY_FORMATS)
@pytest.mark.parametrize('precision', DTYPES)
def test_a_format_is_that_of_the_device_it_is_applied_to(precision, memory_format):
    before = Device(CPU, (), torch.bfloat16, torch.float16)
    after = StepFormat(precision, memory_format).apply(before)
    assert StepFormat.of(after) == (precision, memory_format)
    assert (after.main, after.replicas, after.eval_dtype) == (CPU, (), torch.float16)


class Clock:
    """A clock that each step advances by a random time of its format."""

    def __init__(self, seed: int) -> None:
        self.now, self.steps = 0.0, []
        self.random = random.Random(seed)

    def step(self, name: StepFormat) -> float:
        elapsed = self.random.uniform(1, 2)
        self.now += elapsed
        self.steps.append((name, elapsed))
        return elapsed


@pytest.mark.parametrize('seconds', [0.0, 0.5, 1.5, 4.0, 7.0, 1000.0])
def test_steps_alternate_until_the_time_is_over(seconds):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    formats, clock = [BFLOAT16, FLOAT32, CONTIGUOUS], Clock(seed)
    found = time_steps(formats, clock.step, until=seconds, clock=lambda: clock.now)
    names = [name for name, _ in clock.steps]
    assert names == (formats * 6)[: len(names)]
    assert clock.now < seconds + 2
    assert len(names) == 18 or clock.now >= seconds
    warm = clock.steps[3:]  # without the first step of each
    expected = {name: min(time for other, time in warm if other == name) for name in formats if name in dict(warm)}
    assert found == expected


@pytest.mark.parametrize(
    ('formats', 'times', 'expected'),
    [
        ([BFLOAT16, FLOAT32], TIMES, 'precision: bfloat16 (36.4 ms for 8 images; float32 61 ms), measured'),
        (
            [BFLOAT16, FLOAT32], StepTimes(2, {BFLOAT16: 1.2, FLOAT32: 0.4}),
            'precision: float32 (400 ms for 2 images; bfloat16 1.20 s), measured',
        ),
        (
            [BFLOAT16, FLOAT32], StepTimes(2, {BFLOAT16: 1.2}),
            'precision: bfloat16 (1.20 s for 2 images; float32 not measured), measured',
        ),
        ([FLOAT32, BFLOAT16], StepTimes(2, {}), 'precision: float32 by default, since no step could be measured'),
        (
            [BFLOAT16, CONTIGUOUS], StepTimes(128, {BFLOAT16: 0.01, CONTIGUOUS: 0.02}),
            'memory format: channels_last (10 ms for 128 images; contiguous 20 ms), measured',
        ),
    ],
)  # fmt: skip
def test_the_log_shows_the_times(formats, times, expected):
    assert times_text(formats, times, 'measured') == expected


def test_the_key_names_everything_that_times_depend_on(monkeypatch):
    device = Device(CPU, (), None, None)
    key = measurement_key(device, 'resnet18', '112 px')
    assert key.startswith('resnet18, 112 px, ')
    assert f'{torch.get_num_threads()} threads' in key
    assert torch.__version__ in key
    monkeypatch.setattr(timings, 'hardware_name', lambda device: 'CPU Y')
    assert measurement_key(device, 'resnet18', '112 px') != key


def test_times_are_read_as_they_were_written(tmp_path, lines):
    path = tmp_path / 'log' / 'timings.json'
    assert read_times(path, 'a') is None
    write_times(path, 'a', TIMES)
    write_times(path, 'b', StepTimes(2, {CONTIGUOUS: 1.5}))
    assert read_times(path, 'a') == TIMES
    assert read_times(path, 'b') == StepTimes(2, {CONTIGUOUS: 1.5})
    assert read_times(path, 'c') is None
    write_times(path, 'a', StepTimes(4, {FLOAT32: 1.0}))
    assert read_times(path, 'a') == StepTimes(4, {FLOAT32: 1.0})
    assert lines() == []


def test_the_file_holds_the_newest_measurements(tmp_path, monkeypatch):
    monkeypatch.setattr(timings, '_MAX_STORED', 3)
    path = tmp_path / 'timings.json'
    for key in ('a', 'b', 'c', 'a', 'd'):
        write_times(path, key, TIMES)
    assert list(json.loads(path.read_text())) == ['c', 'a', 'd']


def with_checksum(entry):
    """Return an entry of the key 'a' with the checksum of its content, whatever that is."""
    return {**entry, 'crc32': sealed({'key': 'a', **entry})['crc32']} if isinstance(entry, dict) else entry


@pytest.mark.parametrize(
    'content',
    [
        b'', b'{', b'[]', b'3', b'\xff\x00', b'[' * 100_000,
        json.dumps({'a': {'images': 8, 'seconds': {'float32 contiguous': 1.0}}}).encode(),
        *(
            json.dumps({'a': with_checksum(entry)}).encode()
            for entry in (
                None, [], {}, {'images': 8}, {'images': 8, 'seconds': 3}, {'seconds': {'float32 channels_last': 1.0}},
                {'images': '8', 'seconds': {'float32 channels_last': 1.0}},
                *(
                    {'images': 8, 'seconds': {name: 1.0}}
                    for name in ('float32', 'float64 channels_last', 'float32 channels_first', 'float32 contiguous x')
                ),
                *({'images': 8, 'seconds': {'float32 contiguous': time}} for time in ('1', None, 0, -1.0)),
                {'images': 8, 'seconds': {'float32 contiguous': float('nan')}},
            )
        ),
    ],
)  # fmt: skip
def test_a_damaged_file_is_measured_again(tmp_path, lines, content):
    path = tmp_path / 'timings.json'
    path.write_bytes(content)
    assert read_times(path, 'a') is None
    assert lines() == [f'{path}: damaged; measuring again']
    write_times(path, 'a', TIMES)
    assert read_times(path, 'a') == TIMES


def test_a_file_that_cannot_be_written_is_logged(tmp_path, lines):
    path = tmp_path / 'file' / 'timings.json'
    path.parent.write_bytes(b'')
    write_times(path, 'a', TIMES)
    [line] = lines()
    assert line.startswith(f'{path}: not written: ')
