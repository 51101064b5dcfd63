"""Objects of an S3 server on loopback by their paths in the mirror, also where requests fail."""

import os
import random
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib.errors import UserError, url_fault
from lib.runtime import bucket as bucket_module
from lib.runtime import mirror, outline, storage
from lib.runtime.mirror import local_path, url_of
from lib.runtime.storage_clients import Entry
from tests.storage_server import forget
from tests.web_server import web_server

pytestmark = [pytest.mark.process, pytest.mark.long]


def test_urls_and_paths(bucket):
    for url in ('s3://b/k/x.json', 'gs://b', 'abfss://c@account.dfs.core.windows.net/x', 'https://host/x%20y'):
        path = local_path(url)
        assert (url_of(path), mirror.is_mirrored(path), mirror.is_url(url), url_fault(url)) == (url, True, True, '')
        assert mirror.with_urls(f'{path}: no such file') == f'{url}: no such file'
    assert local_path('S3://b//k/./x/') == local_path('s3://b/k/x')
    for text in ('/data/x', 'x/s3://b', 'C:/x', 'http://host/x'):
        assert url_of(text) == text
        assert not mirror.is_mirrored(text)
        assert not mirror.is_url(text)
    with pytest.raises(FileNotFoundError):
        mirror.location(local_path('s3://b/k') / '../../other/secret')


@pytest.mark.parametrize(
    'url', ['s3://key:secret@b/x', 's3://key@b/x', 'https://h/x?X-Amz-Signature=secret', 'abfss://c:secret@a/x']
)
def test_credentials_in_a_url_are_refused_and_not_shown(url):
    assert url_fault(url)
    assert 'secret' not in url_fault(url)


def test_a_file_is_downloaded_once_and_again_when_its_object_changed(storage_server, bucket):
    path = local_path(f's3://{bucket}/a/x')
    storage_server.put(bucket, 'a/x', b'first')
    storage.materialize(path)
    storage.materialize(path)
    assert path.read_bytes() == b'first'
    storage_server.put(bucket, 'a/x', b'other')  # in the same second, and of the same size
    forget()
    storage_server.requests()
    storage.materialize(path)
    assert path.read_bytes() == b'other'
    forget()
    storage.materialize(path)
    assert [line.split()[0] for line in storage_server.requests()] == ['HEAD', 'GET', 'HEAD']
    path.unlink()  # as when it is evicted
    storage.fetch(path)
    assert path.read_bytes() == b'other'
    with pytest.raises(FileNotFoundError):
        storage.materialize(local_path(f's3://{bucket}/a/y'))


def test_pull_brings_a_folder_up_to_date_in_both_directions(storage_server, bucket):
    folder = local_path(f's3://{bucket}/run')
    for name in ('same', 'sub/changed', 'removed'):
        storage_server.put(bucket, f'run/{name}', b'old')
    assert sorted(path.name for path in storage.pull(folder)) == ['changed', 'removed', 'same']
    forget()
    storage_server.put(bucket, 'run/sub/changed', b'new')
    storage_server.delete(bucket, 'run/removed')
    (folder / 'same').write_bytes(b'written here')
    (folder / 'added').write_bytes(b'written here, too')
    (folder / '.lock').write_bytes(b'stays here')
    storage.pull(folder)
    here = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    assert here.pop('.lock') == b'stays here'
    there = {name.removeprefix('run/'): data for name, data in storage_server.objects(bucket).items()}
    assert here == there == {'same': b'written here', 'sub/changed': b'new', 'added': b'written here, too'}


def test_a_newer_object_replaces_a_file_that_was_never_uploaded(storage_server, bucket):
    path = local_path(f's3://{bucket}/run/last.pth')
    path.parent.mkdir(parents=True)
    path.write_bytes(b'left by a killed command')
    os.utime(path, (time.time(), time.time() - 60))
    storage_server.put(bucket, 'run/last.pth', b'of another machine')
    storage.pull(path.parent)
    assert path.read_bytes() == b'of another machine'


