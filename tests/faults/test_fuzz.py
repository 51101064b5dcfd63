"""All parsers with mutated real files: only UserError and DecodeError may leave them.

By default all of them together take 20 seconds, with the marker `slow` 10 minutes. FUZZ_SEED repeats a run.
"""

import os
import random
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings

from lib.dataset.decode import DecodeError
from lib.errors import UserError
from lib.runtime.read_file import RefusedFileError
from tests.faults.real_files import PARSERS, make_real_files

SECONDS, SLOW_SECONDS, SECONDS_PER_EXAMPLE = 6, 600, 20
MAX_GROWTH = 2 << 20  # kilobytes of memory
MAX_MESSAGE = 2000  # characters
# Some images are decoded in another process.
NAMES = [pytest.param(name, marks=[pytest.mark.process] * name.endswith(' image')) for name in PARSERS]
NOT_FILES = {'options', 'variables of torchrun'}
# Caches, whose content is computed again, and records without which a command works.
MADE_AGAIN = {
    'annotation cache', 'description of features', 'features', 'rows of features', 'record of a command', 'tau',
    'settings of shards', 'product tree',
}  # fmt: skip


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    make_real_files(folder)
    return folder


@contextmanager
def deadline():
    def stop(*_):
        raise AssertionError(f'a parser takes more than {SECONDS_PER_EXAMPLE} s')

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS_PER_EXAMPLE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


def error_of(parser, path):
    """Return the allowed exception that a parser raises; None if there is none."""
    with deadline():
        try:
            parser.run(path)
        except (UserError, DecodeError, RefusedFileError, IsADirectoryError) as error:
            return error
    return None


def check(parser, path, content):
    path.write_bytes(content)
    error = error_of(parser, path)
    if error is not None:
        assert 0 < len(str(error)) <= MAX_MESSAGE
        assert str(error).isprintable(), ascii(str(error))


def fuzz(name, files, seconds):
    """Run a parser with mutated files for some seconds."""
    parser = PARSERS[name]
    path = files / parser.file
    original = path.read_bytes()
    number = int(os.environ.get('FUZZ_SEED', random.randrange(2**30)))
    end, before = time.monotonic() + seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    contents, num_examples = parser.mutated(original), 0
    at_once = 10 if seconds < 2 else 100
    try:
        parser.run(path)  # as it is, it has no fault
        while time.monotonic() < end:
            print(f'FUZZ_SEED={number}')

            @seed(number)
            @settings(max_examples=at_once, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(contents)
            def run(content):
                nonlocal num_examples
                num_examples += 1
                check(parser, path, content)

            run()
            number += 1
    finally:
        path.write_bytes(original)
    print(f'{num_examples} examples')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH


def make_device(path):
    path.symlink_to('/dev/zero')


def make_sparse(path):
    with open(path, 'wb') as file:
        file.truncate(1 << 43)


KINDS = (os.mkfifo, make_device, Path.mkdir, make_sparse)


@pytest.mark.long
@pytest.mark.parametrize('name', sorted(PARSERS.keys() - NOT_FILES))
def test_only_regular_files_of_a_limited_size_are_read(name, files):
    parser = PARSERS[name]
    path = files / parser.file
    original = path.rename(files / 'original')
    try:
        for make in KINDS:
            make(path)
            check_refused(name, path, error_of(parser, path))
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    finally:
        original.rename(path)


def check_refused(name, path, error):
    if name.endswith(' image'):  # the callers name it
        assert isinstance(error, RefusedFileError | IsADirectoryError)
    elif error is None:
        assert name in MADE_AGAIN
    else:
        assert path.name in str(error) or path.parent.name in str(error), str(error)


@pytest.mark.long
@pytest.mark.parametrize('name', NAMES)
def test_a_parser(name, files):
    fuzz(name, files, SECONDS / len(PARSERS))


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_parser_for_longer(name, files):
    fuzz(name, files, SLOW_SECONDS / len(PARSERS))
