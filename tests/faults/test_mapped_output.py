"""Files that are mapped for writing: on a full disk, and in full shared memory, an error instead of a bus error."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from lib.inference.prediction_files import write_embeddings
from lib.runtime import shared_memory
from lib.runtime.column_store import ColumnStore, open_or_create
from lib.runtime.shared_memory import reserve
from tests.scripts.running import REPOSITORY

COLUMNS = {'features': (np.float32, (3,))}
NAMES = pa.array(map(str, range(100_000)), pa.large_string())


def fill(disk):
    with open(disk / 'filler', 'wb') as file, pytest.raises(OSError, match='No space left'):
        file.write(bytes(1 << 24))


@pytest.mark.process
def test_a_store_on_a_full_disk(small_disk):
    disk = small_disk(256)
    with pytest.raises(OSError, match='No space left') as error:
        open_or_create(disk / 'store', 100_000, COLUMNS, {})
    assert error.value.filename.startswith(str(disk))
    assert not list(disk.iterdir()), 'no leftovers'
    store = open_or_create(disk / 'store', 8000, COLUMNS, {})
    fill(disk)
    store.columns['features'][:] = 1  # without reserved blocks, this would end the process
    del store  # so that the disk can be unmounted


@pytest.mark.process
def test_a_store_that_was_copied_with_holes(small_disk):
    disk = small_disk(256)
    open_or_create(disk / 'store', 8000, COLUMNS, {})
    values = disk / 'store' / 'features.npy'
    header, size = values.read_bytes()[:128], values.stat().st_size
    values.write_bytes(header)
    os.truncate(values, size)
    fill(disk)
    with pytest.raises(OSError, match='No space left'):
        ColumnStore(disk / 'store')


@pytest.mark.process
@pytest.mark.parametrize('suffix', ['npy', 'parquet'])
def test_embeddings_on_a_full_disk(small_disk, suffix):
    disk = small_disk(256)
    features = np.random.default_rng(0).random((100_000, 3), np.float32)
    with pytest.raises(OSError, match='No space left'):
        write_embeddings(disk / f'predictions.{suffix}', NAMES, features)
    assert not list(disk.iterdir())


@pytest.mark.parametrize('refused', [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_file_systems_that_reserve_nothing_get_zeros(tmp_path, monkeypatch, refused):
    def fail(*_):
        raise OSError(refused, os.strerror(refused))

    if refused is None:
        monkeypatch.delattr(shared_memory.os, 'posix_fallocate')
    else:
        monkeypatch.setattr(shared_memory.os, 'posix_fallocate', fail)
    with open(tmp_path / 'file', 'w+b') as file:
        file.write(b'header')
        file.flush()
        reserve(file.fileno(), 3_000_000)
        file.seek(0)
        assert file.read() == b'header' + bytes(3_000_000 - 6)
    assert (tmp_path / 'file').stat().st_blocks * 512 >= 3_000_000


def test_a_limit_of_the_size_of_files(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with open(tmp_path / 'file', 'wb') as file, pytest.raises(OSError, match='File too large'):
            reserve(file.fileno(), 1 << 22)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


SHARED = """
from lib.runtime.shared_memory import SharedMemoryFull, shared_empty
small = shared_empty(4, 1 << 16)
small[:] = 7
try:
    shared_empty(16, 1 << 20)
except SharedMemoryFull as error:
    print(f'refused: {error}')
assert (small == 7).all()
"""


@pytest.mark.process
@pytest.mark.slow
def test_full_shared_memory():
    if shutil.which('unshare') is None or not os.path.isdir('/dev/shm'):
        pytest.skip('needs Linux and unshare')
    script = f'mount -t tmpfs -o size=1m none /dev/shm && exec {sys.executable} -c "$0"'
    command = ['unshare', '--mount', 'sh', '-c', script, SHARED]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode and ('unshare' in done.stderr or 'mount' in done.stderr):
        pytest.skip('shared memory of another size needs root')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('refused: 0.02 GB of shared memory cannot be allocated: ')


def test_shared_memory_that_is_reserved_is_still_shared():
    tensor = shared_memory.shared_empty(3, 5)
    tensor[:] = 9
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: tensor.add_(1)).result()
    assert tensor.is_shared()
    assert tensor.tolist() == [[10] * 5] * 3
