"""The requests to a bucket mean the same for every provider: pyarrow.fs for S3, the packages of Google and Azure."""

import os
import random
import subprocess
import sys
import threading
import time

import pytest

from lib.runtime import bucket as bucket_module
from lib.runtime.bucket import Bucket
from lib.runtime.storage import request_pool
from lib.runtime.storage_clients import RefusedRequest
from tests.cloud_servers import SERVERS, every_server
from tests.storage_server import REPOSITORY

pytestmark = [pytest.mark.process, pytest.mark.long]

OBJECTS = {'a/x': b'hello world', 'a/sub/y': b'yy', 'a/empty': b'', 'ab/z': b'z', 'a/\u00fc & +%20?.txt': b'named'}


class Objects:
    """Objects of a new bucket.

    Attributes:
        bucket: as a command sees it.
    """

    def __init__(self, server, name, folder):
        self.server, self.name, self._path = server, name, folder / 'content'
        self.bucket = self.of_another_process()

    def of_another_process(self, name=''):
        return Bucket(self.server.scheme, name or self.name)

    def upload(self, key, data, bucket=None):
        self._path.write_bytes(data)
        return (bucket or self.bucket).upload(key, self._path)

    def download(self, key):
        with open(self._path, 'w+b') as file:
            version = self.bucket.download(key, file.fileno())
            file.seek(0)
            data = file.read()
        assert version.size == len(data)
        return data


@pytest.fixture
def objects(storage_server, bucket, tmp_path):
    return Objects(storage_server, bucket, tmp_path)


@pytest.mark.parametrize('storage_server', ['gs', *(kind for kind in SERVERS if kind.values != ('gs',))], indirect=True)
def test_objects_and_folders(objects):
    bucket = objects.bucket
    for key, data in OBJECTS.items():
        assert objects.upload(key, data).size == len(data)
    assert objects.server.objects(objects.name) == OBJECTS
    assert {key: objects.download(key) for key in OBJECTS} == OBJECTS
    assert bucket.read('a/x', 3, 4) == b'lo w'
    assert [bucket.kind(key) for key in ('a/x', 'a', 'a/sub', 'a/su', 'none')] == ['file', 'folder', 'folder', '', '']
    assert [(entry.name, entry.size, entry.is_folder) for entry in bucket.entries('a')] == [
        ('empty', 0, False), ('sub', 0, True), ('x', 11, False), ('\u00fc & +%20?.txt', 5, False),
    ]  # fmt: skip
    assert all(abs(entry.seconds - time.time()) < 600 for entry in bucket.entries('a') if not entry.is_folder)
    assert {entry.name for entry in bucket.entries('')} == {'a', 'ab'}
    below = {entry.name for entry in bucket.entries('a', recursive=True) if not entry.is_folder}
    assert below == {key.removeprefix('a/') for key in OBJECTS if key.startswith('a/')}
    bucket.copy('a/x', 'copied/x')
    bucket.remove('a/x')
    bucket.remove_folder('a')
    for name in ('a/x', 'none'):  # which is no error
        bucket.remove(name)
        bucket.remove_folder(name)
    left = {key: data for key, data in objects.server.objects(objects.name).items() if not key.endswith('/')}
    assert left == {'ab/z': b'z', 'copied/x': b'hello world'}
    for call in (bucket.version, bucket.entries, lambda key: bucket.read(key, 0, 1)):
        with pytest.raises(FileNotFoundError, match='no such object'):
            call('a/none')


@every_server
def test_large_objects_are_read_by_ranges(objects):
    data = random.Random(0).randbytes(20_000_000)
    objects.upload('big', data)
    ranges = [(15_000_000, 10), (0, 100), (150, 1000), (len(data) - 3, 3)]
    assert objects.bucket.read_ranges('big', ranges, request_pool()) == [data[at : at + size] for at, size in ranges]
    assert objects.download('big') == data
    objects.bucket.copy('big', 'other')
    assert objects.download('other') == data


@every_server
def test_an_object_that_is_replaced_while_it_is_read(objects, monkeypatch):
    """A download has the old content or the new one, and not parts of both."""
    old, new = bytes(20_000_000), b'\1' * 20_000_001
    first, second = objects.upload('x', old), None
    read, lock = Bucket.read, threading.Lock()

    def replace_between(bucket, key, offset, length):
        nonlocal second
        data = read(bucket, key, offset, length)
        with lock:
            if second is None:
                second = objects.upload('x', new, objects.of_another_process())
        return data

    path = objects._path.with_name('downloaded')
    monkeypatch.setattr(Bucket, 'read', replace_between)
    with open(path, 'w+b') as file:
        version = objects.bucket.download('x', file.fileno())
    assert (version, path.read_bytes()) in ((first, old), (second, new))
    assert objects.bucket.version('x') == second
    assert second.stamp() != first.stamp()


