"""Findings about labels: kinds, thresholds by class size and noise rates, and a comparison with confident learning."""

import random
from dataclasses import replace

import numpy as np
import pytest

from lib.posthoc.label_errors import CANNOT_TELL, KINDS, MISLABELED, OUT_OF_CATALOG, error_thresholds, find_label_errors
from tests.oracles.label_errors import candidates_of, confident_learning, noisy_classes


@pytest.fixture
def seed() -> int:
    number = random.randrange(10**6)
    print(f'seed {number}')
    return number


def f1_of(found: np.ndarray, wrong: np.ndarray) -> float:
    return 2 * (found & wrong).sum() / (found.sum() + wrong.sum())


@pytest.mark.parametrize('smallest', [5, 60])
def test_better_than_confident_learning(seed, smallest):
    rng = np.random.default_rng(seed)
    sizes = np.round(np.geomspace(60, smallest, 40)).astype(int)
    logits, labels, true = noisy_classes(rng, sizes, 0.2, sharpness=4)
    found = find_label_errors(candidates_of(logits, labels, 10)).kind == MISLABELED
    wrong = labels != true
    assert f1_of(found, wrong) > 1.05 * f1_of(confident_learning(logits, labels), wrong)


def test_small_classes_are_not_flagged_as_a_whole(seed):
    rng = np.random.default_rng(seed)
    sizes = np.r_[np.full(40, 100), np.full(200, 8)]
    logits, labels, true = noisy_classes(rng, sizes, 0.2, sharpness=4)
    flagged = find_label_errors(candidates_of(logits, labels, 10)).kind == MISLABELED
    right, is_small = labels == true, sizes[labels] == 8
    assert flagged[right & is_small].mean() < 0.05
    assert flagged[~right].mean() > 0.5


def test_no_noise_is_found_where_there_is_none(seed):
    logits, labels, _ = noisy_classes(np.random.default_rng(seed), np.full(30, 40), 0.0)
    findings = find_label_errors(candidates_of(logits, labels, 10))
    assert (findings.kind == MISLABELED).mean() < 0.01
    assert findings.noise.overall < 0.05


def test_rates_per_class(seed):
    rng = np.random.default_rng(seed)
    sizes = np.full(12, 80)
    logits, labels, true = noisy_classes(rng, sizes, 0.05, sharpness=8)
    noisy = np.flatnonzero((true == 3) & (rng.random(len(true)) < 0.6))
    labels[noisy] = 5
    noise = find_label_errors(candidates_of(logits, labels, 8)).noise
    fraction = np.array([(true[labels == label] != label).mean() for label in range(12)])
    assert int(np.argmax(noise.rate)) == 5
    assert ((noise.low <= noise.rate) & (noise.rate <= noise.high)).all()
    assert (np.abs(noise.rate - fraction) < 0.15).all()
    assert noise.overall_low <= noise.overall <= noise.overall_high
    assert noise.overall == pytest.approx((labels != true).mean(), abs=0.03)


def test_kinds():
    rng = np.random.default_rng(0)
    logits, labels, true = noisy_classes(rng, np.r_[np.full(9, 50), 2, 0], 0.0)
    labels[:8], labels[-2:] = 3, 9
    candidates = candidates_of(logits, labels, 6)
    strangers = np.zeros(len(labels), bool)
    strangers[[20, 21]] = True
    findings = find_label_errors(candidates, out_of_catalog=strangers)
    assert KINDS[MISLABELED] == 'mislabeled'
    assert (findings.kind[:8] == MISLABELED).all()
    assert (findings.proposal[:8] == true[:8]).all()
    assert (findings.kind[strangers] == OUT_OF_CATALOG).all()
    assert (findings.kind[-2:] == CANNOT_TELL).all()
    assert np.isnan(findings.error[-2:]).all()
    assert np.isnan(findings.noise.rate[9:]).all()
    assert (findings.proposal[-2:] == -1).all()
    without = find_label_errors(replace(candidates, log_sum=np.full(len(labels), np.nan, np.float32)))
    assert (without.kind == CANNOT_TELL).all()
    assert without.noise.overall == 0


def test_thresholds_bound_the_expected_false_positives(seed):
    rng = np.random.default_rng(seed)
    error = rng.beta(0.2, 0.8, 3000).astype(np.float32)
    error[:5] = np.nan
    sizes = rng.choice([4, 8, 15, 30, 70, 3000], len(error))
    thresholds = error_thresholds(error, sizes)
    usual = error > 0.6
    correct = np.nan_to_num(1 - error)
    allowed = max(0.005, correct[usual].sum() / correct.sum())
    for size in np.unique(sizes):
        rows = sizes == size
        (threshold,) = np.unique(thresholds[rows])
        assert 0.25 <= threshold <= 0.99
        flagged = rows & (error > threshold)
        expected = correct[flagged].sum() * (1 + 400 / size**2) / correct[rows].sum()
        assert expected <= allowed + 1e-6 or threshold == np.float32(0.99)
    assert thresholds[sizes == 4].min() > thresholds[sizes == 3000].max()
    assert not len(error_thresholds(np.zeros(0, np.float32), np.zeros(0, np.int64)))
