"""Packing: the files that it writes, and the resumption after interruptions and damage."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.dataset.decode import decode
from lib.dataset.images import FileImages
from lib.errors import UserError
from lib.shards.encode import Raw, Reencode
from lib.shards.images import ShardImages
from lib.shards.index import INDEX
from lib.shards.pack import PARTS, FolderConflict, _restore_parts, bytes_needed, images_per_shard, pack_split
from lib.shards.write import TooManyBadImages
from tests.shards.packing import (
    CLASSES,
    LABELS,
    NAMES,
    as_decoded,
    contents,
    encoded,
    job_of,
    make_photos,
    pack,
    smooth,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def files_of(photos: FileImages) -> list[bytes]:
    return [Path(photos.name(row)).read_bytes() for row in range(len(LABELS))]


def test_copied_bytes_equal_the_files(photos, packed):
    assert [packed.read(row) for row in range(len(packed))] == files_of(photos)
    assert packed.index.labels.tolist() == LABELS.tolist()
    assert packed.index.names.to_pylist() == NAMES
    assert packed.index.contents.class_names == CLASSES.names
    assert packed.index.check() == []


def test_the_index_holds_the_positions_of_the_bytes(photos, packed):
    """Cut the shards at the offsets in the columns and compare with the files."""
    table = packed.index.table.to_pylist()
    for row, (entry, expected) in enumerate(zip(table, files_of(photos), strict=True)):
        shard = (packed.index.path.parent / f'{row // 3:06d}.tar').read_bytes()
        assert entry['shard'] == row // 3
        assert shard[entry['offset'] : entry['offset'] + entry['length']] == expected
        assert entry['crc32'] == zlib.crc32(expected)
        assert (entry['width'], entry['height'], entry['fault']) == (40 + row, 30, '')


def test_a_shard_is_a_plain_tar_with_adjacent_members_per_image(packed):
    members = []
    for number in range(4):
        with tarfile.open(packed.index.path.parent / f'{number:06d}.tar') as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, '', '')
                members.append((member.name, tar.extractfile(member).read()))
    assert [name for name, _ in members] == [
        f'{row:09d}.{extension}' for row in range(len(LABELS)) for extension in ('jpg', 'cls', 'json')
    ]
    for row, label in enumerate(LABELS.tolist()):
        assert members[3 * row + 1][1] == str(label).encode()
        assert json.loads(members[3 * row + 2][1]) == {'fpath': NAMES[row], 'category_id': label}


def test_images_without_labels(photos, tmp_path):
    images = pack(photos, tmp_path / 'p', labels=np.full(len(LABELS), -1, np.int32))
    assert set(images.index.labels.tolist()) == {-1}
    with tarfile.open(tmp_path / 'p' / '000000.tar') as tar:
        assert [Path(name).suffix for name in tar.getnames()] == ['.jpg', '.json'] * 3


def test_reencoded_images_are_small_and_close(photos, tmp_path):
    images = pack(photos, tmp_path / 'p', encoding=Reencode(20))
    for row, expected in enumerate(files_of(photos)):
        packed, before = decode(images.read(row)), decode(expected)
        assert packed.size == (round((40 + row) * 20 / 30), 20)
        assert (images.index.table['width'][row].as_py(), images.index.table['height'][row].as_py()) == packed.size
        reduced = before.resize(packed.size, Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(packed).astype(int) - np.asarray(reduced)).mean() < 4


def test_raw_images_are_a_tar_of_tiff_files_of_known_size(photos, tmp_path):
    """The estimate before packing lacks the padding of four tar files at most; a damaged shard is written again."""
    job = job_of(photos, tmp_path / 'p', encoding=Raw(20))
    estimate = bytes_needed(job)
    images = pack(photos, tmp_path / 'p', encoding=Raw(20))
    shards = sorted((tmp_path / 'p').glob('*.tar'))
    assert 0 <= sum(path.stat().st_size for path in shards) - estimate <= 4 * tarfile.RECORDSIZE
    assert bytes_needed(job) == 0
    before = contents(tmp_path / 'p')
    for row, expected in enumerate(as_decoded(photos, 20).images):
        assert np.array_equal(images.load(row), expected)
        assert np.array_equal(decode(images.read(row)), expected)
    flip_bit(shards[1])
    pack(photos, tmp_path / 'p', encoding=Raw(20))
    assert contents(tmp_path / 'p') == before


def test_raw_images_are_packed_again_as_others(photos, tmp_path):
    images = pack(photos, tmp_path / 'p', encoding=Raw(20))
    copy, small = pack(images, tmp_path / 'copy'), pack(images, tmp_path / 'small', encoding=Reencode(10))
    assert np.array_equal(copy.open(3).pixels(1.0)[0], images.load(3))
    assert small.load(3).height == 10


@pytest.mark.process
def test_workers_and_repetitions_write_the_same_files(photos, tmp_path):
    for name, workers in (('a', 0), ('b', 3)):
        pack(photos, tmp_path / name, workers, encoding=Reencode(20))
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    pack(photos, tmp_path / 'b', 2, encoding=Reencode(20))
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    assert set(contents(tmp_path / 'a')) == {'pack.json', INDEX, *(f'{number:06d}.tar' for number in range(4))}


def test_undecodable_images_have_rows(photos, tmp_path):
    Path(photos.name(4)).write_bytes(b'<html>')
    Path(photos.name(7)).unlink()
    for name, encoding in (('copied', {}), ('small', {'encoding': Reencode(20)})):
        result = pack_split(job_of(photos, tmp_path / name, **encoding), num_workers=0)
        assert [row for row, _ in result.bad] == [4, 7]
        assert dict(result.bad)[7] == 'no such file'
        assert result.num_images == len(LABELS)
        assert sum(shard.num_images for shard in result.shards) == (10 if name == 'copied' else 9)
    assert ShardImages(tmp_path / 'copied' / INDEX).read(4) == b'<html>'
    assert ShardImages(tmp_path / 'small' / INDEX).index.lengths[[4, 7]].tolist() == [0, 0]


@pytest.mark.parametrize('num_workers', [0, pytest.param(2, marks=pytest.mark.process)])
def test_too_many_undecodable_images_stop_packing(tmp_path, num_workers):
    images, names = make_photos(tmp_path), NAMES * 2
    for row in range(len(LABELS)):
        Path(images.name(row)).write_bytes(b'gone')
    twice = FileImages(names, str(tmp_path))
    with pytest.raises(TooManyBadImages, match=r'11 of 11 images cannot be decoded.*0\.jpg') as caught:
        pack(twice, tmp_path / 'p', num_workers, images_per_shard=11, max_bad_fraction=0.5)
    assert (caught.value.num_bad, caught.value.num_images) == (11, 11)
    assert not list((tmp_path / 'p').glob('*.tar'))
    assert not (tmp_path / 'p' / INDEX).exists()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'digest': 'other'}, 'other images or labels'),
        ({'encoding': Reencode(20)}, 'images copy'),
        ({'images_per_shard': 4}, r'images_per_shard 3 \(now 4\)'),
        ({'classes': None}, 'other class names'),
    ],
    ids=['images', 'encoding', 'images per shard', 'classes'],
)
def test_different_settings_are_a_conflict(photos, packed, changes, words):
    before = contents(packed.index.path.parent)
    with pytest.raises(FolderConflict, match=f'was packed with .*{words}') as caught:
        pack(photos, packed.index.path.parent, **changes)
    assert caught.value.is_packed
    assert contents(packed.index.path.parent) == before


def test_a_folder_of_other_files_is_a_conflict(photos, tmp_path):
    before = contents(tmp_path)
    with pytest.raises(FolderConflict, match='not packed images') as caught:
        pack(photos, tmp_path / 'photos')
    assert not caught.value.is_packed
    assert contents(tmp_path) == before


def remove(shard: Path) -> None:
    shard.unlink()


def truncate(shard: Path) -> None:
    os.truncate(shard, 1000)


def flip_bit(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[900] ^= 4
    shard.write_bytes(data)


@pytest.mark.parametrize('damage', [remove, truncate, flip_bit])
@pytest.mark.parametrize('finished', [True, False])
def test_a_damaged_shard_is_written_again(photos, packed, damage, finished):
    """Before packing is finished, the folder has index parts instead of an index."""
    folder = packed.index.path.parent
    before = contents(folder)
    if not finished:
        again = job_of(photos, folder)
        _restore_parts(again, {3: 'missing'})
    damage(folder / '000001.tar')
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob('*.tar')}
    if not finished and damage is flip_bit:
        # Its size is right, so it is considered finished until it is read back.
        with pytest.raises(UserError, match=r'000001\.tar, row 3.*the same command again'):
            pack(photos, folder)
    pack(photos, folder)
    assert contents(folder) == before
    intact = {'000000.tar', '000002.tar'}
    assert all((folder / name).stat().st_mtime_ns == times[name] for name in intact)


def test_partial_files_of_an_earlier_attempt_are_removed(photos, packed):
    folder = packed.index.path.parent
    before = contents(folder)
    (folder / '.000001.12345678.tmp.tar').write_bytes(b'half')
    (folder / PARTS).mkdir()
    (folder / PARTS / '.000001.12345678.tmp.arrow').write_bytes(b'half')
    pack(photos, folder)
    assert contents(folder) == before


@pytest.mark.process
def test_packing_resumes_after_a_kill(tmp_path):
    """Kill a process with two workers once some shards exist; a second process writes the others."""
    rows, script = 60, tmp_path / 'run.py'
    for row in range(rows):
        (tmp_path / f'{row}.png').write_bytes(encoded(smooth(500, 400, row), 'PNG', compress_level=1))
    script.write_text(
        'from pathlib import Path\nimport numpy as np, pyarrow as pa\n'
        'from lib.dataset.images import FileImages\nfrom lib.shards.encode import Reencode\n'
        'from lib.shards.pack import SplitJob, pack_split\n'
        "if __name__ == '__main__':\n"
        f"    folder, names = Path({str(tmp_path)!r}), [f'{{row}}.png' for row in range({rows})]\n"
        '    names = pa.array(names, pa.large_string())\n'
        '    images, labels = FileImages(names, str(folder)), np.zeros(len(names), np.int32)\n'
        "    job = SplitJob(folder / 'p', images, labels, names, 1, 'd', None, Reencode(64), 4, 0.1)\n"
        '    pack_split(job, num_workers=2)\n'
    )
    command = [sys.executable, str(script)]
    environment = os.environ | {'PYTHONPATH': str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment)
    end = time.monotonic() + 120
    while len(list((tmp_path / 'p').glob('parts/[0-9]*.arrow'))) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / 'p').glob('[0-9]*.tar')}
    assert len(finished) >= 3
    assert not (tmp_path / 'p' / INDEX).exists()
    subprocess.run(command, env=environment, check=True)
    images = ShardImages(tmp_path / 'p' / INDEX)
    assert images.index.check() == []
    encode = Reencode(64)
    for row in range(rows):
        assert images.read(row) == encode((tmp_path / f'{row}.png').read_bytes()).data
    assert any(path.stat().st_mtime_ns == finished[path] for path in list(finished)[:2])
    assert not [path for path in (tmp_path / 'p').rglob('.*') if path.is_file()]


def test_images_per_shard():
    assert [images_per_shard(number) for number in (1, 5_000, 100_000, 3_000_000)] == [256, 256, 1563, 10_000]


def test_bytes_needed_are_estimated_from_the_files(photos, packed, tmp_path):
    files = sum(map(len, files_of(photos)))
    new = job_of(photos, tmp_path / 'new')
    assert files < bytes_needed(new) < files + 11 * 5000
    written = sum(path.stat().st_size for path in packed.index.path.parent.glob('*.tar'))
    assert bytes_needed(new) > files / written
    assert bytes_needed(job_of(photos, packed.index.path.parent)) == 0
