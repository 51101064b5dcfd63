"""tools/grid.py on the command line."""

import csv
import json
import os
import subprocess
import sys

import pytest

from lib.experiments import records
from lib.experiments.command import parse, run_grid
from tests.aliproducts import make_aliproducts
from tests.scripts.running import ENVIRONMENT, REPOSITORY, TINY, contents

FILES = {'results.md', 'results.csv', 'results.tex', 'results.json', 'results.png', 'grid.json'}


def benchmark(*options):
    command = [sys.executable, REPOSITORY / 'tools' / 'grid.py', *options]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=os.environ | ENVIRONMENT
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (('--base', 'demmo', '--methods', 'ce'), '(did you mean demo?)'),
        (('--base', 'demo', '--methods', 'ce,ldamdrw'), '(did you mean ldam_drw?)'),
    ],
)
def test_an_error_is_one_line(options, words):
    done = benchmark(*options)
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1
    assert words in done.stderr
    assert done.stdout == ''


@pytest.mark.process
def test_finished_runs_are_recorded_although_others_fail(make_grid, tmp_path, monkeypatch, capsys):
    grid = make_grid('ce')
    (grid.repository / 'behaviors.json').write_text('{"tiny_focal_0": "fails"}')
    monkeypatch.setattr('lib.experiments.grid.REPOSITORY', grid.repository)
    file = tmp_path / 'measured.json'
    monkeypatch.setattr(records.save_measured, '__defaults__', (file,))
    options = f'--DATASET_ROOT {tmp_path / "data"} --TRAIN_MAX_EPOCH 1 --RUN_DEVICE cpu'
    arguments = ['--base', grid.base, '--out', grid.out, '--overlays', grid.overlays, '--options', options]
    arguments += ['--methods', 'ce,focal', '--seeds', 1, '--record', '--json', tmp_path / 'more.json']
    assert run_grid(parse(list(map(str, arguments)))) == 2
    printed = capsys.readouterr()
    assert 'error: 1 run failed: tiny_focal_0' in printed.err
    assert 'ce, seed 0: done in' in printed.out
    assert 'Cross entropy' in (grid.out / 'results.md').read_text()
    assert {path.name for path in grid.out.iterdir()} >= FILES
    content = json.loads((tmp_path / 'more.json').read_text())
    assert content['figures']['ce_last_mean_class_error'] == 0.25
    assert list(content['failed']) == ['tiny_focal_0']
    assert {'hardware', 'versions', 'command'} <= content.keys()
    (entry,) = json.loads(file.read_text())
    assert (entry['base'], entry['method'], entry['seeds']) == ('tiny', 'ce', 1)
    # Paths of the data are private and have no influence on the result.
    assert entry['options'] == {'TRAIN.MAX_EPOCH': 1}
    assert str(tmp_path) not in file.read_text()


@pytest.mark.process
@pytest.mark.slow
def test_a_small_grid_end_to_end(tmp_path):
    data, overlays, out = tmp_path / 'data', tmp_path / 'overlays', tmp_path / 'out'
    make_aliproducts(data, 6, (14, 12, 9, 7, 5, 4), valid_per_class=4, size=40)
    convert = [sys.executable, REPOSITORY / 'tools' / 'convert.py', 'aliproducts', data, data]
    subprocess.run(list(map(str, convert)), check=True, capture_output=True)
    # A test split with labels.
    (data / 'converted_test.json').write_text((data / 'converted_val.json').read_text())
    overlays.mkdir()
    (overlays / 'ce.yaml').write_text('LOSS:\n  TYPE: cross_entropy\n')
    (overlays / 'focal.yaml').write_text('LOSS:\n  TYPE: focal\n  GAMMA: 2.0\n')
    options = f'--DATASET_ROOT {data} --TRAIN_MAX_EPOCH 1'
    grid = ('--base', TINY, '--methods', 'ce,focal', '--seeds', 2, '--out', out, '--overlays', overlays, '--jobs', 2)

    first = benchmark(*grid, '--options', options)
    assert first.returncode == 0, first.stdout + first.stderr
    assert {path.name for path in out.iterdir()} == {*FILES, 'runs', 'logs', '.lock'}
    assert sorted(path.name for path in (out / 'runs').iterdir()) == [
        f'tiny_{method}_{seed}' for method in ('ce', 'focal') for seed in (0, 1)
    ]
    ce, focal = csv.DictReader((out / 'results.csv').open())
    assert (ce['method'], focal['method'], ce['seeds'], focal['seeds']) == ('ce', 'focal', '2', '2')
    for row in (ce, focal):
        # The test split has the same images as the valid split.
        assert row['test_mean_class_error'] == row['last_mean_class_error'] != ''
        assert row['last_few'] == row['test_few'] != ''
    assert all(len(text) <= 80 for text in first.stdout.splitlines() if text.startswith('['))

    before = contents(out / 'runs')
    second = benchmark(*grid, '--options', options)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count('already done') == 4
    assert ': train' not in second.stdout
    assert ': test' not in second.stdout
    assert contents(out / 'runs') == before
