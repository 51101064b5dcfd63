"""Samplers of pairs and of repeated rows, and the switch between samplers: rows, distributions, random streams."""

import numpy as np
import pytest
from scipy import stats

from lib.builders.sampler import SAMPLERS, build_sampler
from lib.config.load import load_config
from lib.dataset.index import ClassIndex
from lib.dataset.sampler import PairedSampler, RepeatedSampler, Sampler, SwitchingSampler, instance_balance

COUNTS = np.array([400, 100, 0, 25, 4, 1, 0])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS)).astype(np.int32)
INDEX = ClassIndex(LABELS, len(COUNTS))
SEEN = COUNTS > 0


def built(**options):
    options = {'SAMPLER_TYPE': 'instance_balance', 'SAMPLER_SWITCH_TYPE': '', 'SAMPLER_SWITCH_EPOCH': 0, **options}
    argv = [word for name, value in options.items() for word in (f'--{name}', str(value))]
    loaded = load_config(argv, program='main.py', description='', find_checkpoint_config=lambda *_: None)
    return build_sampler(loaded.cfg, INDEX)


def assert_classes_follow(name: str, rows_by_epoch: dict[int, np.ndarray], max_epoch: int) -> None:
    """Chi-square of the classes drawn in some epochs against the sampler's weights."""
    drawn = np.bincount(LABELS[np.concatenate(list(rows_by_epoch.values()))], minlength=7)
    expected = np.zeros(7)
    for epoch, rows in rows_by_epoch.items():
        weights = SAMPLERS[name](COUNTS, epoch / (max_epoch - 1))
        expected += weights / weights.sum() * len(rows)
    assert (drawn[~SEEN] == 0).all()
    if name == 'instance_balance':
        assert np.array_equal(drawn, len(rows_by_epoch) * COUNTS)
        return
    assert stats.chisquare(drawn[SEEN], expected[SEEN]).pvalue > 1e-4, (name, drawn, expected)


class Rows:
    """A sampler with fixed rows."""

    def __init__(self, *rows):
        self.rows = np.array(rows)

    def epoch_rows(self, epoch):
        return self.rows + 100 * epoch


def test_pairs_are_adjacent():
    rows = PairedSampler(Rows(1, 2, 3), Rows(7, 8, 9)).epoch_rows(2)
    assert rows.tolist() == [201, 207, 202, 208, 203, 209]
    assert rows.dtype == np.int64


@pytest.mark.parametrize(
    ('times', 'expected'), [(1, [105, 106]), (2, [105, 105, 106, 106]), (3, [105] * 3 + [106] * 3)]
)
def test_repeated_rows_are_adjacent(times, expected):
    rows = RepeatedSampler(Rows(5, 6), times).epoch_rows(1)
    assert rows.tolist() == expected
    assert rows.dtype == np.int64


@pytest.mark.parametrize('mix', ['cmo', 'bbn'])
@pytest.mark.parametrize('name', SAMPLERS)
def test_even_slots_come_from_the_main_sampler_and_odd_ones_from_the_pair_sampler(name, mix):
    sampler = built(MIX_TYPE=mix, SAMPLER_PAIR_TYPE=name, TRAIN_MAX_EPOCH=61)
    main = built(TRAIN_MAX_EPOCH=61)
    odd = {}
    for epoch in range(20, 50):
        rows = sampler.epoch_rows(epoch)
        assert rows.shape == (2 * len(INDEX),)
        assert np.array_equal(rows[::2], main.epoch_rows(epoch))
        odd[epoch] = rows[1::2]
    assert_classes_follow(name, odd, 61)


@pytest.mark.parametrize('name', SAMPLERS)
def test_two_samplers_of_one_type_draw_independently(name):
    sampler = built(MIX_TYPE='cmo', SAMPLER_TYPE=name, SAMPLER_PAIR_TYPE=name)
    rows = np.concatenate([sampler.epoch_rows(epoch) for epoch in range(20)]).reshape(-1, 2)
    assert not np.array_equal(rows[:, 0], rows[:, 1])
    table = stats.contingency.crosstab(*LABELS[rows].T).count
    table = table[table.sum(axis=1) > 300][:, table.sum(axis=0) > 300]
    assert min(table.shape) >= 2
    assert stats.chi2_contingency(table).pvalue > 1e-4, (name, table)


