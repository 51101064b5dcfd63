"""Names of the files of predictions."""

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.commands.predict_inputs import Source
from lib.commands.predict_output import check_columns, claim_stem
from lib.config.yaml_text import as_node
from lib.errors import UserError
from tests.defaults import DEFAULTS


def model(folder, checkpoint='best_model.pth', **options):
    """Return a fake LoadedModel with options of the command line; the checkpoint has the defaults."""
    values = DEFAULTS | {name.replace('__', '.'): value for name, value in options.items()}
    config = f'INPUT: {{SIZE: {DEFAULTS["INPUT.SIZE"]}}}'
    return SimpleNamespace(
        cfg=as_node(values), checkpoint=SimpleNamespace(config=config), path=folder / checkpoint, folder=folder
    )


def claim(folder, name, identity, checkpoint='best_model.pth', **options):
    return claim_stem(model(folder, checkpoint, **options), Source(name, identity)).name


def test_predictions_of_older_versions_keep_their_names(tmp_path):
    assert claim(tmp_path, 'photos', '/a/photos') == 'predictions_photos'
    recorded = json.loads((tmp_path / 'predictions_photos.json').read_text())
    assert 'INPUT.INTERPOLATION' not in recorded['options'], 'they knew only the bilinear filter'
    assert claim(tmp_path, 'photos', '/a/photos', INPUT__INTERPOLATION='bicubic') == 'predictions_photos_2'


def test_names(tmp_path):
    assert claim(tmp_path, 'photos', '/a/photos') == 'predictions_photos'
    assert claim(tmp_path, 'photos', '/b/photos') == 'predictions_photos_2'
    assert claim(tmp_path, 'photos', '/a/photos') == 'predictions_photos'
    assert claim(tmp_path, 'photos_2', '/photos_2') == 'predictions_photos_2_2'
    assert claim(tmp_path, 'photos', '/a/photos', 'epoch_10.pth') == 'epoch_10_predictions_photos'
    assert claim(tmp_path, 'photos', '/a/photos', TEST__FLIP=True, TEST__CROPS='five') == 'predictions_photos.five.flip'
    assert claim(tmp_path, 'photos', '/a/photos', INPUT__TEST_SIZE=320) == 'predictions_photos.320px'
    assert claim(tmp_path, 'photos', '/a/photos', INPUT__CROP_RATIO=0.5) == 'predictions_photos_3'
    # Files beside a prediction begin with a dot after its name: no source can have one of them.
    assert claim(tmp_path, 'photos.top3', '/photos.top3') == 'predictions_photos_top3'


@pytest.mark.parametrize('name', ['', '.', '..', '/', 'a/b', 'CON', '-', 'x' * 300, 'ж' * 300, '\udce9', 'a\nb', '💡'])
def test_any_name_is_a_file_name(tmp_path, name):
    stem = claim(tmp_path, name, 'somewhere')
    assert stem.startswith('predictions_')
    assert len(stem) > len('predictions_')
    assert not set('/\\:*?"<>|.\n') & set(stem)
    assert len(f'{stem}.risk_coverage.json'.encode()) < 200
    (tmp_path / f'{stem}.csv').write_text('')


def test_random_predictions_never_share_a_name(tmp_path):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    draws = random.Random(seed)
    names = ['p', 'p_2', 'p.flip', 'p.top3', 'P', 'p_2_2', 'é', 'e\u0301', 'last_predictions_p', 'predictions_p']
    everything = list(itertools.product(names, ['/a', '/b'], ['best_model.pth', 'last.pth'], [False, True]))
    chosen = draws.choices(everything, k=60)
    stems = {}
    for name, parent, checkpoint, flip in chosen:
        stem = claim(tmp_path, name, f'{parent}/{name}', checkpoint, TEST__FLIP=flip)
        assert stems.setdefault((name, parent, checkpoint, flip), stem) == stem
    assert len(set(stems.values())) == len(stems)


def test_a_file_without_a_record_is_not_replaced(tmp_path):
    (tmp_path / 'predictions_photos.csv').write_text('by hand')
    assert claim(tmp_path, 'photos', '/a/photos') == 'predictions_photos_2'
    (tmp_path / 'predictions_photos_2.json').write_text('damaged')
    (tmp_path / 'predictions_photos_2.csv').write_text('x')
    assert claim(tmp_path, 'photos', '/a/photos') == 'predictions_photos_3'


def test_a_moved_run_folder_has_the_same_names(tmp_path):
    (tmp_path / 'run').mkdir()
    claim(tmp_path / 'run', 'photos', '/a/photos')
    (tmp_path / 'run' / 'predictions_photos.csv').write_text('x')
    Path(tmp_path / 'run').rename(tmp_path / 'moved')
    assert claim(tmp_path / 'moved', 'photos', '/a/photos') == 'predictions_photos'


@pytest.mark.parametrize('columns', [(), ('id', 'foo'), ('id', 'id')])
def test_wrong_columns(columns):
    with pytest.raises(UserError, match=r'TEST\.COLUMNS is .*id, predicted, name, probability'):
        check_columns(columns)
