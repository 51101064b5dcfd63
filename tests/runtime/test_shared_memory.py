"""Arrays in shared memory: pickling, slices and results, and sharing of the pages."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest

from lib.runtime import shared_memory as shared
from lib.runtime.shared_memory import SharedArray, SharedFile, to_shared_memory

LARGE = np.arange(1 << 18)  # 2 MB


def test_small_arrays_are_returned_unchanged():
    array = np.arange(10)
    assert to_shared_memory(array) is array


@pytest.mark.skipif(os.name != 'posix', reason='descriptors can only be passed on POSIX')
def test_large_arrays_keep_values_and_dtype():
    for array in (LARGE, LARGE[::2], LARGE.astype(np.uint8), LARGE.astype(np.float32)):
        shared_array = to_shared_memory(np.tile(array, 8))
        assert isinstance(shared_array, SharedArray)
        assert to_shared_memory(shared_array) is shared_array
        assert shared_array.dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(shared_array), np.tile(array, 8))
        with pytest.raises(ValueError, match='read-only'):
            shared_array[0] = 1


def test_slices_and_results_are_plain_arrays():
    array = to_shared_memory(LARGE)
    for other in (array[3:9], array[[1, 2]], array[array > 5], array + 1, array == 3, array.astype(np.int32)[:2]):
        assert type(other) is np.ndarray
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(other)), other)
    assert isinstance(array.max(), np.integer)
    assert isinstance(array[3], np.integer)
    # Results that numpy returns as SharedArray are pickled by value.
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array.astype(np.int32))), LARGE.astype(np.int32))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array.reshape(2, -1))), LARGE.reshape(2, -1))


def test_a_named_file_is_pickled_as_its_path(tmp_path):
    path = tmp_path / 'numbers'
    path.write_bytes(LARGE.tobytes())
    array = SharedArray.at(SharedFile.open(path), 'i8', 100, 80)
    assert array.tolist() == list(range(10, 110))
    data = pickle.dumps(array)
    assert len(data) < 500
    assert pickle.loads(data).tolist() == array.tolist()


def test_invalid_files(tmp_path):
    (tmp_path / 'empty').touch()
    with pytest.raises(ValueError, match='empty'):
        SharedFile.open(tmp_path / 'empty')
    with pytest.raises(FileNotFoundError):
        SharedFile.open(tmp_path / 'none')
    with pytest.raises(ValueError, match='buffer'):
        SharedArray.at(SharedFile.holding(b'12345678'), 'i8', 2, 0)


def test_without_memfd_a_temporary_file_is_used(monkeypatch):
    def refused(name):
        raise OSError

    monkeypatch.setattr(shared.os, 'memfd_create', refused, raising=False)
    np.testing.assert_array_equal(np.asarray(to_shared_memory(LARGE)), LARGE)


def test_full_memory_returns_the_array_itself(monkeypatch):
    monkeypatch.setattr(shared, '_anonymous_file', lambda: os.open('/dev/full', os.O_WRONLY))
    assert to_shared_memory(LARGE) is LARGE


def test_descriptors_are_closed():
    before = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else None
    for _ in range(20):
        to_shared_memory(LARGE)
    if before is not None:
        assert len(os.listdir('/proc/self/fd')) <= before + 1


def private_kilobytes():
    with open('/proc/self/smaps_rollup') as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(('Private_Dirty', 'Private_Clean')))


def read_all(array, connection):
    before = private_kilobytes()
    connection.send((int(array.sum()), type(array).__name__, private_kilobytes() - before))


@pytest.mark.process
@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='needs Linux')
@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_workers_share_the_pages(method):
    context = multiprocessing.get_context(method)
    array = to_shared_memory(np.arange(1 << 22))  # 32 MB
    assert array.sum() > 0  # maps the pages here: pages mapped by one process only are private
    ours, theirs = context.Pipe()
    process = context.Process(target=read_all, args=(array, theirs))
    process.start()
    total, name, growth = ours.recv()
    process.join()
    assert (total, name) == (sum(range(1 << 22)), 'SharedArray')
    assert growth < 4096
