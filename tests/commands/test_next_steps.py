"""The next steps at the end of the scripts: commands that a shell and the scripts accept, in 80 columns."""

import os
import random
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lib.builders.preprocessing import resolve_preprocessing
from lib.commands.next_steps import (
    Step,
    after_prediction,
    after_rebalancing,
    after_training,
    cleaned_training,
    command_lines,
    step_lines,
)
from lib.commands.predict_output import PredictResult
from lib.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]


def read_by_shell(lines):
    """Return the words of a command in lines: a backslash at the end continues the line."""
    return shlex.split('\n'.join(lines).replace('\\\n', ' '))


def commands_in(lines):
    """Return the words of each command below a purpose."""
    assert lines[0] == 'next steps'
    blocks = '\n'.join(lines[1:]).split('\n- ')
    return [read_by_shell(block.splitlines()[1:]) for block in blocks]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a function that makes a finished run in my_photos, with the command line that started it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('lib.runtime.checkout.CHECKOUT', tmp_path / 'code')
    (tmp_path / 'my_photos').mkdir()

    def finished(*options, counts=(40, 7), valid=True, world_size=1):
        argv = ['--DATASET_ROOT', 'my_photos', *options]
        loaded = load_config(argv, program='', description='', find_checkpoint_config=lambda *_: None)
        cfg = resolve_preprocessing(loaded.cfg)
        trainer = SimpleNamespace(
            info=SimpleNamespace(training_set=SimpleNamespace(class_counts=np.array(counts))),
            folder=SimpleNamespace(path=Path(cfg.LOG_ROOT, cfg.NAME)),
            group=SimpleNamespace(world_size=world_size),
        )
        return SimpleNamespace(cfg=cfg, data=SimpleNamespace(valid=object() if valid else None), trainer=trainer)

    return finished


def scripts_after(run, **changes):
    return [words[1].rpartition('/')[2] for words in commands_in(after_training(run, Path('r.html')))[1:]]


def test_the_steps_after_training(run):
    options = ('--MODEL_PRETRAINED', '', '--TRAIN_MAX_EPOCH', '5', '--NAME', 'first')
    lines = after_training(run(*options), Path('log/first/report.html'))
    assert max(map(len, lines)) <= 80
    report, test, tau_norm, again = commands_in(lines)
    assert report == ['log/first/report.html']
    model = ['--RESUME_MODEL', 'log/first/best_model.pth']
    assert test == ['python', 'code/test.py', *model, '--TEST_IMAGES', 'FOLDER']
    assert tau_norm == ['python', 'code/tau_norm.py', *model]
    assert again[:4] == ['python', 'code/main.py', '--config', 'code/configs/own_photos.yaml']
    again[3] = str(ROOT / 'configs/own_photos.yaml')
    loaded = load_config(again[2:], program='', description='', find_checkpoint_config=lambda *_: None)
    cfg = resolve_preprocessing(loaded.cfg)
    assert (cfg.NAME, cfg.DATASET.ROOT, cfg.MODEL.PRETRAINED) == ('first_pretrained', 'my_photos', 'bundled')
    for words in (test, tau_norm):
        load_config(words[2:], program='', description='', find_checkpoint_config=lambda *_: 'NAME: first')


def test_only_steps_that_apply_are_listed(run, tmp_path):
    scratch = ('--MODEL_PRETRAINED', '')
    assert scripts_after(run()) == ['test.py', 'tau_norm.py']
    assert scripts_after(run(*scratch)) == ['test.py', 'tau_norm.py', 'main.py']
    assert scripts_after(run(counts=(10, 9, 0))) == ['test.py']  # equal sizes: nothing to re-balance
    assert scripts_after(run(valid=False)) == ['test.py']
    assert scripts_after(run('--MODEL_CLASSIFIER', 'FCNorm')) == ['test.py']
    assert scripts_after(run(*scratch, world_size=2)) == ['test.py', 'tau_norm.py']  # it would start one process
    (tmp_path / 'my_photos' / 'test').mkdir()
    test = commands_in(after_training(run(), Path('r.html')))[1]
    assert test == ['python', 'code/test.py', '--RESUME_MODEL', 'log/my_photos/best_model.pth']


