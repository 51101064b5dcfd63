"""The table of epochs, the remaining time of a run, and the points within an epoch."""

import logging
import random
from types import SimpleNamespace

import pytest
import torch

from lib.runtime.log import LOGGER, duration_text
from lib.trainer.checkpointing.state import TrainProgress
from lib.trainer.epoch import train_epoch
from lib.trainer.mixing.base import unmixed
from lib.trainer.run_log import RunLength, RunLog
from lib.trainer.stop_signal import StopController
from tests.trainer.steps import Setup, step_of
from tests.trainer.test_no_sync import SyncRecorder


class Events:
    """Records the points for TensorBoard."""

    def __init__(self):
        self.points = []

    def add(self, step, group, values):
        self.points.append((step, group, values))


@pytest.fixture
def lines(monkeypatch, caplog):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda: [record.getMessage() for record in caplog.records]


def simulated(length, epoch, step, per_step, per_validation):
    """Walk through the rest of a run."""
    seconds = 0.0
    for number in range(epoch + 1, length.max_epoch + 1):
        for _ in range(step if number == epoch + 1 else 0, length.steps_per_epoch):
            seconds += per_step
        if length.num_valid and (number % length.valid_every_epochs == 0 or number == length.max_epoch):
            seconds += per_validation
    return seconds + (per_validation if length.num_valid else 0)  # the report validates once more


def test_the_remaining_time_is_that_of_a_simulation():
    seed = random.randrange(1 << 30)
    print('seed', seed)
    draw = random.Random(seed)
    for _ in range(200):
        length = RunLength(
            draw.randint(1, 12), draw.randint(1, 9), draw.randint(1, 5), draw.randint(1, 8), draw.choice([0, 7])
        )
        per_step, per_validation = draw.uniform(0.1, 2), draw.uniform(0.1, 2)
        epoch = draw.randrange(length.max_epoch)
        step = draw.randint(1, length.steps_per_epoch)
        length.add_steps(TrainProgress(epoch, step, seconds=per_step * step))
        first = length.num_valid / length.images_per_step * per_step  # a validation that is not measured yet
        assert length.seconds_left(epoch, step) == pytest.approx(simulated(length, epoch, step, per_step, first))
        length.add_validation(per_validation)
        expected = simulated(length, epoch, step, per_step, per_validation)
        assert length.seconds_left(epoch, step) == pytest.approx(expected)


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0, '0 s'),
        (89.4, '89 s'),
        (90, '2 min'),
        (5399, '90 min'),
        (5400, '1.5 h'),
        (172799, '48.0 h'),
        (2e5, '2.3 days'),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_the_table_is_aligned_and_fits_in_80_columns(lines):
    log = RunLog(RunLength(1000, 5, num_valid=8), None)
    train = {'loss': 12.34567, 'lr': 2.0123e-07, 'images_per_second': 123456.7}
    valid = {'mean_class_error': 1.0, 'top1': 0.0, 'seconds': 9e3}
    log.log_epoch(1, train, valid, is_best=True)
    log.log_epoch(2, train | {'loss': 0.0001, 'lr': 0.5, 'images_per_second': 9.87}, {}, is_best=False)
    log.log_epoch(1000, train, valid | {'top1': 1.0, 'mean_class_error': 0.0}, is_best=True)
    header, first, second, last = lines()
    assert max(map(len, lines())) <= 80
    titles = ('epoch', ' lr', 'train loss', 'images/s', 'mean class error', 'top-1', 'time left')
    ends = [header.index(title) + len(title) for title in titles]
    for line in (first, last):
        assert all(line[end - 1] != ' ' and (line + ' ')[end] == ' ' for end in ends), line
    assert first.split() == ['1/1000', '2e-07', '12.346', '123457', '100.0%', '0.0%', '104.2', 'days', 'best']
    assert second.split()[:6] == ['2/1000', '0.5', '0.000', '9.9', '-', '-']
    assert last.split() == ['1000/1000', '2e-07', '12.346', '123457', '0.0%', '100.0%', '-', 'best']


def fake_loader(num_steps, batch):
    images, labels = batch
    result = SimpleNamespace(images=images, labels=labels, weights=None, bad=[])
    return SimpleNamespace(
        steps_per_epoch=num_steps,
        batch_size=len(images),
        batches=lambda epoch, start: (result for _ in range(start, num_steps)),
        first_slot=lambda step: step * len(images),
    )


def test_points_within_an_epoch_are_means_since_the_last_one(lines):
    """They cost no synchronization beyond that of the log step, and a resumed epoch begins with its own sums."""
    torch.manual_seed(0)
    setup = Setup(dtype=torch.float32)
    batch = torch.rand(12, 3, 2, 2), torch.arange(12) % 7
    loader = fake_loader(7, batch)

    def epoch(step, **options):
        events = Events()
        log = RunLog(RunLength(2, 7), events)
        with SyncRecorder() as recorder:
            train_epoch(
                step,
                loader,
                unmixed,
                stop=StopController(),
                save=lambda: None,
                on_bad_images=lambda bad: None,
                log=log,
                **options,
            )
        return events.points, recorder.names

    single, _ = epoch(step_of(setup), log_every_steps=1)
    step = step_of(setup)
    points, syncs = epoch(step, log_every_steps=3)
    assert [(number, group) for number, group, _ in points] == [(3, 'step'), (6, 'step'), (7, 'step')]
    assert len(syncs) == 3 * 2  # the sums of loss and correct predictions
    losses = [values['loss'] for *_, values in single]
    for (_, _, values), rows in zip(points, (slice(0, 3), slice(3, 6), slice(6, 7)), strict=True):
        assert values['loss'] == pytest.approx(sum(losses[rows]) / len(losses[rows]))
        assert set(values) == {'loss', 'top1', 'lr', 'images_per_second'}
    assert [line.split(', ')[:2] for line in lines()[-2:]] == [
        ['epoch 1', f'step {number} of 7: loss {sum(losses[:number]) / number:.3f}'] for number in (3, 6)
    ]
    # Resumed after two steps, with their sums.
    again = step_of(setup)
    again.state.progress = TrainProgress(0, 2, 2 * 12 * 100.0, 0, 2 * 12, 5.0)
    points, _ = epoch(again, log_every_steps=4)
    assert [number for number, *_ in points] == [4, 7]
    assert points[0][2]['loss'] < 50
