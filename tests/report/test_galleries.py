"""How an album fills up."""

import pytest
from PIL import Image

from lib.report.galleries import ThumbnailBudget


def plain(row):
    return Image.new('RGB', (40, 40), (row, 0, 0))


def test_without_a_limit_all_pictures_are_there_and_each_is_opened_once():
    opened = []
    album = ThumbnailBudget(lambda row: (opened.append(row), plain(row))[1])
    assert album.source(3) == album.source(3)
    assert opened == [3]
    assert album.num_left_out == 0


def test_what_comes_after_the_first_that_does_not_fit_is_left_out():
    size = len(ThumbnailBudget(plain).source(0))
    album = ThumbnailBudget(plain, room=2.9 * size)
    assert [bool(album.source(row)) for row in (0, 0, 0, 0)] == [True, True, False, False]
    assert album.num_left_out == 2
    album.fill_up_to(float('inf'))
    assert album.source(0)
    assert album.num_left_out == 0


@pytest.mark.parametrize('room', [0, -5])
def test_nothing_is_opened_without_room(room):
    album = ThumbnailBudget(pytest.fail, room=room)
    assert album.source(0) == ''
    assert album.num_left_out == 1


def test_a_broken_picture_takes_no_room():
    def broken(row):
        raise OSError(row)

    album = ThumbnailBudget(broken)
    assert album.source(0) is None
    assert album.num_left_out == 0
