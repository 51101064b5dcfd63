"""tools/pack.py: values from the config, errors that name options, and the next command."""

import json
import shutil

import pytest
from PIL import Image

from lib.builders.data import open_training_data
from lib.builders.loader import stored_short_side
from lib.builders.preprocessing import resolve_preprocessing
from lib.commands.pack import next_command, pack
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node, as_values
from lib.errors import UserError
from lib.runtime.temporary import temporary_path
from tests.defaults import DEFAULTS


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
    values = DEFAULTS | changes
    assert stored_short_side(as_node(values)) == expected


@pytest.fixture
def config_of(tmp_path):
    """Return a function that makes the config of packing 20 photos of one class and one of another."""
    for name, number in (('cola', 20), ('tea', 1)):
        (tmp_path / 'shop' / name).mkdir(parents=True)
        for position in range(number):
            Image.new('RGB', (8, 8)).save(tmp_path / 'shop' / name / f'{position}.png')
    values = DEFAULTS | {
        'DATASET.NAME': 'annotations', 'DATASET.ROOT': str(tmp_path / 'shop'), 'DATASET.SOURCE': '',
        'DATASET.VALID_FRACTION': 0.0, 'PACK.OUT': str(tmp_path / 'out'), 'RUN.NUM_WORKERS': 0,
    }  # fmt: skip
    return lambda **changes: as_node(values | {name.replace('__', '.'): value for name, value in changes.items()})


def test_too_many_undecodable_images(config_of, tmp_path):
    for photo in (tmp_path / 'shop' / 'cola').iterdir():
        photo.write_bytes(b'not an image')
    with pytest.raises(UserError, match=r'^20 of 21 images .*, more than DATASET\.MAX_BAD_FRACTION 0\.5; the first is'):
        pack(config_of(DATASET__MAX_BAD_FRACTION=0.5))


def test_conflicts_name_the_options(config_of, tmp_path):
    pack(config_of())
    with pytest.raises(UserError, match=r'was packed with .*; give another --PACK_OUT, or --OVERWRITE True, which'):
        pack(config_of(PACK__IMAGES='copy'))
    (tmp_path / 'other' / 'train').mkdir(parents=True)
    (tmp_path / 'other' / 'train' / 'notes.txt').touch()
    with pytest.raises(UserError, match=r'not packed images; give another --PACK_OUT$'):
        pack(config_of(PACK__OUT=str(tmp_path / 'other')))


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_stopped_packing_is_not_read_and_is_resumed(config_of, tmp_path, overwrite):
    """Also where the same command has renamed an earlier result, and after a kill before the first file of a split."""
    out = tmp_path / 'out'
    config = config_of(DATASET__VALID_FRACTION=0.1, OVERWRITE=overwrite)
    pack(config)
    shards = config_of(DATASET__SHARDS=str(out), DATASET__ROOT='')
    assert open_training_data(shards).valid is not None
    shutil.rmtree(out / 'valid')
    (out / 'valid').mkdir()
    temporary_path(out / 'valid' / 'pack.json').touch()
    (out / '_info.json').unlink()
    temporary_path(out / '_info.json').touch()
    train = (out / 'train' / 'index.arrow').stat().st_ino
    with pytest.raises(UserError, match=r'packing was stopped before _info\.json was written; run the same command'):
        open_training_data(shards)
    pack(config)
    assert open_training_data(shards).valid is not None
    assert (out / 'train' / 'index.arrow').stat().st_ino == train
    assert not (tmp_path / 'out_old').exists()
    pack(config)  # of a finished one, OVERWRITE renames the result
    assert (tmp_path / 'out_old').exists() == overwrite


def test_images_are_stored_for_the_sizes_of_the_recipe(config_of, tmp_path):
    """As main.py chooses them for 21 images: 160 px, tested at 180."""
    auto = {'INPUT.SIZE': 0, 'INPUT.TEST_SIZE': -1, 'INPUT.CROP_RATIO': 0.0, 'OPTIMIZER.LR': KEYS['OPTIMIZER.LR'].auto}
    backbone = {'MODEL.BACKBONE': 'tf_efficientnet_lite0', 'MODEL.PRETRAINED': 'bundled'}
    pack(resolve_preprocessing(as_node(as_values(config_of()) | auto | backbone), trains=True))
    assert json.loads((tmp_path / 'out' / 'train' / 'pack.json').read_text())['short_side'] == 258
