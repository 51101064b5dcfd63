"""Files and folders that commands write, rename and remove in the mirror of a bucket."""

import os
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lib.errors import UserError
from lib.runtime import bucket as bucket_module
from lib.runtime import files, mirror, outline, storage, uploads
from lib.runtime.column_store import open_complete, open_or_create
from lib.runtime.folders import check_checkpoint_exists, fresh_folder, has_content, lock_folder
from lib.runtime.mirror import local_path
from lib.runtime.read_file import read_bytes

pytestmark = [pytest.mark.process, pytest.mark.long]


@pytest.fixture
def machine(storage_server, tmp_path, monkeypatch):
    """Return a function that starts on a machine with a separate cache, and returns the folder of a new bucket."""
    for name, value in storage_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket_module, '_FIRST_PAUSE_SECONDS', 0.01)
    monkeypatch.setattr(mirror._settings, 'root', '')
    bucket = storage_server.new_bucket()

    def start(name='a'):
        for known in (storage._checked, outline._outlined, uploads._refreshed, files._prepared):
            known.clear()
        bucket_module.bucket_of.cache_clear()
        mirror._limit.cache_clear()
        mirror.configure(tmp_path / name, 1 << 30)
        return local_path(f's3://{bucket}/log')

    yield start
    start()


def objects(server, folder):
    """Return the objects of a folder, by name."""
    _, bucket, key = mirror.location(folder)
    return {name.removeprefix(f'{key}/'): data for name, data in server.objects(bucket, f'{key}/').items() if data}


def test_files_are_uploaded_when_they_are_replaced_and_removed_with_their_objects(storage_server, machine):
    folder = machine()
    files.write_json(folder / 'x.json', 1)
    with files.replace_together(folder):
        files.write_text(folder / '1.txt', 'one')
        files.write_text(folder / '2.txt', 'two')
        assert '1.txt' not in objects(storage_server, folder)
    big = os.urandom(12 << 20)  # in two parts
    files.write_bytes(folder / 'below' / 'big', big)
    whole = {'x.json': b'1\n', '1.txt': b'one', '2.txt': b'two', 'below/big': big}
    assert objects(storage_server, folder) == whole
    files.remove(folder / '1.txt')
    files.remove(folder / 'below')
    assert objects(storage_server, folder) == {'x.json': b'1\n', '2.txt': b'two'}


def test_appended_files_are_uploaded_at_the_end_also_after_an_error(storage_server, machine):
    folder = machine()

    def fail():
        with lock_folder(folder):
            (folder / 'log.txt').write_text('line\n')
            uploads.push(folder)
            with open(folder / 'log.txt', 'a') as log:
                log.write('another\n')
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert objects(storage_server, folder) == {'log.txt': b'line\nanother\n'}
    storage_server.requests()
    uploads.push(folder)
    assert not storage_server.requests()


def test_an_earlier_result_is_renamed_in_the_bucket(storage_server, machine):
    folder = machine() / 'run'
    files.write_text(folder / 'old.txt', 'old')
    files.write_text(folder / 'below' / 'older.txt', 'older')
    folder = machine('b') / 'run'
    assert has_content(folder)
    with fresh_folder(folder, 'NAME', lambda: has_content(folder)):
        files.write_text(folder / 'new.txt', 'new')
    assert objects(storage_server, folder.parent) == {
        'run_old/old.txt': b'old', 'run_old/below/older.txt': b'older', 'run/new.txt': b'new',
    }  # fmt: skip


def test_what_a_killed_process_did_not_upload_is_uploaded_unless_its_object_is_newer(storage_server, machine):
    folder = machine()
    files.write_text(folder / 'a', 'uploaded')
    (folder / 'a').write_text('newer')  # as after a kill between the rename and the upload
    (folder / 'b').write_text('first')
    folder = machine()
    uploads.refresh(folder)
    assert objects(storage_server, folder) == {'a': b'newer', 'b': b'first'}
    (folder / 'a').write_text('older')
    os.utime(folder / 'a', (0, 0))
    uploads.refresh(machine())
    assert objects(storage_server, folder) == {'a': b'newer', 'b': b'first'}
    assert (folder / 'a').read_text() == 'newer'


def test_a_folder_of_results_is_listed_and_large_files_are_downloaded_when_they_are_opened(storage_server, machine):
    folder = machine()
    for name in ('last.pth', 'log.txt'):
        files.write_text(folder / name, name)
    folder = machine('b')
    storage_server.requests()
    uploads.refresh(folder)
    assert not any('GET' in line and 'last.pth' in line for line in storage_server.requests())
    assert (folder / 'last.pth').stat().st_size == len('last.pth')
    assert read_bytes(folder / 'last.pth', max_bytes=100) == b'last.pth'
    files.write_text(folder / 'last.pth', 'other')
    uploads.release(folder / 'last.pth')
    assert (folder / 'last.pth').stat().st_size == len('other')
    assert read_bytes(folder / 'last.pth', max_bytes=100) == b'other'


def test_cached_features_are_found_by_the_next_command(storage_server, machine):
    folder = machine()
    store = (folder / 'features' / 'valid', 2, {'features': (np.float32, (3,))}, {'model': 1})
    features = open_or_create(*store)
    features.write(slice(0, 2), {'features': np.ones((2, 3), np.float32)})
    features.flush()
    for _ in range(2):
        machine()
        uploads.refresh(folder)
        assert open_complete(*store) is not None
    assert {name.rpartition('/')[0] for name in objects(storage_server, folder)} == {'features/valid'}


def test_a_missing_checkpoint_names_those_in_its_folder(storage_server, machine):
    folder = machine()
    _, bucket, key = mirror.location(folder)
    storage_server.put(bucket, f'{key}/last.pth', b'x')
    folder.mkdir(parents=True)
    for path in (folder, folder / 'best.pth'):
        with pytest.raises(UserError, match=f'; there are {folder}/last.pth'):
            check_checkpoint_exists(path, 'RESUME_MODEL')


def test_ranks_find_at_the_same_time_that_a_folder_is_new(machine):
    for number in range(4):
        folder = machine() / str(number)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(uploads.refresh, [folder] * 4))
        assert not folder.exists()


@pytest.mark.parametrize(
    ('fault', 'words'),
    [
        ('denied', 'access denied'),
        ('skewed', 'clock'),
        ('missing', 'no such bucket'),
        ('slow_down', 'too many requests'),
    ],
)
def test_a_refused_upload_is_an_error_that_names_the_url(storage_server, machine, monkeypatch, fault, words):
    if fault == 'slow_down':
        monkeypatch.setattr(bucket_module, '_ATTEMPTS', 1)
    folder = machine()
    with storage_server.faults(**{fault: 1}), pytest.raises((OSError, UserError), match=words) as raised:
        files.write_text(folder / 'x.txt', 'x')
    assert raised.value.filename == f'{mirror.url_of(folder)}/x.txt'
    assert not objects(storage_server, folder)
    files.write_text(folder / 'x.txt', 'x')
    assert objects(storage_server, folder) == {'x.txt': b'x'}


def test_every_upload_arrives_whole_although_requests_are_cut(storage_server, machine):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    folder = machine()
    with storage_server.faults(cut=0.2, slow_down=0.1, seed=seed):
        for number in range(20):
            files.write_text(folder / f'{number}', 'x' * 1000 * number + 'end')
    found = objects(storage_server, folder)
    assert found == {f'{number}': b'x' * 1000 * number + b'end' for number in range(20)}
