"""Eleven photos, and the shards of their copies."""

import pytest

from tests.shards.packing import make_photos, pack


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path)


@pytest.fixture
def packed(photos, tmp_path):
    """Pack four shards: rows 0 to 2, 3 to 5, 6 to 8, 9 and 10."""
    return pack(photos, tmp_path / 'packed' / 'train')