def test_ranges_and_large_files(storage_server, bucket):
    data = random.Random(0).randbytes(20_000_000)
    path = local_path(f's3://{bucket}/big')
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    storage.publish(path)
    assert storage_server.get(bucket, 'big') == data
    assert storage.size_of(path) == len(data)
    ranges = [(15_000_000, 10), (0, 100), (150, 1000), (200, 5), (len(data) - 3, 3)]
    storage_server.requests()
    assert storage.read_ranges(path, ranges) == [data[start : start + length] for start, length in ranges]
    assert sum(line.startswith('GET') for line in storage_server.requests()) == 3
    path.unlink()
    forget()
    with storage_server.faults(cut=0.1, slow_down=0.1, flip=0.2):
        storage.materialize(path)
    assert path.read_bytes() == data
    assert bucket_module.bucket_of('s3', bucket)._are_tags_checksums


@pytest.mark.parametrize(
    ('faults', 'reason'),
    [
        ({'denied': 1.0}, 'access denied'),
        pytest.param({'skewed': 1.0}, 'clock', marks=pytest.mark.slow),
        ({'missing': 1.0}, 'no such bucket'),
    ],
)
def test_refused_requests_are_one_line(storage_server, bucket, faults, reason):
    storage_server.put(bucket, 'x', b'x')
    with storage_server.faults(**faults), pytest.raises(UserError, match=reason) as raised:
        storage.materialize(local_path(f's3://{bucket}/x'))
    assert str(raised.value).startswith(f's3://{bucket}/')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('faults', 'reason'), [({'slow_down': 1.0}, 'too many requests'), ({'cut': 1.0}, 'cannot be reached')]
)
def test_a_server_that_never_answers_is_one_line(storage_server, bucket, faults, reason):
    storage_server.put(bucket, 'x', b'x')
    with storage_server.faults(**faults), pytest.raises(UserError, match=reason):
        storage.materialize(local_path(f's3://{bucket}/x'))


def test_the_least_recently_used_files_are_evicted(storage_server, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, '_COUNT_BYTES', 1 << 12)
    mirror.configure(tmp_path / 'cache', 1 << 20)
    folder = local_path(f's3://{bucket}/photos')
    for number in range(30):
        storage_server.put(bucket, f'photos/{number}', random.Random(number).randbytes(1 << 16))
    storage_server.put(bucket, 'photos/index', bytes(1 << 16))
    storage.materialize(folder / 'index')
    (folder / 'written').write_bytes(bytes(1 << 16))
    for number in range(30):
        storage.fetch(folder / str(number))
        used = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
        assert used <= 1 << 20
    names = {path.name for path in folder.iterdir()}
    assert {'index', 'written', '29', '28'} <= names
    assert '0' not in names


def test_sparse_files_lose_their_blocks_and_keep_their_size(bucket, tmp_path):
    path = local_path(f's3://{bucket}/shard.tar')
    descriptor = mirror.open_sparse(path, 1 << 20)
    try:
        assert mirror.has_hole(descriptor, 0, 4096) in (True, not hasattr(os, 'SEEK_HOLE'))
        os.pwrite(descriptor, b'x' * (1 << 19), 0)
        assert not mirror.has_hole(descriptor, 0, 1 << 19)
        assert mirror.evict(str(tmp_path / 'cache'), 1 << 18) == 0
        assert (os.fstat(descriptor).st_size, os.pread(descriptor, 2, 0)) == (1 << 20, b'\0\0')
    finally:
        os.close(descriptor)


