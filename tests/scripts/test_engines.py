"""RUN.ENGINE and RUN.ENGINE_PRECISION as a user gives them: equal predictions, a cost that is logged, mistakes."""

import csv
import shutil

import pytest

from lib.inference.compiled import BACKENDS
from tests.scripts.running import ON_CPU, error_line

MODEL = 'log/tiny/best_model.pth'


def rows_of(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def predict(scripts, folder, *options, code=0):
    return scripts.run(folder, 'test.py', '--RESUME_MODEL', MODEL, *options, *ON_CPU, code=code)


@pytest.mark.skipif(bool(BACKENDS['openvino'].missing), reason='OpenVINO is not installed')
def test_engines_predict_as_torch_and_a_lower_precision_is_measured_first(scripts, run_folder):
    runs = {}
    for engine in ('torch', 'openvino'):
        done = predict(scripts, run_folder, '--RUN_ENGINE', engine, '--TEST_SCALES', '1.0,1.5', '--TEST_FLIP', True)
        assert ('engine: openvino at' in done.stdout) == (engine == 'openvino')
        (path,) = (run_folder / 'log' / 'tiny').glob('predictions_*.csv')
        runs[engine] = rows_of(path)
        path.unlink()
    assert [row['id'] for row in runs['torch']] == [row['id'] for row in runs['openvino']]
    for one, other in zip(*runs.values(), strict=True):
        assert float(one['probability']) == pytest.approx(float(other['probability']), abs=2e-5)
        assert one['predicted'] == other['predicted']
    assert len(list((run_folder / 'log' / 'tiny' / 'engines').iterdir())) == 2  # one per size
    features = run_folder / 'log' / 'tiny' / 'features'
    shutil.rmtree(features, ignore_errors=True)
    for attempt in range(2):
        shutil.rmtree(run_folder / 'log_tau', ignore_errors=True)
        options = ('--RUN_ENGINE', 'openvino', '--RUN_ENGINE_PRECISION', 'bf16')
        text = scripts.run(run_folder, 'tau_norm.py', '--RESUME_MODEL', MODEL, *options, *ON_CPU).stdout
        assert text.index('bf16 against float32 on ') < text.index('mean class error')
        assert attempt == 0 or 'caching features' not in text
    assert {path.name for path in features.iterdir() if path.is_dir()} == {'best_model-valid', 'best_model-valid-bf16'}


def test_mistakes_are_one_line(scripts, run_folder):
    line = error_line(predict(scripts, run_folder, '--RUN_ENGINE_PRECISION', 'int8', '--RUN_ENGINE', 'torch', code=2))
    assert 'RUN.ENGINE_PRECISION int8 is computed by OpenVINO' in line
    line = error_line(predict(scripts, run_folder, '--RUN_ENGINE', 'tensorrt', code=2))
    assert 'but must be one of auto, torch, compile, openvino, onnxruntime' in line


@pytest.mark.skipif(bool(BACKENDS['openvino'].missing), reason='OpenVINO is not installed')
def test_graphs_that_cannot_be_cached_are_logged(scripts, run_folder):
    engines = run_folder / 'log' / 'tiny' / 'engines'
    engines.write_bytes(b'')  # no folder can be created here
    done = predict(scripts, run_folder, '--RUN_ENGINE', 'openvino')
    assert 'not written' in done.stderr
