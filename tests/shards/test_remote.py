"""Packed images of a bucket: every damage on the way or on the disk is repaired, that of the object is reported."""

import numpy as np
import pytest

from lib.dataset.decode import DecodeError
from lib.runtime import mirror
from lib.runtime.mirror import local_path
from lib.runtime.outline import outline
from lib.shards import remote
from lib.shards.images import ShardImages
from tests.shards.packing import make_photos, pack
from tests.storage_server import forget

pytestmark = [pytest.mark.process, pytest.mark.long]


@pytest.fixture
def shards(storage_server, bucket, tmp_path):
    """Return the images on the disk, and a function that opens them in the bucket as a new process does."""
    folder = tmp_path / 'packed'
    local = pack(make_photos(tmp_path), folder)
    storage_server.put_folder(bucket, 'packed', folder)
    url = local_path(f's3://{bucket}/packed')

    def opened():
        forget()
        outline(url)
        return ShardImages(url / 'index.arrow')

    return local, opened


@pytest.mark.parametrize('limit', [1 << 30, 1 << 16], ids=['blocks', 'ranges'])
def test_images_are_those_that_were_packed(shards, storage_server, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(mirror, '_COUNT_BYTES', 1 << 12)
    mirror.configure(tmp_path / 'cache', limit)
    local, opened = shards
    images, rows = opened(), np.random.default_rng(0).permutation(len(local))
    assert (images._remote._block_bytes > 1) == (limit > 1 << 20)
    with storage_server.faults(cut=0.05, slow_down=0.05, flip=0.2, only='GET .*tar'):
        for start in range(0, len(rows), 4):
            images.prefetch(rows[start : start + 8])
            assert [images.read(row) for row in rows[start : start + 4]] == [
                local.read(row) for row in rows[start : start + 4]
            ]
    if limit > 1 << 20:
        storage_server.requests()
        again = opened()
        again.prefetch(rows)
        assert [again.read(row) for row in rows] == [local.read(row) for row in rows]
        assert not [line for line in storage_server.requests() if '.tar' in line]


def test_damage_on_the_disk_is_repaired(shards, tmp_path):
    local, opened = shards
    images = opened()
    expected = [images.read(row) for row in range(len(local))]
    (part, *_) = (tmp_path / 'cache' / 'bucket-parts').rglob('*.tar')
    with open(part, 'r+b') as file:
        file.seek(local.index.offsets.item(0) + 5)
        file.write(b'damaged')
    assert [opened().read(row) for row in range(len(local))] == expected
    mirror.evict(str(tmp_path / 'cache'), 1)
    assert images.read(0) == expected[0]  # an open file lost its blocks


def test_damage_of_the_object_is_reported(shards, storage_server, bucket, monkeypatch):
    monkeypatch.setattr(remote, '_FIRST_PAUSE_SECONDS', 0.001)
    local, opened = shards
    name = f'packed/{local.index.contents.shards[0].name}'
    data = bytearray(storage_server.get(bucket, name))
    data[local.index.offsets.item(0) + 5] ^= 1
    storage_server.put(bucket, name, bytes(data))
    images = opened()
    images.prefetch(np.arange(len(local)))
    with pytest.raises(DecodeError, match=r's3://.*, row 0: the bytes are not those that were packed'):
        images.read(0)
    assert images.read(1) == local.read(1)
    storage_server.delete(bucket, name)
    with pytest.raises(DecodeError, match='is missing'):
        opened().read(0)
