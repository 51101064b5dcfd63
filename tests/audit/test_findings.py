import numpy as np
import pyarrow as pa
import pytest

from lib.audit.duplicates import Duplicates
from lib.audit.findings import (
    CONTRADICTION,
    COPY,
    KEPT,
    LEAK,
    NEAR_LEAK,
    UNREADABLE,
    exact_groups,
    near_groups,
    quarantine,
)


class Case:
    """A data set of letters: each image is (split, label, picture); `near` names pairs of pictures."""

    def __init__(self, images, near=(), unreadable=(), names=None):
        self.splits = np.array([split for split, _, _ in images])
        self.labels = np.array([label for _, label, _ in images])
        pictures = [picture for _, _, picture in images]
        first = [pictures.index(picture) for picture in pictures]
        for row in unreadable:
            first[row] = row
        pairs = np.array([[pictures.index(one) for one in pair] for pair in near], np.int64).reshape(-1, 2)
        self.duplicates = Duplicates(np.array(first), pairs, np.zeros(0, np.int64))
        self.readable = ~np.isin(np.arange(len(images)), unreadable)
        self.names = pa.array(names or [f'{row}.jpg' for row in range(len(images))], pa.large_string())

    def verdict(self):
        return quarantine(self.duplicates, self.splits, self.labels, self.readable, self.names).tolist()


CASES = {
    'nothing twice': (Case([(0, 0, 'a'), (0, 1, 'b'), (1, 0, 'c')]), [KEPT, KEPT, KEPT]),
    'copies in a class': (Case([(0, 0, 'a'), (0, 1, 'b'), (0, 0, 'a'), (0, 0, 'a')]), [KEPT, KEPT, COPY, COPY]),
    'contradictory': (Case([(0, 0, 'a'), (0, 1, 'a'), (0, 0, 'a')]), [CONTRADICTION] * 3),
    'leak': (Case([(0, 0, 'a'), (0, 0, 'b'), (0, 0, 'a'), (1, 0, 'a')]), [LEAK, KEPT, LEAK, KEPT]),
    'leak into test, unlabelled': (Case([(0, 0, 'a'), (2, -1, 'a')]), [LEAK, KEPT]),
    'leak with another label': (Case([(0, 0, 'a'), (1, 1, 'a')]), [LEAK, KEPT]),
    'near leak': (Case([(0, 0, 'a'), (0, 0, 'b'), (1, 0, 'c')], [('a', 'c')]), [NEAR_LEAK, KEPT, KEPT]),
    'near leak of a copy': (Case([(0, 0, 'a'), (0, 0, 'a'), (1, 0, 'c')], [('c', 'a')]), [NEAR_LEAK] * 2 + [KEPT]),
    # c is near to b, and b to a, but c is no copy of a.
    'near in two steps': (
        Case([(0, 0, 'a'), (0, 0, 'b'), (1, 0, 'c')], [('a', 'b'), ('b', 'c')]),
        [KEPT, NEAR_LEAK, KEPT],
    ),
    'near in train': (Case([(0, 0, 'a'), (0, 1, 'b')], [('a', 'b')]), [KEPT, KEPT]),
    'between valid and test': (Case([(0, 0, 'a'), (1, 0, 'b'), (2, 0, 'b')]), [KEPT] * 3),
    'unreadable': (Case([(0, 0, '?'), (0, 0, '?'), (1, 0, '?')], unreadable=(0, 1, 2)), [UNREADABLE, UNREADABLE, KEPT]),
    'one path twice': (
        Case([(0, 0, 'a'), (0, 0, 'a'), (0, 0, 'a')], names=['x.jpg', 'x.jpg', 'y.jpg']),
        [KEPT, KEPT, COPY],
    ),
    'one path under two labels': (Case([(0, 0, 'a'), (0, 1, 'a')], names=['x', 'x']), [CONTRADICTION] * 2),
}


@pytest.mark.parametrize('name', CASES)
def test_quarantine(name):
    case, expected = CASES[name]
    assert case.verdict() == expected


def test_something_of_every_picture_stays_unless_it_is_wrong():
    """At random: what is dropped as a copy has its picture among the kept, of the same class."""
    random = np.random.default_rng(0)
    case = Case(random.integers(0, (2, 2, 60), (200, 3)).tolist())
    verdict = np.array(case.verdict())
    picture = case.duplicates.picture
    trained = np.flatnonzero((verdict == KEPT) & (case.splits == 0))
    kept = {(int(picture[row]), int(case.labels[row])) for row in trained}
    measured = set(picture[case.splits == 1].tolist())
    assert not {key for key, _ in kept} & measured
    for row in np.flatnonzero(verdict == COPY):
        assert (int(picture[row]), int(case.labels[row])) in kept
    assert len(np.unique(picture[trained])) == len(trained) > 5


def test_groups_say_what_is_wrong_and_the_gravest_comes_first():
    images = [(0, 0, 'a'), (0, 0, 'a'), (0, 1, 'b'), (0, 2, 'b'), (0, 3, 'c'), (1, 3, 'c'), (0, 4, 'd'), (1, 5, 'd')]
    case = Case(images)
    groups = exact_groups(case.duplicates, case.splits, case.labels)
    found = [(group.rows.tolist(), group.leak, group.contradiction) for group in groups]
    assert found == [([6, 7], True, True), ([4, 5], True, False), ([2, 3], False, True), ([0, 1], False, False)]
    assert near_groups(case.duplicates, case.splits, case.labels) == []


def test_near_groups_hold_exact_copies_too():
    case = Case([(0, 0, 'a'), (0, 0, 'b'), (1, 1, 'a'), (0, 2, 'c'), (0, 2, 'c')], [('a', 'b')])
    (group,) = near_groups(case.duplicates, case.splits, case.labels)
    assert (group.rows.tolist(), group.leak, group.contradiction) == ([0, 1, 2], True, True)
