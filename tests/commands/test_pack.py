"""What packing takes from the config, and what it tells to type next."""

import pytest

from lib.builders.loader import stored_short_side
from lib.commands.pack import next_command
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node


@pytest.mark.parametrize(
    ('typed', 'expected'),
    [
        ('--PACK_OUT p', ''),
        ('--DATASET_ROOT shop --PACK_OUT p --PACK_IMAGES copy', '--DATASET_ROOT shop '),
        ('--config a.yaml b.yaml --PACK_OUT p --OVERWRITE True', '--config a.yaml b.yaml '),
        ('--PACK_OUT=p --PACK_QUALITY=80 --SEED=3', '--SEED=3 '),
        ('--DATASET_SHARDS old --PACK_OUT p --SEED -1', '--SEED -1 '),
    ],
)
def test_next_command(typed, expected):
    assert next_command(typed.split(), 'p') == f'python main.py {expected}--DATASET_SHARDS p'


def test_next_command_is_quoted():
    assert next_command(['--DATASET_ROOT', 'my photos'], 'a b') == (
        "python main.py --DATASET_ROOT 'my photos' --DATASET_SHARDS 'a b'"
    )


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, 160),
        ({'INPUT.SIZE': 224}, 320),
        ({'INPUT.TEST_SIZE': 224}, 320),
        ({'INPUT.CROP_RATIO': 1.0}, 140),
        ({'INPUT.SIZE_SCHEDULE': (0, 64, 5, 224)}, 320),
        ({'INPUT.SIZE_SCHEDULE': (0, 64)}, 160),
        ({'INPUT.SIZE_SCHEDULE': (0, 64), 'INPUT.TEST_SIZE': 56}, 92),
        ({'INPUT.SIZE': 113, 'INPUT.CROP_RATIO': 1.0}, 142),
    ],
    ids=str,
)
def test_short_side(changes, expected):
    values = {name: key.default for name, key in KEYS.items()} | changes
    assert stored_short_side(as_node(values)) == expected
