"""Fixtures: the scripts, in forks of a process that has imported torch, and the small data set and run of their tests."""

from tests.scripts.conftest import finished, products, scripts, seed, small_disk

__all__ = ['finished', 'products', 'scripts', 'seed', 'small_disk']
