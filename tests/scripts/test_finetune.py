"""Fine-tuning as a user runs it: other classes and images, and a first run that does not change."""

import json
from collections import Counter

import pytest
import torch

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import ON_CPU, contents, error_line, metrics_of

TUNE = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)


def other_classes(products, folder):
    """Write annotations for classes 4, new, 1, 0 of `products` in that order; return their names."""
    old = json.loads((products / 'classes.json').read_text())['names']
    names = [old[4], 'brand new', old[1], old[0]]
    label_of = {4: 0, 5: 1, 1: 2, 0: 3}  # class 5 is the new class
    for split in ('train', 'val'):
        found = json.loads((products / f'converted_{split}.json').read_text())['annotations']
        kept = [
            {'category_id': label_of[entry['category_id']], 'fpath': entry['fpath']}
            for entry in found
            if entry['category_id'] in label_of
        ]
        if split == 'train':
            kept = kept[: len(kept) // 2 * 2 : 2] + [entry for entry in kept if entry['category_id'] == 1]
        (folder / f'{split}.json').write_text(json.dumps({'annotations': kept, 'num_classes': 4}))
    (folder / 'classes.json').write_text(json.dumps({'names': names}))
    return names


def test_other_classes(scripts, products, run_folder):
    names = other_classes(products, run_folder)
    before = contents(run_folder / 'log' / 'tiny')
    data = ('--DATASET_TRAIN_JSON', 'train.json', '--DATASET_VALID_JSON', 'val.json')
    # With a learning rate of 0, the transferred rows do not change.
    done = scripts.run(run_folder, 'main.py', *TUNE, *data, '--OPTIMIZER_LR', 0, '--TRAIN_MAX_EPOCH', 1)
    assert 'fine-tuning from log/tiny/best_model.pth into log/tiny_finetune: another training set' in done.stdout
    assert '1 class new to the checkpoint: brand new' in done.stdout
    assert contents(run_folder / 'log' / 'tiny') == before
    old = read_checkpoint(run_folder / 'log' / 'tiny' / 'best_model.pth')
    new = read_checkpoint(run_folder / 'log' / 'tiny_finetune' / 'best_model.pth')
    assert new.training_set.class_names == names
    assert new.progress.epoch == 1
    for key in ('classifier.weight', 'classifier.bias'):
        for row, old_row in ((0, 4), (2, 1), (3, 0)):
            assert torch.equal(new.state_dict[key][row], old.state_dict[key][old_row])
        assert not any(torch.equal(new.state_dict[key][1], other) for other in old.state_dict[key])
    for key, value in new.state_dict.items():
        if key.startswith('backbone.') and 'running' not in key and 'num_batches' not in key:
            assert torch.equal(value, old.state_dict[key])
    # Many, medium, few: the original counts for the trained classes, its own count for the new class.
    counts = Counter(
        entry['category_id'] for entry in json.loads((run_folder / 'train.json').read_text())['annotations']
    )
    assert new.training_set.class_counts.tolist() == [5, counts[1], 12, 14]
    # test.py uses the names of the new classes.
    options = ('--RESUME_MODEL', 'log/tiny_finetune/best_model.pth', '--DATASET_TEST_JSON', 'val.json', *ON_CPU)
    scripts.run(run_folder, 'test.py', *options, '--TEST_TOP_K', 2)
    top = (run_folder / 'log' / 'tiny_finetune' / 'predictions_val.top2.csv').read_text()
    assert {line.split(',')[-1] for line in top.splitlines()[1:]} <= set(names)


def test_training_on_the_valid_split(scripts, products, run_folder):
    before = contents(run_folder / 'log' / 'tiny')
    options = (*TUNE, '--DATASET_TRAIN_JSON', products / 'converted_val.json', '--TRAIN_MAX_EPOCH', 3)
    done = scripts.run(run_folder, 'main.py', *options)
    assert '24 of 24 validation images are training images' in done.stderr
    assert 'the last epoch counts as best' in done.stderr
    tuned = run_folder / 'log' / 'tiny_finetune'
    best, last = read_checkpoint(tuned / 'best_model.pth'), read_checkpoint(tuned / 'last.pth')
    assert best.progress.epoch == last.progress.epoch == 3
    assert all(torch.equal(value, last.state_dict[key]) for key, value in best.state_dict.items())
    # A new schedule, and many, medium and few as in the original training set.
    rates = [line['lr'] for line in metrics_of(tuned) if line['split'] == 'train']
    assert len(rates) == 3
    assert best.training_set.class_counts.tolist() == [14, 12, 9, 7, 5, 4]
    assert contents(run_folder / 'log' / 'tiny') == before
    # Again: the first fine-tuned run does not change, and can itself be resumed.
    tuned_before = contents(tuned)
    done = scripts.run(run_folder, 'main.py', *options)
    assert 'into log/tiny_finetune_2' in done.stdout
    assert contents(tuned) == tuned_before
    longer = ('--RESUME_MODEL', 'log/tiny_finetune/last.pth', '--TRAIN_MAX_EPOCH', 4, *ON_CPU)
    done = scripts.run(run_folder, 'main.py', *longer)
    assert 'resuming from log/tiny_finetune/last.pth, 3 epochs' in done.stdout
    assert [line['epoch'] for line in metrics_of(tuned)] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_finished_runs_and_used_folders(scripts, products, run_folder):
    before = contents(run_folder / 'log')
    same = ('--DATASET_ROOT', products, '--NAME', 'tiny', *ON_CPU)
    line = error_line(scripts.run(run_folder, 'main.py', *same, code=2))
    for way in ('--RESUME_MODEL last', '--NAME', '--OVERWRITE True'):
        assert way in line
    assert contents(run_folder / 'log') == before
    config = ('--config', run_folder / 'log' / 'tiny' / 'config.yaml')
    done = scripts.run(run_folder, 'main.py', *config, *ON_CPU, '--OVERWRITE', True)
    assert 'renamed the earlier result to log/tiny_old' in done.stdout
    old = contents(run_folder / 'log' / 'tiny_old')
    assert {f'tiny/{name}': digest for name, digest in old.items()} == before
    # The same seed: the same weights.
    weights = [read_checkpoint(run_folder / 'log' / name / 'last.pth').state_dict for name in ('tiny', 'tiny_old')]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.slow
def test_new_classes_alone(scripts, products, run_folder):
    """No class is known: the classifier is new, the backbone is transferred."""
    names = other_classes(products, run_folder)
    (run_folder / 'classes.json').write_text(json.dumps({'names': [f'another {name}' for name in names]}))
    data = ('--DATASET_TRAIN_JSON', 'train.json', '--DATASET_VALID_JSON', 'val.json', '--TRAIN_MAX_EPOCH', 1)
    done = scripts.run(run_folder, 'main.py', *TUNE, *data)
    assert '4 classes new to the checkpoint' in done.stdout
