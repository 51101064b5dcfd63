"""Fixtures of the tests of scripts: these, and the inputs of all commands."""

import pytest

from tests.faults.commands import make_inputs
from tests.scripts.conftest import finished, products, scripts, seed, small_disk
from tests.scripts.running import TINY

__all__ = ['finished', 'products', 'scripts', 'seed', 'small_disk']


@pytest.fixture(scope='session')
def inputs(scripts, tmp_path_factory):
    """Return a folder with the inputs of all cases; read-only."""
    folder = tmp_path_factory.mktemp('inputs')
    make_inputs(folder)
    scripts.run(folder, 'tools/convert.py', 'aliproducts', 'goods', 'goods')
    scripts.run(folder, 'main.py', '--config', TINY, '--DATASET_ROOT', 'goods', '--NAME', 'tiny')
    return folder
