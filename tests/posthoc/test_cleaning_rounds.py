"""Rounds of cleaning: later ones trust images by what earlier ones found, and they end when nothing changes."""

import random
from itertools import pairwise

import numpy as np
import pytest

from lib.posthoc.cleaning_rounds import judge_in_rounds
from lib.posthoc.judged_images import JudgedImages
from lib.posthoc.label_errors import MISLABELED
from lib.posthoc.out_of_fold import out_of_fold_candidates


@pytest.fixture
def seed() -> int:
    number = random.randrange(10**6)
    print(f'seed {number}')
    return number


def drawn(seed: int, rate: float) -> tuple[JudgedImages, np.ndarray]:
    """Return images of six classes, and which of them have another label."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(6), 60)
    count = len(true)
    values = (3 * rng.normal(size=(6, 12))[true] + rng.normal(size=(count, 12))).astype(np.float32)
    wrong = rng.random(count) < rate
    labels = np.where(wrong, (true + rng.integers(1, 6, count)) % 6, true)
    return JudgedImages(values, np.arange(count), labels, 6, np.ones(count, np.float32)), wrong


@pytest.mark.parametrize('head', ['linear', 'cosine'])
def test_rounds(seed, tmp_path, head):
    images, wrong = drawn(seed, 0.15)
    rounds = list(judge_in_rounds(images, tmp_path, head=head, num_rounds=4, seed=seed))
    kinds = [findings.kind for _, findings in rounds]
    assert all((first != second).any() for first, second in pairwise(kinds[:-1]))
    assert len(rounds) == 4 or (kinds[-1] == kinds[-2]).all()
    found = kinds[-1] == MISLABELED
    assert (found & wrong).sum() > 0.8 * max(found.sum(), wrong.sum())
    first = out_of_fold_candidates(images, tmp_path / 'alone', head=head, seed=seed)
    np.testing.assert_array_equal(rounds[0][0].logits, first.logits)
    weights = 1 - rounds[0][1].error
    later = JudgedImages(images.values, images.rows, images.labels, 6, weights)
    second = out_of_fold_candidates(later, tmp_path / 'second', head=head, seed=seed + 1)
    np.testing.assert_array_equal(rounds[1][0].logits, second.logits)


def test_one_round(seed, tmp_path):
    images, _ = drawn(seed, 0.0)
    assert len(list(judge_in_rounds(images, tmp_path, head='cosine', num_rounds=1))) == 1
