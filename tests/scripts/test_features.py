"""The features of a split are computed once; the cache is used only for the same model, images and input options."""

import json
import shutil

import numpy as np
import torch

from lib.runtime.column_store import ColumnStore
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.scripts.running import ON_CPU

MODEL = 'log/tiny/best_model.pth'
CACHED = 'using cached features of the valid split'


def rebalance(scripts, folder, *options):
    shutil.rmtree(folder / 'log_tau', ignore_errors=True)
    done = scripts.run(folder, 'tau_norm.py', '--RESUME_MODEL', MODEL, *options, *ON_CPU)
    return done.stdout, json.loads((folder / 'log_tau' / 'tiny' / 'tau.json').read_text())


def test_the_second_run_uses_the_cache(scripts, run_folder):
    first, expected = rebalance(scripts, run_folder)
    assert CACHED not in first
    second, found = rebalance(scripts, run_folder)
    assert CACHED in second
    assert found == expected
    store = ColumnStore(run_folder / 'log' / 'tiny' / 'features' / 'best_model-valid')
    # An interrupted pass: only the missing rows are computed.
    complete = store.columns['features'].copy()
    with open(store.folder / 'features.npy', 'r+b') as file:
        file.truncate(file.seek(-8, 2))
    third, found = rebalance(scripts, run_folder)
    assert CACHED not in third
    assert found == expected
    assert np.array_equal(ColumnStore(store.folder).columns['features'], complete)


def test_other_weights_images_or_input_options_are_computed_again(scripts, run_folder, products):
    path = run_folder / MODEL
    rebalance(scripts, run_folder)
    checkpoint = read_checkpoint(path)
    checkpoint.state_dict['classifier.bias'] += 1
    write_checkpoint(path, checkpoint)
    assert CACHED in rebalance(scripts, run_folder)[0], 'features do not depend on the classifier'
    key = next(key for key in checkpoint.state_dict if key.startswith('backbone.') and key.endswith('.weight'))
    checkpoint.state_dict[key] += 0.1 * torch.randn_like(checkpoint.state_dict[key])
    write_checkpoint(path, checkpoint)
    assert CACHED not in rebalance(scripts, run_folder)[0]
    assert CACHED not in rebalance(scripts, run_folder, '--INPUT_CROP_RATIO', '0.9')[0]
    copy = run_folder / 'copy'
    shutil.copytree(products, copy, copy_function=shutil.copy)  # another folder, other times
    assert CACHED not in rebalance(scripts, run_folder, '--INPUT_CROP_RATIO', '0.9', '--DATASET_ROOT', copy)[0]
