"""Findings about labels: kinds, thresholds by class size and noise rates, and a comparison with confident learning."""

import random
from dataclasses import replace

import numpy as np
import pytest

from lib.posthoc.label_errors import (
    CANNOT_TELL,
    KINDS,
    MISLABELED,
    OUT_OF_CATALOG,
    calibrated_error,
    error_given_margins,
    error_thresholds,
    find_label_errors,
)  # fmt: skip
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
    thresholds, twice = error_thresholds(error, sizes), error_thresholds(error, sizes, 2.0)
    correct = np.nan_to_num(1 - error)
    odds = np.nansum(error) / correct.sum()
    for size in np.unique(sizes):
        rows = sizes == size
        for factor, given in ((1, thresholds), (2, twice)):
            (threshold,) = np.unique(given[rows])
            flagged = rows & (error > threshold)
            expected = correct[flagged].sum() / correct[rows].sum()
            assert expected <= factor * min(0.02, 0.06 * odds) + 1e-6
            one_more = np.max(error[rows & ~flagged & ~np.isnan(error)])
            assert threshold == pytest.approx(one_more)
    assert (twice < thresholds).all()
    assert not len(error_thresholds(np.zeros(0, np.float32), np.zeros(0, np.int64)))


def test_thresholds_follow_the_noise():
    error = np.r_[np.full(990, 0.01), np.linspace(0.5, 0.9999, 10)].astype(np.float32)
    sizes = np.full(len(error), 50)
    flagged = error > error_thresholds(error, sizes)
    clean = error > error_thresholds(error * np.float32(0.1), sizes)
    assert 0 < flagged.sum() <= 10
    assert not clean[:990].any()


@pytest.mark.parametrize('noise', [0.1, 0.3])
def test_all_class_sizes_have_the_same_rate_of_false_positives(seed, noise):
    """Posteriors drawn so that they are right: of the images with error e, the fraction e is wrong."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat([9, 60], 60_000)
    # Images of small classes are judged with more doubt, and more of them are wrong.
    error = np.r_[rng.beta(2 * noise, 0.5, 60_000), rng.beta(noise / 4, 0.25, 60_000)].astype(np.float32)
    wrong = rng.random(len(error)) < error
    flagged = error > error_thresholds(error, sizes)
    small, large = (flagged[~wrong & (sizes == size)].mean() for size in (9, 60))
    assert 0 < small < 1.5 * large
    assert 0 < large < 1.5 * small


def test_calibrated_errors():
    error = np.array([np.nan, 0, 0.3, 0.5, 0.9, 0.9, 0.9, 1], np.float32)
    sizes = np.array([5, 5, 5, 5, 5, 9, 10**6, 9])
    odds = 9 ** (1 / (1 + (7 / 5) ** 2)), 9 ** (1 / (1 + (7 / 9) ** 2))
    expected = [np.nan, 0, 0.3, 0.5, odds[0] / (1 + odds[0]), odds[1] / (1 + odds[1]), 0.9]
    found = calibrated_error(error, sizes)
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-5)
    assert 0.999 < found[-1] < 1


def test_a_sure_proposal_wins_over_out_of_catalog():
    rng = np.random.default_rng(0)
    logits, labels, true = noisy_classes(rng, np.full(9, 50), 0.0, sharpness=12)
    labels[:8] = 3
    strangers = np.zeros(len(labels), bool)
    strangers[:12] = True
    findings = find_label_errors(candidates_of(logits, labels, 6), out_of_catalog=strangers)
    assert (findings.kind[:8] == MISLABELED).all()
    assert (findings.proposal[:8] == true[:8]).all()
    assert (findings.kind[8:12] == OUT_OF_CATALOG).all()


def margins_of(rng, labels: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return margins with a level of their class, three deviations lower for wrong labels."""
    level = rng.normal(0, 4, labels.max() + 1)[labels]
    return (level + rng.normal(size=len(labels)) - 3 * wrong).astype(np.float32)


def test_margins_are_evidence(seed):
    rng = np.random.default_rng(seed)
    logits, labels, true = noisy_classes(rng, np.full(20, 40), 0.15, sharpness=4)
    wrong, candidates = labels != true, candidates_of(logits, labels, 8)
    margins = margins_of(rng, labels, wrong)
    margins[:5] = np.nan
    without, with_them = find_label_errors(candidates), find_label_errors(candidates, margins=margins)
    mistakes = [((findings.error > 0.5) != wrong).sum() for findings in (without, with_them)]
    assert mistakes[1] < mistakes[0]
    np.testing.assert_array_equal(without.error[:5], with_them.error[:5])
    without_noise = rng.normal(size=len(labels)).astype(np.float32)
    unrelated = find_label_errors(candidates, margins=without_noise).error
    assert np.abs(unrelated - without.error).mean() < 0.02


def test_margins_are_compared_within_the_class(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 300)
    error = rng.beta(0.3, 1.2, 300).astype(np.float32)
    margins = margins_of(rng, labels, rng.random(300) < error).astype(np.float64)
    error[7], margins[8] = np.nan, np.nan
    known = np.flatnonzero(~np.isnan(error) & ~np.isnan(margins))
    right = 1 - error.astype(np.float64)

    def of_others(values: dict[int, float], image: int) -> float:
        overall = sum(right[i] * values[i] for i in known) / sum(right[i] for i in known)
        others = [i for i in known if labels[i] == labels[image] and i != image]
        return (sum(right[i] * values[i] for i in others) + 5 * overall) / (sum(right[i] for i in others) + 5)

    values = {i: margins[i] for i in known}
    centered = {i: values[i] - of_others(values, i) for i in known}
    squares = {i: centered[i] ** 2 for i in known}
    relative = np.array([centered[i] / of_others(squares, i) ** 0.5 for i in known])
    p, q = right[known], 1 - right[known]
    means = np.average(relative, weights=p), np.average(relative, weights=q)
    variance = (p @ (relative - means[0]) ** 2 + q @ (relative - means[1]) ** 2) / len(known)
    ratio = np.exp(((relative - means[0]) ** 2 - (relative - means[1]) ** 2) / (2 * variance))
    odds = q / np.maximum(p, 1e-7) * ratio**0.5
    found = error_given_margins(error, margins, labels)
    np.testing.assert_allclose(found[known], odds / (1 + odds), rtol=1e-4, atol=1e-6)
    assert np.isnan(found[7])
    assert found[8] == error[8]
    none = np.zeros(300, np.float32)
    np.testing.assert_array_equal(error_given_margins(none, margins, labels), none)
