"""main.py records runs in the real MLflow server on loopback with SQLite, and in Weights & Biases offline."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest

from tests.scripts.running import ENVIRONMENT, TINY, contents, metrics_of

pytestmark = [pytest.mark.slow, pytest.mark.process]
SECRET = 'planted-password-7319'
FILES = ['best_model.pth', 'classes.json', 'config.yaml', 'environment.txt', 'metrics.jsonl', 'report.html']


@contextmanager
def mlflow_server(folder, port):
    """Run `mlflow server`; its files are in `folder`."""
    command = [sys.executable, '-m', 'mlflow', 'server', '--host', '127.0.0.1', '--port', str(port), '--workers', '1']
    command += [
        '--backend-store-uri',
        f'sqlite:///{folder}/mlflow.db',
        '--artifacts-destination',
        f'{folder}/artifacts',
    ]
    environment = os.environ | {'MLFLOW_SERVER_ENABLE_JOB_EXECUTION': 'false'}
    with open(folder / 'server.log', 'a') as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 300
        while not is_up(port):
            is_waiting = server.poll() is None and time.monotonic() < end
            assert is_waiting, (folder / 'server.log').read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def is_up(port):
    try:
        return urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope='module')
def port():
    for package in ('mlflow', 'flask', 'sqlalchemy', 'alembic', 'huey'):
        pytest.importorskip(package, reason=f'{package} is not installed (requirements-dev.txt)')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


@pytest.fixture(scope='module')
def server_folder(tmp_path_factory):
    return tmp_path_factory.mktemp('server')


@pytest.fixture
def client(port, monkeypatch):
    import mlflow

    monkeypatch.setenv('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '1')
    return mlflow.MlflowClient(f'http://127.0.0.1:{port}')


@pytest.fixture
def start(scripts, tmp_path, products, port):
    """Start main.py with a record in MLflow."""
    settings = {
        'MLFLOW_TRACKING_URI': f'http://someone:{SECRET}@127.0.0.1:{port}',
        'MLFLOW_EXPERIMENT_NAME': tmp_path.name,
        'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '0',
    }

    def start(*options, script='main.py'):
        whole = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', '--LOG_TRACKERS', 'mlflow', *options)
        return scripts.start(tmp_path, script, *whole, report=True, environment=ENVIRONMENT | settings)

    return start


def runs_of(client, tmp_path):
    experiment = client.get_experiment_by_name(tmp_path.name)
    return [] if experiment is None else client.search_runs([experiment.experiment_id])


def check_record(client, run, folder):
    """Each metric of metrics.jsonl is there once, at its epoch."""
    expected = {}
    for line in metrics_of(folder):
        for name, value in line.items():
            if name not in ('epoch', 'split'):
                expected.setdefault(f'{line["split"]}/{name}', []).append((line['epoch'], value))
    found = {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if not name.startswith('best/') and name != 'epoch'
    }
    assert {name: sorted(points) for name, points in found.items()} == expected


def check_no_secret(folder):
    assert not [path for path in folder.rglob('*') if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_run_that_is_killed_and_resumed(start, client, tmp_path, server_folder, port):
    with mlflow_server(server_folder, port):
        running = start('--TRAIN_MAX_EPOCH', 12)
        running.wait_for('epoch 5, step 1 of')
        os.kill(running.process, signal.SIGKILL)
        running.wait(-9)
        (before,) = runs_of(client, tmp_path)
        assert before.info.status == 'RUNNING'
        done = start('--TRAIN_MAX_EPOCH', 13, '--RESUME_MODEL', 'last').wait()
        (run,) = runs_of(client, tmp_path)
        folder = tmp_path / 'log' / 'run'
        assert f'mlflow: run {run.info.run_id}, continued after epoch ' in done.stdout
        assert done.stderr == ''
        assert (run.info.run_id, run.info.status, run.info.run_name) == (before.info.run_id, 'FINISHED', 'run')
        assert run.data.params['LOSS.TYPE'] == 'cross_entropy'
        assert run.data.params['INPUT.SCALE'] == '0.5, 1.0'
        assert run.data.params['TRAIN.MAX_EPOCH'] == '12'
        assert run.data.tags['TRAIN.MAX_EPOCH'] == '13'
        assert run.data.tags['torch'] in (folder / 'environment.txt').read_text()
        assert f'commit: {run.data.tags["commit"]}\n' in (folder / 'environment.txt').read_text()
        check_record(client, run, folder)
        assert run.data.metrics['best/top1'] in [line['top1'] for line in metrics_of(folder) if 'top5' in line]
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == FILES
        copies = tmp_path / 'copies'
        copies.mkdir()
        client.download_artifacts(run.info.run_id, '', str(copies))
        assert contents(copies).items() <= contents(folder).items()
        check_no_secret(tmp_path)


def test_a_server_that_goes_away(start, client, tmp_path, server_folder, port):
    with mlflow_server(server_folder, port):
        running = start('--TRAIN_MAX_EPOCH', 12)
        running.wait_for('epoch 3, step 1 of')
    done = running.wait()
    lines = done.stderr.splitlines()
    assert [line.partition(' (')[0] for line in lines] == [
        'warning: mlflow: not recorded, tried again after the next epoch',
        'warning: mlflow: given up',
    ]
    assert len(metrics_of(tmp_path / 'log' / 'run')) == 24
    check_no_secret(tmp_path)
    done = start('--NAME', 'other').wait(2)
    assert done.stderr.startswith('error: LOG.TRACKERS mlflow: the run cannot be recorded (')
    assert done.stderr.count('\n') == 1
    assert SECRET not in done.stderr
    assert 'epoch' not in done.stdout


def test_wandb_offline(scripts, tmp_path, products):
    """Its file is read as the package writes it; nothing is sent."""
    pytest.importorskip('wandb', reason='wandb is not installed (requirements-tracking.txt)')
    settings = {'WANDB_MODE': 'offline', 'WANDB_API_KEY': SECRET.ljust(40, '0')}

    def run(*options):
        whole = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', '--LOG_TRACKERS', 'wandb', *options)
        return scripts.start(tmp_path, 'main.py', *whole, report=True, environment=ENVIRONMENT | settings).wait()

    first, second = run(), run('--RESUME_MODEL', 'last', '--TRAIN_MAX_EPOCH', 3)
    place = json.loads((tmp_path / 'log/run/trackers.json').read_text())['wandb']
    assert place['epoch'] == 3
    assert f'wandb: run {place["id"]}, new' in first.stdout
    assert f'wandb: run {place["id"]}, continued after epoch 2' in second.stdout
    assert first.stderr == second.stderr == ''
    files = sorted(tmp_path.glob(f'log/run/wandb/offline-run-*/run-{place["id"]}.wandb'))
    assert len(files) == 2
    assert all(b'train/loss' in path.read_bytes() for path in files)
    check_no_secret(tmp_path)
