"""ThumbnailBudget: which thumbnails fit into the report."""

import pytest
from PIL import Image

from lib.report.galleries import ThumbnailBudget


def plain(row):
    return Image.new('RGB', (40, 40), (row, 0, 0))


def test_without_a_limit_every_thumbnail_is_returned_and_opened_once():
    opened = []
    budget = ThumbnailBudget(lambda row: (opened.append(row), plain(row))[1])
    assert budget.source(3) == budget.source(3)
    assert opened == [3]
    assert budget.num_left_out == 0


def test_all_thumbnails_after_the_first_that_does_not_fit_are_left_out():
    size = len(ThumbnailBudget(plain).source(0))
    budget = ThumbnailBudget(plain, max_bytes=2.9 * size)
    assert [bool(budget.source(row)) for row in (0, 0, 0, 0)] == [True, True, False, False]
    assert budget.num_left_out == 2
    budget.reset(float('inf'))
    assert budget.source(0)
    assert budget.num_left_out == 0


@pytest.mark.parametrize('max_bytes', [0, -5])
def test_an_empty_budget_opens_no_image(max_bytes):
    budget = ThumbnailBudget(pytest.fail, max_bytes=max_bytes)
    assert budget.source(0) == ''
    assert budget.num_left_out == 1


def test_an_unreadable_image_uses_no_budget():
    def broken(row):
        raise OSError(row)

    budget = ThumbnailBudget(broken)
    assert budget.source(0) is None
    assert budget.num_left_out == 0
