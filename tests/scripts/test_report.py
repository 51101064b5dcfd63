"""tools/report.py as a user runs it, and the report at the end of a run."""

import json
import shutil

from tests.scripts.running import ON_CPU, TINY, error_line


def test_a_run_ends_with_a_report(scripts, products, tmp_path):
    scripts.run(
        tmp_path, 'main.py', '--config', TINY, '--NAME', 'tiny', '--DATASET_ROOT', products, '--REPORT_JSON', 'True',
        report=True,
    )  # fmt: skip
    folder = tmp_path / 'log' / 'tiny'
    text = (folder / 'report.html').read_text('utf-8')
    for part in ('calibration', 'classes', 'worst', 'data'):
        assert f'<section id="{part}"' in text
    found = json.loads((folder / 'report.json').read_text('utf-8'))
    valid = [entry for entry in map(json.loads, (folder / 'metrics.jsonl').open()) if entry['split'] == 'valid']
    best = next(entry for entry in valid if entry['epoch'] == found['summary']['best']['epoch'])
    for name in ('top1', 'top5', 'mean_class_error', 'loss'):
        assert abs(found['valid'][name] - best[name]) < 1e-5
    # The tool computes the same metrics as the run.
    shutil.rmtree(folder / 'features', ignore_errors=True)
    (folder / 'report.html').unlink()
    (folder / 'report.json').unlink()
    done = scripts.run(
        tmp_path, 'tools/report.py', '--RESUME_MODEL', folder / 'best_model.pth', *ON_CPU, '--REPORT_MAX_MB', '0'
    )
    assert f'report: {folder / "report.html"}' in done.stdout
    assert 'more than REPORT.MAX_MB 0' in done.stdout + done.stderr
    assert '<img' not in (folder / 'report.html').read_text('utf-8')
    again = json.loads((folder / 'report.json').read_text('utf-8'))  # REPORT.JSON True is in the checkpoint's config
    assert again['valid']['mean_class_error'] == found['valid']['mean_class_error']
    assert again['classes'] == found['classes']


def test_each_checkpoint_has_its_own_report(scripts, run_folder):
    folder = run_folder / 'log' / 'tiny'
    done = scripts.run(run_folder, 'tools/report.py', '--RESUME_MODEL', 'log/tiny/last.pth', *ON_CPU)
    assert 'last_report.html' in done.stdout
    assert (folder / 'last_report.html').exists()


def test_report_of_a_re_balanced_model(scripts, run_folder):
    scripts.run(run_folder, 'tau_norm.py', '--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
    model = 'log_tau/tiny/best_model.pth'
    scripts.run(run_folder, 'tools/report.py', '--RESUME_MODEL', model, *ON_CPU, '--REPORT_JSON', 'True')
    found = json.loads((run_folder / 'log_tau' / 'tiny' / 'report.json').read_text('utf-8'))
    assert found['tau'] == json.loads((run_folder / 'log_tau' / 'tiny' / 'tau.json').read_text('utf-8'))
    assert found['notes'] == ['Errors are those of the re-balanced model.']
    assert found['title'] == 'tiny, re-balanced'
    text = (run_folder / 'log_tau' / 'tiny' / 'report.html').read_text('utf-8')
    assert 'with tau' not in text
    assert ('cross-fitted ' in text) == (found['tau']['chosen'] is not None and bool(found['tau']['cross_fitted']))
    after = found['tau']['after']
    assert abs(found['valid']['mean_class_error'] - after['mean_class_error']) < 1e-12


def test_missing_checkpoint_is_an_error(scripts, tmp_path):
    line = error_line(scripts.run(tmp_path, 'tools/report.py', code=2))
    assert 'tools/report.py needs a trained model' in line
