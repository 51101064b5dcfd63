"""The record of training images: margins against a loop over logits, and counts against a loop over what was seen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.loss.sharded_logits import ClassSubset, ShardedLogits
from lib.trainer.mixing.base import MixedBatch
from lib.trainer.samples import SampleRecord, margins_of, read_samples
from tests.ranks import run_ranks
from tests.trainer.steps import NUM_CLASSES, Setup, batch_of, step_of

NUM_IMAGES = 40


def slow_margin(logits, label):
    return logits[label] - max(logit for number, logit in enumerate(logits) if number != label)


def slow_record(seen):
    """Return aum, num_seen, num_forgotten and is_learned of (row, margin, is correct), in the order of the run."""
    of_row = {}
    for row, margin, correct in seen:
        of_row.setdefault(row, []).append((margin, correct))
    aum, num_seen, num_forgotten = np.full(NUM_IMAGES, np.nan), np.zeros(NUM_IMAGES, int), np.zeros(NUM_IMAGES, int)
    is_learned = np.zeros(NUM_IMAGES, bool)
    for row, times in of_row.items():
        aum[row], num_seen[row] = sum(margin for margin, _ in times) / len(times), len(times)
        num_forgotten[row] = sum(times[i][1] and not times[i + 1][1] for i in range(len(times) - 1))
        is_learned[row] = any(correct for _, correct in times)
    return aum, num_seen, num_forgotten, is_learned


def check_samples(samples, expected):
    aum, num_seen, num_forgotten, is_learned = expected
    np.testing.assert_allclose(samples.aum, aum, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(samples.num_seen, num_seen)
    np.testing.assert_array_equal(samples.num_forgotten, num_forgotten)
    np.testing.assert_array_equal(samples.is_learned, is_learned)


@pytest.mark.parametrize('num_classes', [2, 3, 11])
def test_margins(num_classes):
    random = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(50, num_classes, generator=random).round(decimals=1)  # some are equal
    labels = torch.randint(num_classes, (50,), generator=random)
    expected = [slow_margin(row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    before = logits.clone()
    np.testing.assert_allclose(margins_of(logits, labels).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(
        margins_of(ShardedLogits(logits, ClassSubset(range(num_classes), num_classes)), labels), expected, atol=1e-6
    )
    assert torch.equal(logits, before)


def test_a_single_class_has_no_other():
    assert margins_of(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)).tolist() == [math.inf, math.inf]


def test_counts_of_images(tmp_path, random_seed):
    """Images repeat within a batch and an epoch; flushes, undecodable images and a resumed run are anywhere."""
    random = np.random.default_rng(random_seed)
    record, seen = SampleRecord(NUM_IMAGES, 'digest'), []
    for _ in range(60):
        rows = random.integers(0, NUM_IMAGES - 3, 9)  # the last 3 are never seen
        margins, correct = random.normal(size=9).astype(np.float32), random.random(9) < 0.5
        bad = [(int(row), 'no image') for row in random.choice(rows, 2)] if random.random() < 0.2 else []
        record.add(torch.from_numpy(rows), bad, torch.from_numpy(margins), torch.from_numpy(correct))
        unread = {row for row, _ in bad}
        seen += [one for one in zip(rows.tolist(), margins.tolist(), correct.tolist(), strict=True)
                 if one[0] not in unread]  # fmt: skip
        if random.random() < 0.3:
            record.flush()
        if random.random() < 0.1:
            record.flush()
            saved = {name: tensor.clone() for name, tensor in record.state_dict().items()}
            record.add(torch.from_numpy(rows), [], torch.from_numpy(margins), torch.from_numpy(correct))  # lost
            record.flush()
            record = SampleRecord(NUM_IMAGES, 'digest')
            record.load_state_dict(saved, tmp_path)
    record.flush()
    record.write(tmp_path)
    check_samples(read_samples(tmp_path, NUM_IMAGES, 'digest'), slow_record(seen))
    assert read_samples(tmp_path, NUM_IMAGES, 'of another split') is None
    assert read_samples(tmp_path / 'none', NUM_IMAGES, 'digest') is None
    record.write(tmp_path)  # again, as at the end of the next epoch
    assert read_samples(tmp_path, NUM_IMAGES, 'digest') is not None


@pytest.fixture
def random_seed():
    number = int(np.random.SeedSequence().entropy % 10**6)
    print(f'seed {number}')
    return number


@pytest.mark.parametrize(
    'spoil',
    [
        lambda state: state | {'num_seen': torch.zeros(3, dtype=torch.int32)},
        lambda state: state | {'num_seen': 7},
        lambda state: state | {'margin_sum': torch.full((NUM_IMAGES,), math.nan, dtype=torch.float64)},
        lambda state: state | {'was_correct': torch.zeros(NUM_IMAGES)},
        lambda state: {},
        lambda state: [],
    ],
)
def test_a_damaged_record(spoil, tmp_path):
    record = SampleRecord(NUM_IMAGES, 'digest')
    with pytest.raises(UserError, match=r'record of the training images is damaged .*TRACK_SAMPLES False'):
        record.load_state_dict(spoil(dict(record.state_dict())), tmp_path)


SETUPS = {
    'whole': Setup(margins=True, loss='ldam', dtype=torch.float32),
    'micro-batches': Setup(margins=True, loss='ldam', batch_size=16, max_images=4, dtype=torch.float32),
    'chunked': Setup(margins=True, loss='ldam', head='chunked', batch_size=10, max_images=6, dtype=torch.float32),
    'sharded': Setup(margins=True, loss='ldam', head='sharded', batch_size=14, dtype=torch.float32),
}


def rows_of(setup, step):
    return torch.from_numpy(np.random.default_rng(step).integers(0, NUM_IMAGES, setup.batch_size))


def samples_of(setup, folder, group=SINGLE_PROCESS):
    """Train some steps on this rank's part of the batches, and write the record."""
    step, record = step_of(setup, group), SampleRecord(NUM_IMAGES, 'digest', group)
    shard = group.shard_pairs(setup.batch_size)
    for number in range(12):
        whole = batch_of(setup, number)
        result = step(MixedBatch(whole.images[shard], whole.targets.select(shard)), number)
        record.add(rows_of(setup, number)[shard], [], result.margins, result.correct)
        if number % 5 == 4:
            record.flush()
    record.flush()
    if group.is_main:
        record.write(folder)