@pytest.mark.parametrize('name', SAMPLERS)
def test_streams_differ_and_stream_0_is_the_default(name):
    def rows_of(seed, stream, epoch):
        return Sampler(SAMPLERS[name], INDEX, seed, 10, stream=stream).epoch_rows(epoch).tolist()

    assert rows_of(3, 0, 1) == Sampler(SAMPLERS[name], INDEX, 3, 10).epoch_rows(1).tolist()
    assert rows_of(3, 1, 1) == rows_of(3, 1, 1)
    others = [rows_of(3, 0, 1), rows_of(3, 2, 1), rows_of(3, 1, 2), rows_of(4, 1, 1)]
    assert rows_of(3, 1, 1) not in others


def test_a_paired_sampler_is_a_pure_function_of_seed_and_epoch():
    def rows_of(seed, epoch):
        return built(MIX_TYPE='cmo', SEED=seed).epoch_rows(epoch).tolist()

    assert rows_of(1, 3) == rows_of(1, 3)
    assert rows_of(1, 3) != rows_of(1, 4)
    assert rows_of(1, 3) != rows_of(2, 3)


def test_two_views_per_image():
    rows = built(LOSS_AUXILIARY='balanced_contrastive').epoch_rows(3)
    once = built().epoch_rows(3)
    assert np.array_equal(rows[::2], once)
    assert np.array_equal(rows[1::2], once)


@pytest.mark.parametrize(
    ('max_epoch', 'switch_epoch', 'expected'), [(50, -1, 40), (200, -1, 160), (5, -1, 4), (50, 7, 7)]
)
def test_the_epoch_of_the_switch(max_epoch, switch_epoch, expected):
    sampler = built(SAMPLER_SWITCH_TYPE='class_balance', SAMPLER_SWITCH_EPOCH=switch_epoch, TRAIN_MAX_EPOCH=max_epoch)
    assert isinstance(sampler, SwitchingSampler)
    assert sampler.switch_epoch == expected


@pytest.mark.parametrize('name', SAMPLERS)
def test_deferred_resampling_before_and_after(name):
    """Deferred re-sampling: instance balance for four fifths of the run, then any sampler."""
    sampler = built(SAMPLER_SWITCH_TYPE=name, SAMPLER_SWITCH_EPOCH=-1, TRAIN_MAX_EPOCH=50)
    for epoch in (0, 20, 39):
        assert np.bincount(LABELS[sampler.epoch_rows(epoch)], minlength=7).tolist() == COUNTS.tolist()
    assert_classes_follow(name, {epoch: sampler.epoch_rows(epoch) for epoch in range(40, 50)}, 50)


@pytest.mark.parametrize('name', SAMPLERS)
def test_deferred_from_any_sampler(name):
    sampler = built(
        SAMPLER_TYPE=name, SAMPLER_SWITCH_TYPE='instance_balance', SAMPLER_SWITCH_EPOCH=30, TRAIN_MAX_EPOCH=50
    )
    assert_classes_follow(name, {epoch: sampler.epoch_rows(epoch) for epoch in range(30)}, 50)
    assert np.array_equal(sampler.epoch_rows(30), Sampler(instance_balance, INDEX, 0, 50).epoch_rows(30))


def test_the_main_sampler_of_a_pair_switches():
    sampler = built(
        MIX_TYPE='bbn', SAMPLER_SWITCH_TYPE='class_balance', SAMPLER_SWITCH_EPOCH=3, SAMPLER_PAIR_TYPE='reverse'
    )
    alone = built(SAMPLER_SWITCH_TYPE='class_balance', SAMPLER_SWITCH_EPOCH=3)
    for epoch in (2, 3):
        assert np.array_equal(sampler.epoch_rows(epoch)[::2], alone.epoch_rows(epoch))
