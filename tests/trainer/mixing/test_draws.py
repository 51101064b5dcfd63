"""Lambda and centers: their distributions, and that they depend on the slot alone."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from lib.trainer.mixing.base import MixDraws, symmetric_beta


def bin_probabilities(alpha: float, edges: np.ndarray) -> np.ndarray:
    """Mass of Beta(alpha, alpha) in each bin, integrated here; `edges` are symmetric around 1/2, which is one of them.

    With x = sin^2(t), x^(a-1) (1-x)^(a-1) dx = 2 (sin(t) cos(t))^(2a-1) dt.
    """
    angles = np.arcsin(np.sqrt(edges))
    # The substitution t = s^(1/2a) removes the pole at 0 for a below 1/2.
    power = 1 / (2 * alpha) if alpha < 0.5 else 1.0

    def mass(low, high):
        def density(s):
            t = s**power
            return 2 * (np.sin(t) * np.cos(t)) ** (2 * alpha - 1) * power * s ** (power - 1)

        return integrate.quad(density, low ** (1 / power), high ** (1 / power))[0]

    half = [mass(low, high) for low, high in itertools.pairwise(angles[: len(edges) // 2 + 1])]
    masses = np.array(half + half[::-1])
    return masses / masses.sum()


def lam_of(alpha: float, seed: int, size: int = 20_000, **options) -> np.ndarray:
    return MixDraws(seed, alpha, **options).lam_and_centers(3, 0, size)[0]


@pytest.mark.parametrize('seed', [0, 1, 2])
@pytest.mark.parametrize('alpha', [0.1, 0.2, 0.4, 1.0, 2.0, 8.0])
def test_lam_follows_the_beta_distribution(alpha, seed):
    """Chi-square, with fixed seeds."""
    edges = np.concatenate([np.linspace(0, 0.5, 11), np.linspace(0.5, 1, 11)[1:]])
    expected = bin_probabilities(alpha, edges)
    np.testing.assert_allclose(expected, np.diff(stats.beta.cdf(edges, alpha, alpha)), atol=1e-6)
    lam = lam_of(alpha, seed)
    found = np.histogram(lam, bins=edges)[0]
    enough = expected * len(lam) >= 5
    assert found.sum() == len(lam)
    assert found[~enough].sum() < 5 * (~enough).sum() + 20
    kept = expected[enough] / expected[enough].sum()
    assert stats.chisquare(found[enough], kept * found[enough].sum()).pvalue > 1e-4, (alpha, seed, found)


@pytest.mark.parametrize('alpha', [1e-3, 0.3, 1.0, 5.0, 1e6])
def test_lam_is_between_0_and_1_for_extreme_draws(alpha):
    ends = np.array([0.0, 2.0**-53, 0.25, 0.5, 0.75, 1 - 2.0**-53])
    radii, angles = (part.ravel() for part in np.meshgrid(ends, ends))
    lam = symmetric_beta(alpha, radii, angles)
    assert np.isfinite(lam).all()
    assert 0 <= lam.min() <= lam.max() <= 1


def test_extreme_values_of_alpha():
    assert abs(lam_of(1e6, 0) - 0.5).max() < 0.01
    small = lam_of(1e-3, 0)
    assert ((small < 1e-6) | (small > 1 - 1e-6)).mean() > 0.95
    assert 0.48 < small.mean() < 0.52


@pytest.mark.parametrize('probability', [0.0, 0.25, 0.5, 1.0])
def test_the_probability_of_mixing(probability):
    lam = lam_of(1.0, 5, probability=probability)
    num_mixed = int((lam < 1).sum())
    if probability in (0.0, 1.0):
        assert num_mixed == probability * len(lam)
        return
    assert stats.binomtest(num_mixed, len(lam), probability).pvalue > 1e-4
    # The lambda of mixed images does not depend on the probability.
    assert np.array_equal(lam[lam < 1], lam_of(1.0, 5)[lam < 1])
    assert stats.kstest(lam[lam < 1], 'uniform').pvalue > 1e-4


@pytest.mark.parametrize('seed', [0, 1])
def test_centers_are_uniform_and_independent_of_lam(seed):
    lam, centers = MixDraws(seed, 1.0).lam_and_centers(0, 0, 20_000)
    counts = np.histogramdd(np.column_stack([lam, centers]), bins=5, range=[(0, 1)] * 3)[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_partners_draw_independently():
    lam = lam_of(1.0, 0)
    counts = np.histogram2d(lam[::2], lam[1::2], bins=10, range=[(0, 1)] * 2)[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_a_slot_has_the_same_numbers_in_every_batch(alpha):
    draws = MixDraws(4, alpha, 0.7)
    lam, centers = draws.lam_and_centers(2, 0, 40)
    for first, size in ((0, 8), (8, 8), (10, 30), (38, 2)):
        some_lam, some_centers = draws.lam_and_centers(2, first, size)
        assert np.array_equal(some_lam, lam[first : first + size])
        assert np.array_equal(some_centers, centers[first : first + size])
    for other in (draws.lam_and_centers(1, 0, 40), MixDraws(5, alpha, 0.7).lam_and_centers(2, 0, 40)):
        assert not np.array_equal(other[0], lam)
        assert not np.isin(other[1], centers).any()


def test_a_last_slot_without_a_partner_has_lam_1():
    draws = MixDraws(0, 1.0)
    odd, even = draws.lam_and_centers(0, 0, 7)[0], draws.lam_and_centers(0, 0, 8)[0]
    assert odd.tolist() == [*even[:6].tolist(), 1.0]
    assert draws.lam_and_centers(0, 0, 1)[0].tolist() == [1.0]


def test_a_batch_does_not_begin_within_a_pair():
    with pytest.raises(ValueError, match='slot 3'):
        MixDraws(0, 1.0).lam_and_centers(0, 3, 4)


def test_the_last_epochs_are_not_mixed():
    assert [MixDraws(0, 1.0, end_epoch=3).is_over(epoch) for epoch in range(5)] == [False] * 3 + [True] * 2
    assert not MixDraws(0, 1.0).is_over(10**6)
