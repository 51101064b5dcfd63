"""The five command lines for AliProducts, unchanged, on a small set in the challenge's file format."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from lib.config.load import load_config
from lib.trainer.checkpointing.io import read_checkpoint
from tests.aliproducts import make_aliproducts
from tests.scripts.running import ENVIRONMENT, REPOSITORY, contents, metrics_of

DATA = 'sh ./dataset/get_dataset_AiProducts.sh'
TRAIN = 'python main.py'
FINETUNE = (
    'python main.py --RESUME_MODEL ./log/AiProducts/best_model.pth '
    '--DATASET_TRAIN_JSON ./dataset/AiProducts/converted_val.json'
)
PREDICT = 'python test.py --RESUME_MODEL ./log/AiProducts/best_model.pth'
REBALANCE = 'python tau_norm.py --RESUME_MODEL ./log/AiProducts/best_model.pth'

# The recipe of the original entry, which the config of the repository must equal.
RECIPE = {
    'NAME': 'AiProducts',
    'DATASET.HEAD_CAP': 250,
    'DATASET.COLOR_SPACE': 'RGB',
    'INPUT.SIZE': 112,
    'INPUT.SCALE': (0.08, 1.0),
    'SAMPLER.TYPE': 'instance_balance',
    'SAMPLER.SWITCH_TYPE': 'class_balance',
    'SAMPLER.SWITCH_EPOCH': 40,
    'MODEL.BACKBONE': 'resnest50',
    'MODEL.CLASSIFIER': 'FC',
    'LOSS.TYPE': 'cross_entropy',
    'LOSS.LABEL_SMOOTHING': 0.0,
    'OPTIMIZER.TYPE': 'sgd',
    'OPTIMIZER.LR': 0.5,
    'OPTIMIZER.MOMENTUM': 0.9,
    'OPTIMIZER.WEIGHT_DECAY': 1e-4,
    'TRAIN.BATCH_SIZE': 512,
    'TRAIN.MAX_EPOCH': 120,
}
SMALL = {
    'BACKBONE: resnest50': 'BACKBONE: test_resnet',
    'SIZE: 112': 'SIZE: 32',
    'BATCH_SIZE: 512': 'BATCH_SIZE: 8',
    'MAX_EPOCH: 120': 'MAX_EPOCH: 3',
    'LR: 0.5': 'LR: 0.05',
    'SWITCH_EPOCH: 40': 'SWITCH_EPOCH: 2',
}
WITH_CONFIGS = 'tests/scripts/with_configs.py'
ONE_EPOCH = {'MAX_EPOCH: 120': 'MAX_EPOCH: 1'}


def test_the_recipe_is_the_original_one():
    from lib.builders.optim import build_schedule

    cfg = load_config([], program='main.py', description='', find_checkpoint_config=lambda *_: None).cfg
    for name, expected in RECIPE.items():
        section, _, key = name.rpartition('.')
        assert getattr(cfg[section] if section else cfg, key) == expected, name
    rate = build_schedule(cfg, steps_per_epoch=10)
    rates = {0: 0.5, 9: 0.5, 10: 0.05, 20: 5e-3, 30: 5e-4, 49: 5e-4, 50: 1e-4, 119: 1e-4}
    for epoch, expected in rates.items():
        for step in (10 * epoch, 10 * epoch + 9):
            assert rate(step) == pytest.approx(expected), epoch


@pytest.fixture
def home(tmp_path):
    """Create a copy of the repository; the official files belong in dataset/AiProducts."""
    copy = tmp_path / 'repository'
    for name in ('lib', 'configs', 'tools'):
        shutil.copytree(REPOSITORY / name, copy / name)
    for name in ('main.py', 'test.py', 'tau_norm.py'):
        shutil.copy(REPOSITORY / name, copy)
    (copy / 'dataset').mkdir()
    shutil.copy(REPOSITORY / 'dataset' / 'get_dataset_AiProducts.sh', copy / 'dataset')
    python = copy / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return copy


def edit_config(home, changes):
    """Apply changes to the copy of configs/AiProducts.yaml."""
    path = home / 'configs' / 'AiProducts.yaml'
    text = path.read_text()
    for old, new in changes.items():
        text, number = re.subn(rf'^( *){re.escape(old)}$', rf'\g<1>{new}', text, flags=re.MULTILINE)
        assert number == 1, old
    path.write_text(f'{text}RUN:\n  NUM_WORKERS: 0\n')


def run_cold(home, line):
    """Run a command line in a new process; `python` is that of the virtual environment."""
    path = f'{home / ".venv" / "bin"}{os.pathsep}{os.environ["PATH"]}'
    environment = os.environ | ENVIRONMENT | {'PATH': path}
    done = subprocess.run(shlex.split(line), cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f'{line}\n{done.stdout}\n{done.stderr}'
    return done


@pytest.fixture
def run_warm(scripts):
    """Return a function like run_cold() that runs Python scripts in forks, with the configs of the copy."""

    def run_line(home, line):
        program, *words = shlex.split(line)
        if program != 'python':
            return run_cold(home, line)
        script, *options = words
        return scripts.run(home, WITH_CONFIGS, home / 'configs', home / script, *options, report=line != FINETUNE)

    return run_line


def run_all(home, run_line, num_images, max_epoch):
    """Run the five lines, check the files that each of them writes, and return the metrics of the first run."""
    log, log_tau = home / 'log', home / 'log_tau' / 'AiProducts'
    done = run_line(home, DATA)
    assert TRAIN in done.stdout
    done = run_line(home, TRAIN)
    assert f'train: {num_images} images' in done.stdout
    first = log / 'AiProducts'
    files = 'config.yaml environment.txt log.txt metrics.jsonl last.pth best_model.pth report.html'
    assert set(files.split()) <= {path.name for path in first.iterdir()}
    assert list(first.glob('events.out.tfevents.*'))
    before = contents(first)

    done = run_line(home, FINETUNE)
    assert 'another training set' in done.stdout
    assert 'validation images are training images' in done.stderr
    assert contents(first) == before
    assert {path.name for path in log.iterdir()} == {'AiProducts', 'AiProducts_finetune'}
    assert [line['epoch'] for line in metrics_of(log / 'AiProducts_finetune')][-1] == max_epoch
    tuned = read_checkpoint(log / 'AiProducts_finetune' / 'best_model.pth')
    assert tuned.progress.epoch == max_epoch
    known = read_checkpoint(first / 'best_model.pth').training_set
    assert tuned.training_set.class_counts.tolist() == known.class_counts.tolist()

    run_line(home, PREDICT)
    images = json.loads((home / 'dataset' / 'AiProducts' / 'converted_test.json').read_text())['images']
    with open(first / 'predictions_test.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['id', 'predicted']
    assert [row['id'] for row in rows] == [image['image_id'] for image in images]
    assert all(0 <= int(row['predicted']) < known.num_classes for row in rows)
    assert {name: digest for name, digest in contents(first).items() if not name.startswith('predictions_')} == before

    run_line(home, REBALANCE)
    assert {'best_model.pth', 'tau.json', 'tau.png', 'report.html'} <= {path.name for path in log_tau.iterdir()}
    tau = json.loads((log_tau / 'tau.json').read_text())
    assert tau['after']['mean_class_error'] <= tau['before']['mean_class_error']
    assert read_checkpoint(log_tau / 'best_model.pth').num_classes == known.num_classes
    assert {name: digest for name, digest in contents(first).items() if not name.startswith('predictions_')} == before
    return metrics_of(first)


def check_five_lines(home, run_line):
    make_aliproducts(home / 'dataset' / 'AiProducts', 6, (12, 9, 7, 5, 4, 3), valid_per_class=3, size=40)
    edit_config(home, SMALL)
    metrics = run_all(home, run_line, num_images=40, max_epoch=3)
    assert [(line['epoch'], line['split']) for line in metrics] == [
        (epoch, split) for epoch in (1, 2, 3) for split in ('train', 'valid')
    ]
    common = {'epoch', 'split', 'loss', 'top1', 'lr', 'images_per_second', 'seconds'}
    for train, valid in zip(metrics[::2], metrics[1::2], strict=True):
        assert train.keys() == common
        assert valid.keys() == common | {'top5', 'mean_class_error', 'few'}  # no class has 20 training images
        assert train['lr'] == valid['lr']
        assert all(0 <= valid[name] <= 1 for name in ('top1', 'top5', 'mean_class_error', 'few'))


def test_five_lines(home, run_warm):
    check_five_lines(home, run_warm)


@pytest.mark.slow
@pytest.mark.process
def test_five_lines_from_cold_starts(home):
    check_five_lines(home, run_cold)


@pytest.mark.slow
@pytest.mark.process
def test_five_lines_with_the_real_backbone(home):
    """Train ResNeSt-50 at 112 px, as in the config, for one epoch of one batch."""
    make_aliproducts(home / 'dataset' / 'AiProducts', 4, (9, 5, 3, 2), valid_per_class=2, size=130)
    edit_config(home, ONE_EPOCH)
    run_all(home, run_cold, num_images=19, max_epoch=1)


def test_without_data(scripts, tmp_path):
    done = scripts.run(tmp_path, 'main.py', code=2)
    assert done.stderr.count('\n') == 1
    for part in ('AliProducts is behind a login', DATA, 'python main.py --config configs/demo.yaml'):
        assert part in done.stderr
    assert list(tmp_path.iterdir()) == []