def slow_samples_of(setup):
    """Compute the same from the logits of every step, with a loop over images."""
    step, seen = step_of(replace(setup, head='whole', max_images=0)), []
    for number in range(12):
        batch = batch_of(setup, number)
        with torch.no_grad():
            logits = step.state.model(batch.images)
        assert logits.shape == (setup.batch_size, NUM_CLASSES)
        for row, values, label in zip(
            rows_of(setup, number).tolist(), logits.tolist(), batch.targets.labels.tolist(), strict=True
        ):
            seen.append((row, slow_margin(values, label), max(values) == values[label]))
        step(batch, number)
    return slow_record(seen)


@pytest.mark.parametrize('name', [name for name in SETUPS if name != 'sharded'])
def test_a_run(name, tmp_path):
    samples_of(SETUPS[name], tmp_path)
    samples = read_samples(tmp_path, NUM_IMAGES, 'digest')
    check_samples(samples, slow_samples_of(SETUPS[name]))
    assert samples.num_forgotten.any()


def samples_of_a_rank(rank, count, folder):
    """Run in each process."""
    for name, setup in SETUPS.items():
        samples_of(setup, folder / name, ProcessGroup(rank, count))


@pytest.mark.process
@pytest.mark.parametrize('count', [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_record_what_one_process_records(tmp_path, count):
    for name in SETUPS:
        (tmp_path / name).mkdir()
    run_ranks(samples_of_a_rank, count, tmp_path, tmp_path)
    for name, setup in SETUPS.items():
        check_samples(read_samples(tmp_path / name, NUM_IMAGES, 'digest'), slow_samples_of(setup))