@every_server
def test_a_missing_bucket_is_one_line(objects):
    def requests(bucket):
        return (
            lambda: bucket.version('x'),
            lambda: bucket.kind('x'),
            lambda: bucket.entries('x'),
            lambda: objects.upload('x', b'x', bucket),
        )

    for number in range(4):
        with pytest.raises(RefusedRequest) as raised:
            requests(objects.of_another_process('no-such-bucket'))[number]()
        assert raised.value.strerror == 'no such bucket'


@every_server
def test_requests_that_fail_are_repeated(objects):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    with objects.server.faults(cut=0.2, slow_down=0.1, seed=seed):
        for number in range(10):
            objects.upload(f'{number}', b'x' * 1000 * number)
        assert [objects.download(f'{number}') for number in range(10)] == [b'x' * 1000 * n for n in range(10)]
    with objects.server.faults(denied=1), pytest.raises(RefusedRequest, match='access denied'):
        objects.bucket.version('1')


@every_server
def test_a_kill_during_an_upload_leaves_the_earlier_object(objects, tmp_path):
    objects.upload('x', b'earlier')
    path = tmp_path / 'large'
    path.write_bytes(random.Random(0).randbytes(60_000_000))
    code = 'import sys; from pathlib import Path; from lib.runtime.bucket import Bucket; '
    code += 'print(flush=True); Bucket(sys.argv[1], sys.argv[2]).upload("x", Path(sys.argv[3]))'
    command = [sys.executable, '-c', code, objects.server.scheme, objects.name, str(path)]
    for seconds in (0.5, 1, 1.5):
        objects.server.requests()
        with (
            objects.server.faults(delay=0.2),
            subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process,
        ):
            process.stdout.readline()
            while not any(line.startswith(('PUT', 'POST')) for line in objects.server.requests()):
                assert process.poll() is None
                time.sleep(0.02)
            time.sleep(seconds)
            process.kill()
        time.sleep(0.5)
        assert objects.server.objects(objects.name) in ({'x': b'earlier'}, {'x': path.read_bytes()})


@pytest.mark.slow
@pytest.mark.parametrize('storage_server', ['abfs'], indirect=True)
def test_credentials_of_azure(objects, monkeypatch):
    """The variables of Azure's command line; what is wrong with them is one line that holds no key."""
    bucket, variable = objects.bucket, 'AZURE_STORAGE_CONNECTION_STRING'
    bucket_module.bucket_of.cache_clear()
    right = os.environ[variable]
    objects.upload('x', b'x')
    with_account = f'{objects.name}@devstoreaccount1.dfs.core.windows.net'
    assert objects.of_another_process(with_account).read('x', 0, 1) == b'x'
    for value, name, reason in (
        (right.replace('Eby8', 'EBY8'), with_account, 'access denied'),
        ('AccountKey=secret', with_account, 'no connection string'),
        (right, f'{bucket.name}@another.dfs.core.windows.net', "another account, 'devstoreaccount1'"),
        ('', bucket.name, 'no account'),
    ):
        monkeypatch.setenv(variable, value)
        with pytest.raises(RefusedRequest, match=reason) as raised:
            objects.of_another_process(name).version('x')
        assert 'secret' not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize('storage_server', ['gs'], indirect=True)
def test_credentials_of_google(objects, monkeypatch):
    monkeypatch.delenv('STORAGE_EMULATOR_HOST')
    monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', '/none.json')
    with pytest.raises(RefusedRequest, match='access denied; check the credentials'):
        objects.of_another_process().version('x')


@pytest.mark.parametrize('key', ['4006381503429.jpg', 'Forbidden rice/403, left.jpg', 'Unauthorized/401.jpg'])
def test_a_server_that_is_away_is_reported_whatever_the_name_of_the_object(monkeypatch, key):
    for name, value in (('AWS_ENDPOINT_URL', 'http://127.0.0.1:1'), ('AWS_REGION', 'us-east-1')):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket_module, '_ATTEMPTS', 1)
    with pytest.raises(RefusedRequest, match='the server cannot be reached'):
        Bucket('s3', 'my-bucket').version(key)
