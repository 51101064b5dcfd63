"""tools/posthoc.py as a user runs it."""

import json

import pytest

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.scripts.running import ON_CPU, error_line

MODEL = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)


@pytest.fixture
def biased(run_folder):
    """Return a run whose classifier predicts class 0 far too often, as after training on a long tail."""
    path = run_folder / 'log' / 'tiny' / 'best_model.pth'
    checkpoint = read_checkpoint(path)
    checkpoint.state_dict['classifier.weight'][0] *= 30
    checkpoint.state_dict['classifier.bias'][0] += 3
    write_checkpoint(path, checkpoint)
    return run_folder


def test_all_methods_are_measured_on_images_that_they_were_not_fitted_on(scripts, biased):
    done = scripts.run(biased, 'tools/posthoc.py', *MODEL, '--POSTHOC_FOLDS', 4)
    lines = done.stdout.splitlines()
    table = lines[lines.index(next(line for line in lines if 'mean class error' in line)) :]
    assert max(map(len, table)) <= 80
    found = json.loads((biased / 'log' / 'tiny' / 'posthoc.json').read_text())
    methods = found['methods']
    assert found['folds'] == 4
    assert 'cross-fitted in 4 folds' in methods['lws']['measured']
    assert len(methods['tau_norm']['parameters']['tau']) == 4
    before = methods['before']
    assert min(methods[name]['mean_class_error'] for name in ('tau_norm', 'lws')) < before['mean_class_error']
    for name in ('temperature', 'group_temperature'):
        assert methods[name]['mean_class_error'] == before['mean_class_error'], 'the best class stays the best'
    for metrics in methods.values():
        low, high = metrics['interval']
        assert low <= metrics['mean_class_error'] <= high


@pytest.mark.parametrize('method', ['tau_norm', 'logit_adjustment', 'lws', 'ncm', 'cosine', 'temperature'])
def test_the_saved_model_is_the_fitted_one(scripts, biased, products, method):
    """Fitted on training images, the metric is that of the one classifier that is saved."""
    options = ('--POSTHOC_METHODS', method, '--POSTHOC_FIT_SPLIT', 'train', '--POSTHOC_SAVE', method)
    done = scripts.run(biased, 'tools/posthoc.py', *MODEL, *options, code=None)
    if done.returncode:  # six classes of a few images each: maybe nothing is better
        assert 'the untouched classifier was not beaten' in error_line(done)
        return
    found = json.loads((biased / 'log' / 'tiny' / 'posthoc.json').read_text())['methods'][method]
    model = ('--RESUME_MODEL', 'log_tau/tiny/best_model.pth', *ON_CPU)
    scripts.run(biased, 'test.py', *model, '--DATASET_TEST_JSON', products / 'converted_val.json')
    metrics = json.loads((biased / 'log_tau' / 'tiny' / 'predictions_converted_val.metrics.json').read_text())
    assert metrics['mean_class_error'] == pytest.approx(found['mean_class_error'], abs=1e-9)
    line = error_line(scripts.run(biased, 'tools/posthoc.py', *MODEL, *options, code=2))
    assert 'holds an earlier result' in line


def test_mistakes(scripts, run_folder):
    for options, words in (
        (('--POSTHOC_METHODS', 'magic'), "POSTHOC.METHODS is 'magic'"),
        (('--POSTHOC_SAVE', 'magic'), "POSTHOC.SAVE is 'magic'"),
        (('--POSTHOC_SAVE', 'group_temperature', '--POSTHOC_METHODS', 'group_temperature'), 'not a linear classifier'),
    ):
        assert words in error_line(scripts.run(run_folder, 'tools/posthoc.py', *MODEL, *options, code=2))


def test_tau_norm_reports_cross_fitted_metrics(scripts, biased):
    done = scripts.run(biased, 'tau_norm.py', *MODEL)
    tau = json.loads((biased / 'log_tau' / 'tiny' / 'tau.json').read_text())
    assert len(tau['cross_fitted']['taus']) == tau['cross_fitted']['folds'] == 5
    assert tau['cross_fitted']['mean_class_error'] >= tau['optimum_value']
    assert 'cross-fitted, with tau from the other folds: mean class error' in done.stdout