def test_a_cache_that_cannot_be_written_to_is_named(storage_server, bucket, tmp_path):
    (tmp_path / 'file').touch()
    storage_server.put(bucket, 'a/x', b'x')
    path = Path(tmp_path, 'file', *local_path(f's3://{bucket}/a/x').parts[-5:])
    assert mirror.is_mirrored(path)
    for call in (
        storage.fetch,
        storage.materialize,
        storage.prepare_path,
        lambda path: storage.prepare_path(path.parent),
    ):
        with pytest.raises(UserError, match=r'cannot be written to the cache \(not a directory\); .* --STORAGE_CACHE'):
            call(path)


def test_commands_that_list_a_folder_at_the_same_time(bucket, monkeypatch):
    folder = local_path(f's3://{bucket}/photos')
    for size in (1, 2, 0):  # new, replaced and removed objects
        found = [Entry(f'{number}.jpg', size, size, False) for number in range(50 if size else 0)]
        monkeypatch.setattr(outline, 'entries', lambda _, found=found: found)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(outline._outline_one, [str(folder)] * 4))
        assert sorted(path.name for path in folder.iterdir()) == sorted(entry.name for entry in found)
        assert all(path.stat().st_size == size for path in folder.iterdir())


@pytest.mark.parametrize(
    ('url', 'module'),
    [('gs://b/x', 'google.cloud.storage'), ('abfss://c@account.dfs.core.windows.net/x', 'azure.storage.blob')],
)
def test_a_missing_package_is_one_line(bucket, monkeypatch, url, module):
    parent, _, name = module.rpartition('.')
    if parent in sys.modules:  # which keeps it as an attribute
        monkeypatch.delattr(sys.modules[parent], name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r'needs a package; type: pip install -r requirements-storage\.txt'):
        storage.materialize(local_path(url))


@pytest.mark.parametrize('has_ranges', [True, False])
def test_files_of_a_web_server(bucket, tmp_path, monkeypatch, has_ranges):
    folder, certificate = tmp_path / 'web', tmp_path / 'certificate.pem'
    folder.mkdir()
    monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
    data = random.Random(0).randbytes(100_000)
    (folder / 'x.bin').write_bytes(data)
    with web_server(folder, certificate, has_ranges=has_ranges) as url:
        path = local_path(f'{url}/x.bin')
        storage.prepare_path(path)
        assert path.read_bytes() == data
        ranges = [(5, 10), (90_000, 20)]
        for name in ('a b.jpg', 'x#1.jpg', 'q?.jpg', '50%.jpg', '\u00e9+&.jpg', 'x.flaky'):
            (folder / name).write_bytes(data)
            storage.materialize(path.with_name(name))
            assert path.with_name(name).read_bytes() == data
        if has_ranges:
            assert storage.read_ranges(path, ranges) == [data[5:15], data[90_000:90_020]]
            assert storage.read_ranges(path.with_name('x.flaky'), ranges) == [data[5:15], data[90_000:90_020]]
        else:
            with pytest.raises(UserError, match=f'{url}/x.bin: the server has no HTTP ranges'):
                storage.read_ranges(path, ranges)
        with pytest.raises(FileNotFoundError):
            storage.materialize(local_path(f'{url}/none'))
        with pytest.raises(UserError, match=f'{url}/x.secret: the server denies access to this file'):
            storage.materialize(local_path(f'{url}/x.secret'))
        with pytest.raises(UserError, match='no list of its files'):
            storage.entries(path.parent)
        path.write_bytes(b'changed')
        with pytest.raises(OSError, match='reading only'):
            storage.publish(path)


def test_a_web_server_that_is_not_reached_is_no_empty_folder(bucket, monkeypatch):
    monkeypatch.setattr(bucket_module, '_FIRST_PAUSE_SECONDS', 0)
    with socket.create_server(('127.0.0.1', 0)) as server:
        url = f'https://localhost:{server.getsockname()[1]}'
    for find in (storage.materialize, storage.prepare_path):
        with pytest.raises(UserError, match=f'{url}/photos: the server cannot be reached.*the network and the address'):
            find(local_path(f'{url}/photos'))
