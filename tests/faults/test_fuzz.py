"""All parsers with mutated real files: only UserError and DecodeError may leave them.

By default all of them together take 20 seconds, with the marker `slow` 10 minutes. FUZZ_SEED repeats a run.
"""

import os
import random
import resource
import signal
import time
from contextlib import contextmanager
from shutil import copytree

import pytest
from hypothesis import HealthCheck, given, seed, settings

from lib.dataset.decode import DecodeError
from lib.errors import UserError
from tests.faults.real_files import PARSERS, make_real_files

SECONDS, SLOW_SECONDS, SECONDS_PER_EXAMPLE = 20, 600, 20
MAX_GROWTH = 2 << 20  # kilobytes of memory
MAX_MESSAGE = 2000  # characters


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


def check(parser, path, content):
    path.write_bytes(content)
    with deadline():
        try:
            parser.run(path)
        except (UserError, DecodeError) as error:
            message = str(error)
            assert 0 < len(message) <= MAX_MESSAGE
            assert message.isprintable(), ascii(message)


def fuzz(name, files, seconds):
    """Run a parser with mutated files, which the caller has copied, for some seconds."""
    parser = PARSERS[name]
    path = files / parser.file
    original = path.read_bytes()
    number = int(os.environ.get('FUZZ_SEED', random.randrange(2**30)))
    end, before = time.monotonic() + seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    contents = parser.mutated(original)
    num_examples = 0
    try:
        parser.run(path)  # as it is, it has no fault
        while time.monotonic() < end:
            print(f'FUZZ_SEED={number}')

            @seed(number)
            @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
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


@pytest.mark.long
@pytest.mark.parametrize('name', PARSERS)
def test_a_parser(name, files, tmp_path):
    fuzz(name, copytree(files, tmp_path / 'copy'), SECONDS / len(PARSERS))


@pytest.mark.slow
@pytest.mark.parametrize('name', PARSERS)
def test_a_parser_for_longer(name, files, tmp_path):
    fuzz(name, copytree(files, tmp_path / 'copy'), SLOW_SECONDS / len(PARSERS))
