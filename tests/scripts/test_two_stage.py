"""Second stages as a user runs them: nearest class mean, new classifier, learned scales, re-balancing."""

import json

import numpy as np
import pytest
import torch

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import ON_CPU, contents, metrics_of

FIRST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU, '--MODEL_FREEZE_BACKBONE', True)
TUNED = 'log/tiny_finetune'


def state_of(folder, run):
    return read_checkpoint(folder / run / 'best_model.pth').state_dict


def same_backbone(one, other):
    return all(torch.equal(value, other[key]) for key, value in one.items() if key.startswith('backbone.'))


def features_of(scripts, folder, checkpoint, products, split):
    """Return the features that test.py writes for a split, and its labels."""
    file = products / f'converted_{split}.json'
    options = ('--RESUME_MODEL', checkpoint, '--DATASET_TEST_JSON', file, '--TEST_EMBEDDINGS', True, *ON_CPU)
    scripts.run(folder, 'test.py', *options)
    written = (folder / checkpoint).with_name(f'predictions_{file.stem}.features.npy')
    features = np.load(written).astype(np.float64)
    labels = [entry['category_id'] for entry in json.loads(file.read_text())['annotations']]
    return features, np.array(labels)


@pytest.mark.parametrize('classifier', ['FC', 'FCNorm'])
def test_nearest_class_mean(scripts, products, run_folder, classifier):
    features, labels = features_of(scripts, run_folder, 'log/tiny/best_model.pth', products, 'train')
    options = ('--MODEL_CLASSIFIER', classifier, '--MODEL_CLASSIFIER_INIT', 'class_means', '--TRAIN_MAX_EPOCH', 0)
    done = scripts.run(run_folder, 'main.py', *FIRST, *options, report=classifier == 'FC')
    assert '0 epochs: model saved unchanged' in done.stdout
    tuned = run_folder / TUNED
    assert (tuned / 'report.html').exists() == (classifier == 'FC')
    (line,) = metrics_of(tuned)
    assert (line['epoch'], line['split']) == (0, 'valid')
    state = state_of(run_folder, TUNED)
    assert same_backbone(state, state_of(run_folder, 'log/tiny'))
    if classifier == 'FCNorm':
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([features[labels == label].mean(axis=0) for label in range(6)])
    weight = means if classifier == 'FCNorm' else 2 * means
    np.testing.assert_allclose(state['classifier.weight'].numpy(), weight, rtol=1e-4, atol=1e-6)
    # Its metrics on the valid split are those of the nearest class mean.
    valid, true = features_of(scripts, run_folder, f'{TUNED}/best_model.pth', products, 'val')
    if classifier == 'FCNorm':
        units = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (valid, means)]
        nearest = (units[0] @ units[1].T).argmax(axis=1)
    else:
        nearest = ((valid[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert line['top1'] == pytest.approx((nearest == true).mean())
    last = read_checkpoint(tuned / 'last.pth')
    assert last.progress.epoch == 0
    assert last.selection.best_result == line['mean_class_error']


def test_0_epochs_again_and_then_some(scripts, products, run_folder):
    """An evaluation can be repeated, and training can start from it."""
    none = ('--TRAIN_MAX_EPOCH', 0, '--MODEL_CLASSIFIER_INIT', 'class_means')
    scripts.run(run_folder, 'main.py', *FIRST, *none)
    before = contents(run_folder / 'log' / 'tiny')
    means = state_of(run_folder, TUNED)['classifier.weight']
    again = (
        '--NAME',
        'tiny_finetune',
        '--RESUME_MODEL',
        'last',
        '--config',
        run_folder / TUNED / 'config.yaml',
        *ON_CPU,
    )
    scripts.run(run_folder, 'main.py', *again)
    assert len(metrics_of(run_folder / TUNED)) == 1
    # Training starts from the means, and does not compute them again.
    scripts.run(run_folder, 'main.py', *again, '--TRAIN_MAX_EPOCH', 1, '--OPTIMIZER_LR', 0)
    assert [(line['epoch'], line['split']) for line in metrics_of(run_folder / TUNED)] == [
        (0, 'valid'),
        (1, 'train'),
        (1, 'valid'),
    ]
    last = read_checkpoint(run_folder / TUNED / 'last.pth')
    assert torch.equal(last.state_dict['classifier.weight'], means)
    assert contents(run_folder / 'log' / 'tiny') == before


def test_a_new_classifier_on_frozen_features(scripts, products, run_folder):
    """cRT: the old classifier is replaced."""
    options = ('--MODEL_CLASSIFIER_INIT', 'random', '--TRAIN_MAX_EPOCH', 1, '--OPTIMIZER_LR', 0)
    scripts.run(run_folder, 'main.py', *FIRST, *options)
    first, second = state_of(run_folder, 'log/tiny'), state_of(run_folder, TUNED)
    assert same_backbone(first, second)
    assert not torch.isclose(first['classifier.weight'], second['classifier.weight']).any(dim=1).all()
    # The same seed gives the same classifier.
    scripts.run(run_folder, 'main.py', *FIRST, *options)
    third = state_of(run_folder, f'{TUNED}_2')
    assert torch.equal(second['classifier.weight'], third['classifier.weight'])


@pytest.fixture
def scaled(scripts, products, run_folder):
    """Learned scales over the finished run, trained for an epoch; they are far from 1."""
    options = ('--MODEL_CLASSIFIER', 'lws', '--MODEL_FREEZE_CLASSIFIER', True, '--SAMPLER_TYPE', 'class_balance')
    scripts.run(run_folder, 'main.py', *FIRST, *options, '--TRAIN_MAX_EPOCH', 1, '--OPTIMIZER_LR', 2)
    return run_folder


def test_learned_scales(scripts, products, scaled):
    first, second = state_of(scaled, 'log/tiny'), state_of(scaled, TUNED)
    assert all(torch.equal(second[key], value) for key, value in first.items())
    scale = second['classifier.scale']
    assert (scale - 1).abs().max() > 0.1
    # A linear classifier absorbs the scales.
    options = ('--RESUME_MODEL', f'{TUNED}/best_model.pth', '--NAME', 'plain', '--RESUME_MODE', 'finetune')
    scripts.run(
        scaled, 'main.py', *options, '--MODEL_CLASSIFIER', 'FC', '--MODEL_FREEZE_CLASSIFIER', False,
        '--TRAIN_MAX_EPOCH', 0, *ON_CPU,
    )  # fmt: skip
    plain = state_of(scaled, 'log/plain')
    assert 'classifier.scale' not in plain
    torch.testing.assert_close(plain['classifier.weight'], scale[:, None] * second['classifier.weight'])
    torch.testing.assert_close(plain['classifier.bias'], scale * second['classifier.bias'])
    errors = [metrics_of(scaled / 'log' / name)[-1]['mean_class_error'] for name in ('tiny_finetune', 'plain')]
    assert errors[0] == errors[1]


def test_learned_scales_re_balanced(scripts, products, scaled):
    """tau applies to scale * weight, and the saved model has the accuracy of the curve."""
    checkpoint = f'{TUNED}/best_model.pth'
    scripts.run(scaled, 'tau_norm.py', '--RESUME_MODEL', checkpoint, *ON_CPU)
    folder = scaled / 'log_tau' / 'tiny_finetune'
    tau, old = json.loads((folder / 'tau.json').read_text()), state_of(scaled, TUNED)
    new = read_checkpoint(folder / 'best_model.pth').state_dict
    found = metrics_of(scaled / TUNED)[-1]
    assert tau['before']['mean_class_error'] == pytest.approx(found['mean_class_error'])
    if tau['chosen'] is None:
        assert all(torch.equal(value, old[key]) for key, value in new.items())
        return
    assert torch.equal(new['classifier.scale'], torch.ones(6))
    rows = old['classifier.scale'][:, None] * old['classifier.weight']
    torch.testing.assert_close(new['classifier.weight'], rows / rows.norm(dim=1, keepdim=True) ** tau['chosen'])
    valid = products / 'converted_val.json'
    options = ('--RESUME_MODEL', folder / 'best_model.pth', '--DATASET_TEST_JSON', valid, *ON_CPU)
    scripts.run(scaled, 'test.py', *options)
    metrics = json.loads((folder / 'predictions_converted_val.metrics.json').read_text())
    assert metrics['mean_class_error'] == tau['after']['mean_class_error']
