"""Mistake severity in the product tree, against a loop."""

import numpy as np
import pytest

from lib.metrics.confusion import ProductTree, tree_metrics
from tests.oracles.class_report import severity

# Equal names under different parents; chains of different length.
FOOD = [
    ['Food', 'Fruit', 'Apple'],
    ['Food', 'Fruit', 'Apple'],
    ['Food', 'Fruit', 'Pear'],
    ['Food', 'Drinks'],
    ['Food', 'Drinks', 'Juice', 'Apple'],
    ['Food', 'Drinks', 'Juice', 'Apple'],
]


def test_heights_by_hand():
    tree = ProductTree(FOOD)
    expected = [
        [0, 1, 2, 4, 4, 4],
        [1, 0, 2, 4, 4, 4],
        [2, 2, 0, 4, 4, 4],
        [4, 4, 4, 0, 3, 3],
        [4, 4, 4, 3, 0, 1],
        [4, 4, 4, 3, 1, 0],
    ]
    labels, predicted = np.divmod(np.arange(36), 6)
    assert tree.severity(labels, predicted).reshape(6, 6).tolist() == expected
    assert tree.height == 4
    assert ProductTree([['a'], ['b']]).height == 2  # only the root is above both
    assert ProductTree([['a', 'b'], ['a', 'b']]).height == 1


@pytest.mark.parametrize('seed', range(8))
def test_severity_agrees_with_a_loop(seed):
    random = np.random.default_rng(seed)
    parents = [[f'{random.integers(3)}' for _ in range(random.integers(0, 5))] for _ in range(25)]
    labels, predicted = random.integers(0, 25, 300), random.integers(-1, 25, 300)
    found = tree_metrics(labels, predicted, parents)
    counted = [(y, p) for y, p in zip(labels.tolist(), predicted.tolist(), strict=True) if parents[y]]
    assert found['coarse_accuracy'] == pytest.approx(np.mean([p >= 0 and parents[p] == parents[y] for y, p in counted]))
    heights = [severity(parents, y, p) for y, p in counted if p >= 0 and parents[p] and p != y]
    assert found['mistake_severity'] == pytest.approx(np.mean(heights))
    assert found['severities'] == {str(h): heights.count(h) for h in sorted(set(heights))}
    assert max(heights) <= found['worst_severity']


def test_classes_without_ancestors_do_not_count():
    assert tree_metrics(np.array([0, 1]), np.array([1, 0]), [[], []]) == {}
    found = tree_metrics(np.array([0, 0, 0]), np.array([1, 0, -1]), [['a'], []])
    assert found == {'coarse_accuracy': pytest.approx(1 / 3), 'worst_severity': 1}
