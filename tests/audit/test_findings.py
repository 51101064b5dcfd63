import numpy as np
import pyarrow as pa
import pytest

from lib.audit.duplicates import Duplicates
from lib.audit.findings import (
    CONTRADICTION,
    COPY,
    KEEP,
    LEAK,
    NEAR_LEAK,
    UNREADABLE,
    exact_groups,
    near_groups,
    quarantine_verdicts,
)


class Case:
    """A data set of letters: each image is (split, label, letter); `near` lists pairs of letters."""

    def __init__(self, images, near=(), unreadable=(), names=None):
        self.splits = np.array([split for split, _, _ in images])
        self.labels = np.array([label for _, label, _ in images])
        letters = [letter for _, _, letter in images]
        first = [letters.index(letter) for letter in letters]
        for row in unreadable:
            first[row] = row
        pairs = np.array([[letters.index(one) for one in pair] for pair in near], np.int64).reshape(-1, 2)
        self.duplicates = Duplicates(np.array(first), pairs, np.zeros(0, np.int64))
        self.readable = ~np.isin(np.arange(len(images)), unreadable)
        self.names = pa.array(names or [f'{row}.jpg' for row in range(len(images))], pa.large_string())

    def verdicts(self):
        return quarantine_verdicts(self.duplicates, self.splits, self.labels, self.readable, self.names).tolist()


CASES = {
    'nothing twice': (Case([(0, 0, 'a'), (0, 1, 'b'), (1, 0, 'c')]), [KEEP, KEEP, KEEP]),
    'copies in a class': (Case([(0, 0, 'a'), (0, 1, 'b'), (0, 0, 'a'), (0, 0, 'a')]), [KEEP, KEEP, COPY, COPY]),
    'contradictory': (Case([(0, 0, 'a'), (0, 1, 'a'), (0, 0, 'a')]), [CONTRADICTION] * 3),
    'leak': (Case([(0, 0, 'a'), (0, 0, 'b'), (0, 0, 'a'), (1, 0, 'a')]), [LEAK, KEEP, LEAK, KEEP]),
    'leak into test, unlabeled': (Case([(0, 0, 'a'), (2, -1, 'a')]), [LEAK, KEEP]),
    'leak with another label': (Case([(0, 0, 'a'), (1, 1, 'a')]), [LEAK, KEEP]),
    'near leak': (Case([(0, 0, 'a'), (0, 0, 'b'), (1, 0, 'c')], [('a', 'c')]), [NEAR_LEAK, KEEP, KEEP]),
    'near leak of a copy': (Case([(0, 0, 'a'), (0, 0, 'a'), (1, 0, 'c')], [('c', 'a')]), [NEAR_LEAK] * 2 + [KEEP]),
    # c is a near copy of b, and b of a, but c is none of a.
    'near in two steps': (
        Case([(0, 0, 'a'), (0, 0, 'b'), (1, 0, 'c')], [('a', 'b'), ('b', 'c')]),
        [KEEP, NEAR_LEAK, KEEP],
    ),
    'near in train': (Case([(0, 0, 'a'), (0, 1, 'b')], [('a', 'b')]), [KEEP, KEEP]),
    'between valid and test': (Case([(0, 0, 'a'), (1, 0, 'b'), (2, 0, 'b')]), [KEEP] * 3),
    'unreadable': (Case([(0, 0, '?'), (0, 0, '?'), (1, 0, '?')], unreadable=(0, 1, 2)), [UNREADABLE, UNREADABLE, KEEP]),
    'one path twice': (
        Case([(0, 0, 'a'), (0, 0, 'a'), (0, 0, 'a')], names=['x.jpg', 'x.jpg', 'y.jpg']),
        [KEEP, KEEP, COPY],
    ),
    'one path under two labels': (Case([(0, 0, 'a'), (0, 1, 'a')], names=['x', 'x']), [CONTRADICTION] * 2),
}


@pytest.mark.parametrize('name', CASES)
def test_quarantine(name):
    case, expected = CASES[name]
    assert case.verdicts() == expected


def test_one_copy_of_every_image_is_kept():
    """For random data: an image that is dropped as a copy has a kept copy of the same class."""
    random = np.random.default_rng(0)
    case = Case(random.integers(0, (2, 2, 60), (200, 3)).tolist())
    verdicts = np.array(case.verdicts())
    first_copy = case.duplicates.first_copy
    trained = np.flatnonzero((verdicts == KEEP) & (case.splits == 0))
    kept = {(int(first_copy[row]), int(case.labels[row])) for row in trained}
    evaluated = set(first_copy[case.splits == 1].tolist())
    assert not {key for key, _ in kept} & evaluated
    for row in np.flatnonzero(verdicts == COPY):
        assert (int(first_copy[row]), int(case.labels[row])) in kept
    assert len(np.unique(first_copy[trained])) == len(trained) > 5


def test_the_most_severe_groups_come_first():
    images = [(0, 0, 'a'), (0, 0, 'a'), (0, 1, 'b'), (0, 2, 'b'), (0, 3, 'c'), (1, 3, 'c'), (0, 4, 'd'), (1, 5, 'd')]
    case = Case(images)
    groups = exact_groups(case.duplicates, case.splits, case.labels)
    found = [(group.rows.tolist(), group.leak, group.contradiction) for group in groups]
    assert found == [([6, 7], True, True), ([4, 5], True, False), ([2, 3], False, True), ([0, 1], False, False)]
    assert near_groups(case.duplicates, case.splits, case.labels) == []


def test_near_groups_include_exact_copies():
    case = Case([(0, 0, 'a'), (0, 0, 'b'), (1, 1, 'a'), (0, 2, 'c'), (0, 2, 'c')], [('a', 'b')])
    (group,) = near_groups(case.duplicates, case.splits, case.labels)
    assert (group.rows.tolist(), group.leak, group.contradiction) == ([0, 1, 2], True, True)
