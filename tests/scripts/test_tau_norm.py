"""tau_norm.py as a user runs it: an ordinary checkpoint with the reported metrics."""

import json

import pytest

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.scripts.running import ON_CPU, contents, error_line, metrics_of

FILES = {
    'best_model.pth',
    'tau.json',
    'tau.png',
    'report.html',
    'config.yaml',
    'environment.txt',
    'classes.json',
    '.lock',
}


def metrics_on_valid(scripts, folder, products, checkpoint):
    """Return the metrics of a checkpoint on the valid split, as test.py writes them."""
    valid = products / 'converted_val.json'
    scripts.run(folder, 'test.py', '--RESUME_MODEL', checkpoint, '--DATASET_TEST_JSON', valid, *ON_CPU)
    return json.loads((folder / checkpoint).with_name('predictions_converted_val.metrics.json').read_text())


@pytest.fixture(scope='module')
def biased(finished, tmp_path_factory):
    """Return the finished run with a classifier that predicts class 0 far too often, as after a long tail."""
    folder = tmp_path_factory.mktemp('biased')
    checkpoint = read_checkpoint(finished / 'log' / 'tiny' / 'best_model.pth')
    checkpoint.state_dict['classifier.weight'][0] *= 30
    checkpoint.state_dict['classifier.bias'][0] += 3
    write_checkpoint(folder / 'log' / 'tiny' / 'best_model.pth', checkpoint)
    return folder


@pytest.fixture(scope='module')
def rebalanced(scripts, biased):
    """Run tau_norm.py on the biased model."""
    return scripts.run(biased, 'tau_norm.py', '--RESUME_MODEL', './log/tiny/best_model.pth', *ON_CPU, report=True)


def test_files(biased, rebalanced):
    folder = biased / 'log_tau' / 'tiny'
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / 'tau.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    report = (folder / 'report.html').read_text()
    assert 're-balanced' in report
    assert 'tau' in report
    for name in ('best_model.pth', 'tau.json', 'tau.png', 'report.html'):
        assert f'wrote log_tau/tiny/{name}' in rebalanced.stdout
    for word in ('before', 'after', 'mean class error', 'few', 'chosen tau'):
        assert word in rebalanced.stdout


def test_the_saved_model_has_the_metrics_of_the_curve(scripts, biased, rebalanced, products):
    tau = json.loads((biased / 'log_tau' / 'tiny' / 'tau.json').read_text())
    before = metrics_on_valid(scripts, biased, products, 'log/tiny/best_model.pth')
    after = metrics_on_valid(scripts, biased, products, 'log_tau/tiny/best_model.pth')
    for name, value in tau['before'].items():
        assert value == before[name], name
    for name, value in tau['after'].items():
        assert value == after[name], name
    assert tau['after']['mean_class_error'] < tau['before']['mean_class_error']
    piece = sum(edge < tau['chosen'] for edge in tau['curve']['tau'])
    assert tau['curve']['value'][piece] == pytest.approx(after['mean_class_error'], abs=1e-12)
    assert tau['optimum_value'] == min(tau['curve']['value'])


def test_the_saved_model_is_an_ordinary_checkpoint(biased, rebalanced):
    old = read_checkpoint(biased / 'log' / 'tiny' / 'best_model.pth')
    new = read_checkpoint(biased / 'log_tau' / 'tiny' / 'best_model.pth')
    tau = json.loads((biased / 'log_tau' / 'tiny' / 'tau.json').read_text())['chosen']
    assert new.training_set.class_names == old.training_set.class_names
    assert new.progress == old.progress
    assert not new.state_dict['classifier.bias'].any()
    weight = old.state_dict['classifier.weight']
    expected = weight / weight.norm(dim=1, keepdim=True) ** tau
    assert (new.state_dict['classifier.weight'] - expected).abs().max() < 1e-5 * expected.abs().max()
    assert all(
        (value == old.state_dict[key]).all() for key, value in new.state_dict.items() if key.startswith('backbone.')
    )


