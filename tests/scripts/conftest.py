"""Fixtures: the scripts, a small data set, a finished run."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.aliproducts import make_aliproducts
from tests.script_server import script_server
from tests.scripts.in_process import run_in_process
from tests.scripts.running import TINY, Scripts


@pytest.fixture(scope='session')
def scripts(request, tmp_path_factory) -> Iterator[Scripts]:
    if not hasattr(os, 'fork'):
        pytest.skip('this system cannot fork')
    with ExitStack() as stack:
        # Workers of pytest share one server.
        shared = getattr(request.config, 'workerinput', {}).get('script_server')
        address = shared or stack.enter_context(script_server())
        yield stack.enter_context(closing(Scripts(address, tmp_path_factory.mktemp('output'))))


@pytest.fixture(scope='session')
def products(tmp_path_factory) -> Path:
    """Six classes of 14 to 4 training images, 4 valid images each, 6 test images: converted; read-only."""
    folder = tmp_path_factory.mktemp('products')
    make_aliproducts(folder, 6, (14, 12, 9, 7, 5, 4), valid_per_class=4, size=40)
    done = run_in_process(folder, 'tools/convert.py', 'aliproducts', folder, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope='session')
def finished(scripts, products, tmp_path_factory) -> Path:
    """A folder with log/tiny, a finished run on `products`; read-only."""
    folder = tmp_path_factory.mktemp('finished')
    scripts.run(folder, 'main.py', '--config', TINY, '--NAME', 'tiny', '--DATASET_ROOT', products)
    return folder


@pytest.fixture
def seed() -> int:
    """A random seed, printed so that a failure can be repeated."""
    number = random.randrange(10**6)
    print(f'seed {number}')
    return number


@pytest.fixture
def run_folder(finished, tmp_path) -> Path:
    """The test's own copy of `finished`."""
    shutil.copytree(finished / 'log', tmp_path / 'log')
    return tmp_path


@pytest.fixture
def small_disk(tmp_path) -> Iterator:
    """Return a function that mounts a disk of `size` kB and returns its path."""
    path = tmp_path / 'disk'

    def mount(size: int) -> Path:
        path.mkdir()
        command = ['mount', '-t', 'tmpfs', '-o', f'size={size}k', 'none', str(path)]
        if shutil.which('mount') is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip('a small disk can be mounted by root only')
        return path

    yield mount
    if path.is_mount():
        subprocess.run(['umount', str(path)], check=True)
