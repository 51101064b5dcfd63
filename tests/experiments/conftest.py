"""A grid whose scripts are small stand-ins: they leave what main.py and its like leave, without training anything."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.experiments.grid import Grid
from lib.experiments.method_list import METHODS
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint, TrainProgress, TrainingSet
from tests.scripts.running import TINY

STAND_IN = Path(__file__).with_name('fakes.py')


@pytest.fixture
def make_grid(tmp_path):
    """Return a function (methods, **changes) -> Grid in tmp_path, whose runs last one epoch."""
    repository, overlays, data = tmp_path / 'repository', tmp_path / 'overlays', tmp_path / 'data'
    for folder in (repository, overlays, data):
        folder.mkdir()
    for script in ('main.py', 'test.py', 'tau_norm.py'):
        shutil.copy(STAND_IN, repository / script)
    for name in METHODS:
        (overlays / f'{name}.yaml').write_text('')
    (overlays / 'dive.yaml').write_text('LOSS:\n  AUXILIARY: distillation\n')  # only then is a teacher of use
    training_set = TrainingSet('digest', np.array([3, 1]), ['a', 'b'], [])
    done = Checkpoint({'classifier.weight': torch.zeros(2, 1)}, '', {}, TrainProgress(epoch=1), training_set, {})
    write_checkpoint(repository / 'done.pth', done)

    def make(methods, **changes):
        values = {
            'base': TINY,
            'methods': tuple(METHODS[name] for name in methods.split(',')),
            'seeds': 1,
            'out': tmp_path / 'out',
            'options': ('--DATASET_ROOT', str(data), '--TRAIN_MAX_EPOCH', '1'),
            'overlays': overlays,
            'repository': repository,
        }
        return Grid(**{**values, **changes})

    return make


@pytest.fixture
def calls(tmp_path):
    """Return a function that gives [(script, run, options that matter here)] of what was called so far, in order."""

    def read():
        file = tmp_path / 'repository' / 'calls.jsonl'
        return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    return read
