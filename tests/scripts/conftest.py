"""The scripts ready to be run, and small sets to run them on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aliproducts import make_aliproducts
from tests.scripts.running import ENVIRONMENT, TINY, Scripts


@pytest.fixture(scope='session')
def scripts(tmp_path_factory) -> Iterator[Scripts]:
    if not hasattr(os, 'fork'):
        pytest.skip('this system cannot fork')
    command = [sys.executable, str(Path(__file__).with_name('preloaded.py'))]
    environment = os.environ | ENVIRONMENT
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        yield Scripts(server, tmp_path_factory.mktemp('said'))
        server.stdin.close()


@pytest.fixture(scope='session')
def products(scripts, tmp_path_factory) -> Path:
    """Six classes of 14 to 4 training images, 4 valid images each, 6 test images: converted, not to be changed."""
    folder = tmp_path_factory.mktemp('products')
    make_aliproducts(folder, 6, (14, 12, 9, 7, 5, 4), valid_per_class=4, size=40)
    scripts.run(folder, 'tools/convert.py', 'aliproducts', folder, folder)
    return folder


@pytest.fixture(scope='session')
def finished(scripts, products, tmp_path_factory) -> Path:
    """A folder with log/tiny, a finished run on `products`: not to be changed."""
    folder = tmp_path_factory.mktemp('finished')
    scripts.run(folder, 'main.py', '--config', TINY, '--NAME', 'tiny', '--DATASET_ROOT', products)
    return folder


@pytest.fixture
def run_folder(finished, tmp_path) -> Path:
    """A copy of `finished` of the test's own."""
    shutil.copytree(finished / 'log', tmp_path / 'log')
    return tmp_path


@pytest.fixture
def small_disk(tmp_path) -> Iterator:
    """Return a function that makes a disk of so many kB."""
    place = tmp_path / 'disk'

    def mount(size: int) -> Path:
        place.mkdir()
        command = ['mount', '-t', 'tmpfs', '-o', f'size={size}k', 'none', str(place)]
        if shutil.which('mount') is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip('a small disk can be mounted by root only')
        return place

    yield mount
    if place.is_mount():
        subprocess.run(['umount', str(place)], check=True)
