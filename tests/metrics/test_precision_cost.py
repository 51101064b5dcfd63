"""The cost of a precision against plain loops over images and classes, and against lib.metrics.paired."""

import numpy as np
import pytest

from lib.metrics.paired import compare
from lib.metrics.precision_cost import ALL, precision_cost
from lib.metrics.predictions import Predictions

COUNTS = np.array([500, 150, 60, 20, 19, 3, 1])


def predictions(labels, predicted):
    ones = np.ones((len(labels), 1), np.float32)
    return Predictions(labels, predicted[:, None], ones, ones[:, 0])


def pair(seed):
    print(f'seed {seed}')
    random = np.random.default_rng(seed)
    labels = random.integers(-1, 6, 200)  # class 6 has no image
    first = np.where(random.random(200) < 0.7, labels, random.integers(-1, 7, 200))
    second = np.where(random.random(200) < 0.9, first, random.integers(-1, 7, 200))
    return predictions(labels, first), predictions(labels, second)


@pytest.mark.parametrize('seed', range(5))
def test_groups_equal_loops_over_their_classes(seed):
    first, second = pair(seed)
    found = precision_cost(first, second, COUNTS)
    members = {'all': range(7), 'many': (0, 1), 'medium': (2, 3), 'few': (4, 5, 6)}
    assert list(found.groups) == list(members)
    for name, classes in members.items():
        errors = []
        for predicted in (first.predicted, second.predicted):
            rows_of = {label: np.flatnonzero(first.labels == label) for label in classes}
            errors.append(np.mean([(predicted[rows] != label).mean() for label, rows in rows_of.items() if len(rows)]))
        group = found.groups[name]
        assert (group.before, group.after) == pytest.approx(errors)
        assert group.difference == pytest.approx(errors[1] - errors[0])
        assert group.interval[0] <= group.difference <= group.interval[1]
        assert group.images == sum((first.labels == label).sum() for label in classes)
    known = first.labels >= 0
    assert found.top1 == pytest.approx([(one.predicted == one.labels)[known].mean() for one in (first, second)])
    comparison = compare(first, second, len(COUNTS))
    assert found.loss == comparison.difference
    assert found.groups[ALL].interval == comparison.interval


def test_equal_predictions_cost_nothing_and_lines_fit_the_terminal():
    first, second = pair(9)
    same = precision_cost(first, first, COUNTS)
    assert same.loss == 0
    assert same.groups[ALL].interval[0] < 0 < same.groups[ALL].interval[1]
    lines = list(precision_cost(first, second, COUNTS).lines('int8'))
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert list(precision_cost(first, second, np.zeros(7, int)).groups) == [ALL]
    with pytest.raises(ValueError, match='same labeled images'):
        precision_cost(first, predictions(second.labels + 1, second.topk[:, 0]), COUNTS)
