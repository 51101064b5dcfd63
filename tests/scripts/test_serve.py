"""tools/serve.py: its answers are those of test.py, it follows its file and its signals, and mistakes are one line."""

import csv
import http.client
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.scripts.in_process import run_in_process
from tests.scripts.running import ON_CPU, Running, Scripts, error_line

pytestmark = [pytest.mark.process, pytest.mark.long]
BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)


def request(port: int, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    named = {name.replace('_', '-'): value for name, value in headers.items()}
    connection.request('GET' if body is None else 'POST', path, body, named)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content.startswith(b'{') else {'text': content.decode()}


def wait_for_port(running: Running) -> int:
    running.wait_for('serving on http')
    return int(re.search(r'serving on http://127.0.0.1:(\d+)', running.stdout.read_text())[1])


def test_answers_are_those_of_test_py_and_a_new_model_takes_over(scripts: Scripts, run_folder: Path, products: Path):
    done = scripts.run(run_folder, 'test.py', *BEST, '--DATASET_ROOT', products)
    predictions = run_folder / re.search(r'wrote (\S+\.csv)', done.stdout)[1]
    (run_folder / 'token').write_text('0123456789abcdef\n', encoding='ascii')
    options = ('--SERVE_PORT', 0, '--SERVE_TOKEN_FILE', 'token', '--RUN_ENGINE', 'torch', '--SERVE_BATCH_SIZE', 3)
    running = scripts.start(run_folder, 'tools/serve.py', *BEST, *options)
    try:
        check_service(running, run_folder, products, predictions)
    finally:
        os.kill(running.process, signal.SIGTERM)
        done = running.wait(0)
    assert '0123456789abcdef' not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith('stopped after')


def check_service(running: Running, run_folder: Path, products: Path, predictions: Path) -> None:
    port = wait_for_port(running)
    token = {'Authorization': 'Bearer 0123456789abcdef', 'Content_Type': 'image/jpeg'}
    assert request(port, '/classes')[0] == 401
    assert request(port, '/')[0] == 200
    status, classes = request(port, '/classes', **token)
    assert status == 200
    with open(predictions, encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        photo = next(products.rglob(Path(row['id']).name)).read_bytes()
        status, answer = request(port, '/predict?top_k=3', photo, **token)
        assert status == 200
        best = answer['results'][0]['classes'][0]
        assert best['name'] == row['name']
        assert best['probability'] == pytest.approx(float(row['probability']), abs=1e-5)
        assert answer['model'] == classes['model']
    write_other_weights(run_folder)
    os.replace(run_folder / 'new', run_folder / 'log' / 'tiny' / 'best_model.pth')
    running.wait_for('replaces')
    status, answer = request(port, '/predict', photo, **token)
    assert status == 200
    assert answer['model'] != classes['model']


def write_other_weights(folder: Path) -> None:
    """Write the model of `folder` with another classifier."""
    checkpoint = read_checkpoint(folder / 'log' / 'tiny' / 'best_model.pth')
    name = next(name for name in checkpoint.state_dict if 'classifier' in name)
    checkpoint.state_dict[name] = checkpoint.state_dict[name] + 1.0
    write_checkpoint(folder / 'new', checkpoint)


def test_mistakes_are_one_line(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def line(*options: object) -> str:
        return error_line(run_in_process(run_folder, 'tools/serve.py', *BEST, *options))

    assert 'SERVE.TOKEN_FILE' in line('--SERVE_TOKEN_FILE', 'absent')
    for secret in (b'', b'short', b'two words of text', 'é'.encode() * 20):
        (run_folder / 'token').write_bytes(secret)
        assert 'openssl rand -hex 32' in line('--SERVE_TOKEN_FILE', 'token')
    with socket.create_server(('127.0.0.1', 0)) as taken:
        message = line('--SERVE_PORT', taken.getsockname()[1])
        assert 'SERVE.PORT' in message
        assert 'in use' in message
    assert 'SERVE.HOST' in line('--SERVE_HOST', 'no.such.host.invalid')
    assert 'tools/serve.py needs a trained model' in error_line(run_in_process(run_folder, 'tools/serve.py'))
    for name in [name for name in sys.modules if name.startswith('lib.service')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    assert line().endswith('type: python -m pip install -r requirements-serve.txt')
