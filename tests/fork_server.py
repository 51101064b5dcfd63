"""Imported by the fork server of the tests, from which ranks and loading workers are forked: what they import is there.

pytest and hypothesis are imported by the modules whose functions run on ranks.
"""

import gc

import hypothesis  # noqa: F401
import pyarrow
import pytest  # noqa: F401

import tests.ranks  # noqa: F401

pyarrow.array([])  # imports pandas if that is installed
# Otherwise a garbage collection in a fork would visit all that is imported here, and copy its memory.
gc.collect()
gc.freeze()