def test_nothing_is_overwritten_silently(scripts, biased, rebalanced):
    before = contents(biased / 'log_tau')
    line = error_line(scripts.run(biased, 'tau_norm.py', '--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU, code=2))
    assert 'log_tau/tiny holds an earlier result' in line
    assert '--OVERWRITE True' in line
    options = ('--RESUME_MODEL', 'log_tau/tiny/best_model.pth', '--OVERWRITE', True, *ON_CPU)
    assert 're-balanced already' in error_line(scripts.run(biased, 'tau_norm.py', *options, code=2))
    assert contents(biased / 'log_tau') == before


@pytest.mark.slow
def test_overwrite_renames_the_old_folder(scripts, run_folder):
    options = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
    scripts.run(run_folder, 'tau_norm.py', *options)
    before = contents(run_folder / 'log_tau' / 'tiny')
    run = contents(run_folder / 'log')
    done = scripts.run(run_folder, 'tau_norm.py', *options, '--OVERWRITE', True, '--TAU_NORM_SELECT_BY', 'top1')
    assert 'renamed the earlier result to log_tau/tiny_old' in done.stdout
    assert contents(run_folder / 'log_tau' / 'tiny_old') == before
    assert json.loads((run_folder / 'log_tau' / 'tiny' / 'tau.json').read_text())['metric'] == 'top1'
    assert contents(run_folder / 'log') == run


def test_nothing_better_is_saved_unchanged(scripts, run_folder, products):
    """All images of the valid split are correct already: the model is saved unchanged, tau null."""
    valid = json.loads((products / 'converted_val.json').read_text())
    path = run_folder / 'log' / 'tiny' / 'best_model.pth'
    metrics_on_valid(scripts, run_folder, products, 'log/tiny/best_model.pth')
    rows = (run_folder / 'log' / 'tiny' / 'predictions_converted_val.csv').read_text().splitlines()[1:]
    for entry, row in zip(valid['annotations'], rows, strict=True):
        entry['category_id'] = int(row.split(',')[1])
    (run_folder / 'valid.json').write_text(json.dumps(valid))
    options = ('--RESUME_MODEL', path, '--DATASET_VALID_JSON', 'valid.json', *ON_CPU)
    done = scripts.run(run_folder, 'tau_norm.py', *options)
    assert 'saved unchanged' in done.stdout
    tau = json.loads((run_folder / 'log_tau' / 'tiny' / 'tau.json').read_text())
    assert tau['chosen'] is None
    assert tau['before'] == tau['after']
    old, new = read_checkpoint(path), read_checkpoint(run_folder / 'log_tau' / 'tiny' / 'best_model.pth')
    assert all((value == old.state_dict[key]).all() for key, value in new.state_dict.items())


def test_cosine_is_flat(scripts, run_folder, products):
    """FCNorm's norms are all 1, and its scale changes no prediction."""
    path = run_folder / 'log' / 'tiny' / 'best_model.pth'
    checkpoint = read_checkpoint(path)
    del checkpoint.state_dict['classifier.bias']
    write_checkpoint(path, checkpoint)
    done = scripts.run(run_folder, 'tau_norm.py', '--RESUME_MODEL', path, '--MODEL_CLASSIFIER', 'FCNorm', *ON_CPU)
    assert 'the curve is flat' in done.stdout
    assert 'logit adjustment' in done.stdout
    tau = json.loads((run_folder / 'log_tau' / 'tiny' / 'tau.json').read_text())
    assert (tau['chosen'], len(tau['curve']['value'])) == (None, 1)
    # The config in the saved model names the cosine classifier.
    assert (
        tau['before']['top1'] == metrics_on_valid(scripts, run_folder, products, 'log_tau/tiny/best_model.pth')['top1']
    )


def test_without_a_checkpoint(scripts, tmp_path):
    line = error_line(scripts.run(tmp_path, 'tau_norm.py', code=2))
    assert '--RESUME_MODEL ./log/NAME/best_model.pth' in line
    assert list(tmp_path.iterdir()) == []


def test_the_run_is_unchanged(biased, rebalanced, finished):
    assert [path.name for path in (biased / 'log' / 'tiny').glob('*.pth')] == ['best_model.pth']
    assert metrics_of(finished / 'log' / 'tiny')
