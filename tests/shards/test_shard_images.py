"""Packed images by row: memory and open files, and all kinds of damage to shards and index."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lib.dataset.decode import DecodeError
from lib.dataset.upright_rgb import gray_of
from lib.errors import UserError
from lib.shards import images as shard_images
from lib.shards.encode import Raw
from lib.shards.images import OpenShard, ShardImages
from lib.shards.index import INDEX, Contents, PackedIndex, read_table, write_table
from tests.shards.packing import LABELS, NAMES, as_decoded, encoded, pack, smooth


def rewritten(images: ShardImages, **columns) -> Path:
    """Replace the index by one with some other columns and return its path."""
    path = images.index.path
    table, contents = read_table(path, Contents)
    changed = dict(zip(table.column_names, table.columns, strict=True)) | columns
    table = pa.table({name: pa.array(values) if isinstance(values, list) else values
                      for name, values in changed.items()}).cast(table.schema.remove_metadata())  # fmt: skip
    path.unlink()  # the old one remains mapped
    write_table(path, table, contents)
    return path


def error_of(images: ShardImages, row: int) -> str:
    with pytest.raises(DecodeError) as caught:
        images.load(row)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_pickled_images_are_a_path(packed):
    data = pickle.dumps(packed)
    assert len(data) < 300
    assert pickle.loads(data).read(7) == packed.read(7)


def test_rows_may_be_numpy_integers_and_names_contain_shard_and_path(packed):
    assert packed.read(np.int64(4)) == packed.read(4)
    assert packed.name(np.int64(4)) == f'{packed.index.path.parent}/000001.tar ({NAMES[4]})'


def test_the_columns_are_the_mapped_file(packed):
    before = pa.total_allocated_bytes()
    index = PackedIndex(packed.index.path)
    assert pa.total_allocated_bytes() == before
    assert not any(column.flags.owndata for column in (index.shards, index.offsets, index.lengths, index.labels))


def test_a_truncated_shard(packed):
    """The shard ends within row 4: row 3 is intact, 4 and 5 are lost; other shards are intact."""
    path = packed.index.path.with_name('000001.tar')
    os.truncate(path, int(packed.index.offsets[4]) + 10)
    images = ShardImages(packed.index.path)
    (warning,) = images.index.check()
    assert str(path) in warning
    assert '2 of its images are lost' in warning
    for row in (4, 5):
        assert f'{path}, row {row}: the shard is truncated' in error_of(images, row)
    assert images.load(3).size == (43, 30)
    assert images.load(6).size == (46, 30)


def test_a_missing_shard(packed):
    path = packed.index.path.with_name('000001.tar')
    path.unlink()
    images = ShardImages(packed.index.path)
    (warning,) = images.index.check()
    assert f'{path}: no such file, but index.arrow lists it with 3 images' in warning
    assert f'{path}, row 3: this shard is missing' in error_of(images, 3)
    assert images.load(6).size == (46, 30)


def test_wrong_offsets(packed):
    offsets = packed.index.offsets.tolist()
    swapped = [*offsets[:3], offsets[4], offsets[3] + 1, *offsets[5:]]
    images = ShardImages(rewritten(packed, offset=swapped))
    for row in (3, 4):
        assert f'000001.tar, row {row}: the bytes are not those that were packed' in error_of(images, row)
    images = ShardImages(rewritten(packed, offset=[10**15] * len(offsets)))
    assert 'truncated' in error_of(images, 0)


def test_a_replaced_shard(packed):
    folder = packed.index.path.parent
    shutil.copy(folder / '000000.tar', folder / '000001.tar')
    images = ShardImages(packed.index.path)
    assert 'not those that were packed' in error_of(images, 3)


def test_a_flipped_bit(packed):
    """Flip a bit of a JPEG that can still be decoded, to other pixels."""
    path = packed.index.path.with_name('000000.tar')
    data = bytearray(path.read_bytes())
    data[int(packed.index.offsets[1]) + int(packed.index.lengths[1]) - 40] ^= 1
    path.write_bytes(data)
    images = ShardImages(packed.index.path)
    assert 'row 1: the bytes are not' in error_of(images, 1)
    assert images.load(0).size == (40, 30)


def test_undecodable_images_raise_their_fault(photos, tmp_path):
    Path(photos.name(2)).write_bytes(encoded(smooth(90, 80))[:600])
    Path(photos.name(3)).unlink()
    images = pack(photos, tmp_path / 'p')
    assert images.load(1).size == (41, 30)
    assert error_of(images, 2)
    assert 'no such file' in error_of(images, 3)


@pytest.mark.parametrize(
    'columns',
    [{'shard': [4] * 11}, {'shard': [-1] * 11}, {'offset': [-1] * 11}, {'length': [-1] * 11}, {'label': [4] * 11}],
    ids=str,
)
def test_columns_out_of_range(packed, columns):
    with pytest.raises(UserError, match=r'index\.arrow: is damaged \(.* row 0 is out of range'):
        PackedIndex(rewritten(packed, **columns)).check()


@pytest.mark.parametrize('name', ['../000000.tar', '/etc/passwd'])
def test_shards_in_other_folders_are_rejected(packed, name):
    table, contents = read_table(packed.index.path, Contents)
    contents.shards[0].name = name
    packed.index.path.unlink()
    write_table(packed.index.path, table, contents)
    with pytest.raises(UserError, match='is damaged'):
        PackedIndex(packed.index.path).check()


def without_columns(path: Path) -> None:
    write_table(path, pa.table({'a': [1]}), Contents({}, '', 1, []))


@pytest.mark.parametrize(
    'damage',
    [
        lambda path: path.write_bytes(b''),
        lambda path: path.write_bytes(b'hello'),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.write_bytes(path.read_bytes()[:300]),
        without_columns,
    ],
    ids=['empty', 'text', 'without its end', 'truncated', 'other columns'],
)
def test_a_broken_index(packed, tmp_path, damage):
    path = tmp_path / INDEX
    shutil.copy(packed.index.path, path)
    damage(path)
    with pytest.raises(UserError, match=r'index\.arrow: is not an index of packed images \('):
        ShardImages(path)


def test_an_index_of_another_format_or_none(packed, tmp_path):
    table, contents = read_table(packed.index.path, Contents)
    contents.format = 99
    write_table(tmp_path / INDEX, table, contents)
    with pytest.raises(UserError, match='has format 99'):
        ShardImages(tmp_path / INDEX)
    with pytest.raises(UserError, match='no such file'):
        ShardImages(tmp_path / 'none' / INDEX)


def test_many_shards_few_open_files(photos, tmp_path):
    """Read eleven shards, three of them open at a time, in random order, many times."""
    images = ShardImages(pack(photos, tmp_path / 'p', images_per_shard=1).index.path, max_open=3)
    expected = [Path(photos.name(row)).read_bytes() for row in range(len(LABELS))]
    seed = 11
    print('seed', seed)
    opened_before = len(os.listdir('/proc/self/fd')) if Path('/proc/self/fd').exists() else None
    for row in np.random.default_rng(seed).integers(0, len(LABELS), 500).tolist():
        assert images.read(row) == expected[row]
        if opened_before is not None:
            assert len(os.listdir('/proc/self/fd')) <= opened_before + 3
    assert images._opened.cache_info().currsize == 3


class FlakyShard(OpenShard):
    """A shard whose first reads fail, as on a network disk."""

    failures = 2

    def read(self, length: int, offset: int) -> bytes:
        self._fail()
        return super().read(length, offset)

    def view(self, length: int, offset: int) -> np.ndarray:
        self._fail()
        return super().view(length, offset)

    def _fail(self) -> None:
        if FlakyShard.failures:
            FlakyShard.failures -= 1
            raise OSError(5, 'Input/output error')


@pytest.mark.parametrize('failures', [2, 3])
def test_failed_reads_are_repeated(packed, monkeypatch, failures):
    monkeypatch.setattr(shard_images, 'OpenShard', FlakyShard)
    monkeypatch.setattr(shard_images, 'FIRST_PAUSE_SECONDS', 0)
    FlakyShard.failures = failures
    images = ShardImages(packed.index.path)
    if failures == 2:
        assert images.read(4) == packed.read(4)
    else:
        with pytest.raises(OSError, match='Input/output error'):
            images.read(4)


@pytest.fixture
def raw(photos, tmp_path):
    """Pack the images as pixels, with a short side of 24."""
    return pack(photos, tmp_path / 'raw', encoding=Raw(24))


def test_raw_pixels_are_those_that_were_packed(raw, photos):
    again = pickle.loads(pickle.dumps(raw))
    for row, expected in enumerate(as_decoded(photos, 24).images):
        image = again.open(row)
        assert (image.height, image.width) == expected.shape[:2]
        pixels, reduction = image.pixels(0.1)
        assert reduction == 1
        assert np.array_equal(pixels, expected)
        pixels[:] = 0  # neither the file nor another process sees this
        assert np.array_equal(raw.open(row).pixels(1.0)[0], expected)
        assert np.array_equal(raw.load(row), expected)
        assert np.array_equal(raw.open(row).gray_pixels(), gray_of(expected))


@pytest.mark.parametrize('position', [0, 3, -1], ids=['header', 'pixel', 'last'])
def test_a_flipped_bit_of_a_raw_image(raw, position):
    path, index = raw.index.path.with_name('000000.tar'), raw.index
    data = bytearray(path.read_bytes())
    offset, length = int(index.offsets[1]), int(index.lengths[1])
    first = {0: offset, 3: offset + length - 3 * int(index.widths[1]) * int(index.heights[1]), -1: offset + length - 1}
    data[first[position]] ^= 1
    path.write_bytes(data)
    images = ShardImages(index.path)
    with pytest.raises(DecodeError, match=r'000000\.tar, row 1: the bytes are not'):
        images.open(1)
    assert images.load(0).size == (32, 24)


def test_raw_shards_that_are_truncated_or_missing(raw):
    path, offset = raw.index.path.with_name('000001.tar'), int(raw.index.offsets[4])
    raw.load(4)
    os.truncate(path, offset + 500)
    for images in (raw, ShardImages(raw.index.path)):  # the checksum of row 4 was compared; it was not
        with pytest.raises(DecodeError, match=r'000001\.tar, row 4: the shard is truncated'):
            images.open(4)
    path.unlink()
    assert f'{path}, row 4: this shard is missing' in error_of(ShardImages(raw.index.path), 4)


@pytest.mark.parametrize('side', [0, -24, 2**31 - 1, 40])
def test_raw_images_of_a_wrong_size_in_the_index(raw, side):
    widths = raw.index.widths.tolist()
    images = ShardImages(rewritten(raw, width=[*widths[:2], side, *widths[3:]]))
    assert '000000.tar, row 2: the size of this image in the index is wrong' in error_of(images, 2)
    assert images.load(1).height == 24


def test_undecodable_images_among_raw_ones(photos, tmp_path):
    Path(photos.name(2)).write_bytes(b'<html>')
    images = pack(photos, tmp_path / 'p', encoding=Raw(24))
    assert 'was packed without its pixels' in error_of(images, 2)


def test_failed_reads_of_pixels_are_repeated(raw, monkeypatch):
    expected = np.asarray(raw.load(4))
    monkeypatch.setattr(shard_images, 'OpenShard', FlakyShard)
    monkeypatch.setattr(shard_images, 'FIRST_PAUSE_SECONDS', 0)
    FlakyShard.failures = 2
    assert np.array_equal(ShardImages(raw.index.path).load(4), expected)