def test_the_step_after_rebalancing(run):
    (test,) = commands_in(after_rebalancing(run().cfg, [Path('log_tau/x/best_model.pth'), Path('log_tau/x/tau.json')]))
    assert test[2:] == ['--RESUME_MODEL', 'log_tau/x/best_model.pth', '--TEST_IMAGES', 'FOLDER']
    assert after_rebalancing(run().cfg, []) == []  # not the main rank
    assert step_lines([]) == []


def test_the_steps_after_prediction(run, monkeypatch):
    files = [Path('log/x/predictions_new.csv'), Path('log/x/predictions_new.html')]
    model = ['--RESUME_MODEL', 'x.pth']

    def after(*options, metrics=None, files=files):
        monkeypatch.setattr(sys, 'argv', ['test.py', *model, *options])
        cfg = load_config(
            [*model, *options], program='', description='', find_checkpoint_config=lambda *_: 'NAME: x'
        ).cfg
        lines = after_prediction(cfg, PredictResult(metrics or {}, files=files))
        return commands_in(lines) if lines else []

    page, top, accuracy = after('--TEST_IMAGES', 'new photos')
    assert page == ['log/x/predictions_new.html']
    assert top == ['python', 'test.py', *model, '--TEST_IMAGES', 'new photos', '--TEST_TOP_K', '5']
    assert accuracy == ['python', 'code/test.py', *model, '--TEST_IMAGES', 'FOLDER']
    assert after(metrics={'top1': 1.0}) == [page, ['python', 'test.py', *model, '--TEST_TOP_K', '5']]
    assert after('--TEST_IMAGES', '-', '--TEST_TOP_K', '3') == [page, accuracy]
    assert after('--TEST_IMAGES', '-') == [page, accuracy]
    assert after('--TEST_PART', '3/64', files=files[:1]) == []
    assert after('--TEST_PART', 'merge/64') == [page]
    assert after(files=[]) == []  # not the main rank


@pytest.mark.skipif(os.name != 'posix', reason='lines are continued for shells of POSIX')
def test_a_shell_reads_the_words():
    seed = random.randrange(1 << 30)
    print('seed', seed)
    draw = random.Random(seed)
    for _ in range(200):
        words = ['python', 'main.py']
        for _ in range(draw.randint(0, 12)):
            words.append('--' + ''.join(draw.choices('ABC_', k=draw.randint(1, 20))))
            words += [''.join(draw.choices('ab c\'"\\$*é~', k=draw.randint(0, 12))) for _ in range(draw.randint(0, 3))]
        lines = command_lines(words)
        assert read_by_shell(lines) == words
        assert all(line.startswith('    ') for line in lines)
        assert all(len(line) <= 80 or len(line.split(' --')) <= 2 for line in lines)


def test_a_long_path_stays_whole():
    path = 'x/' * 60 + 'report.html'
    assert step_lines([Step('read', [path])]) == ['next steps', '- read:', f'    {path}']


@pytest.mark.parametrize('config', [None, Path('log/shop/config.yaml')])
def test_training_after_cleaning_uses_the_data_that_was_cleaned(monkeypatch, config):
    options = ['--RESUME_MODEL', 'best_model.pth', '--DATASET_QUARANTINE', 'quarantine.json', '--CLEAN_ROUNDS', '3']
    monkeypatch.setattr('sys.argv', ['tools/clean.py', *options])
    words = cleaned_training(SimpleNamespace(NAME='shop'), 'decisions.json', config)
    assert words[2:] == [
        *(['--config', str(config)] if config else []), '--DATASET_QUARANTINE', 'quarantine.json',
        '--NAME', 'shop_cleaned', '--DATASET_CORRECTIONS', 'decisions.json',
    ]  # fmt: skip
