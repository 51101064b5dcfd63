"""A grid with fake scripts, which write the files of main.py, test.py and tau_norm.py without training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.experiments.grid import Grid
from lib.experiments.method_list import METHODS
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, TrainProgress
from tests.scripts.running import TINY

FAKES = Path(__file__).with_name('fakes.py')


@pytest.fixture
def make_grid(tmp_path):
    """Return a function (methods, **changes) -> Grid in tmp_path, with runs of one epoch."""
    repository, overlays, data = tmp_path / 'repository', tmp_path / 'overlays', tmp_path / 'data'
    for folder in (repository, overlays, data):
        folder.mkdir()
    for script in ('main.py', 'test.py', 'tau_norm.py'):
        shutil.copy(FAKES, repository / script)
    for name in METHODS:
        (overlays / f'{name}.yaml').write_text('')
    (overlays / 'dive.yaml').write_text('LOSS:\n  AUXILIARY: distillation\n')  # LOSS.TEACHER is only valid with it
    training_set = TrainingSet('digest', np.array([3, 1]), ['a', 'b'], [])
    weights = {'classifier.weight': torch.zeros(2, 1)}
    done = Checkpoint(weights, '', {}, TrainProgress(epoch=1), training_set, optimizer={})
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
    """Return a function () -> [(script, run, tested options)] of all calls so far, in order."""

    def read():
        file = tmp_path / 'repository' / 'calls.jsonl'
        return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    return read
