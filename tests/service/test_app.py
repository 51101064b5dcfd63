"""The ASGI application in this process: the token, where a page is, and the address."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip('httpx', reason='httpx is not installed')
from starlette.testclient import TestClient

from lib.errors import UserError
from lib.service.app import create_app
from lib.service.connection import bound_socket
from lib.service.interface import Served
from lib.service.server import serve
from lib.service.service import Service, ServiceOptions
from tests.service.fake_service import MeanColor
from tests.service.serving import photo

TOKEN = '0123456789abcdef'


@pytest.fixture(scope='module')
def client() -> Iterator[TestClient]:
    service = Service(Served(MeanColor('one')), ServiceOptions(token=TOKEN))
    app = create_app(service, lifespan=lambda _: service.running(), page=(b'<!doctype html>', {'x-page': '1'}))
    with TestClient(app) as client:
        yield client


def test_some_paths_need_no_token(client: TestClient):
    for path in ('/', '/health', '/ready', '/openapi.json'):
        assert client.get(path).status_code == 200, path
    assert client.get('/').headers['x-page'] == '1'


@pytest.mark.parametrize('path', ['/classes', '/metrics', '/nothing', '/photos/1.jpg', '/health/', '/docs'])
def test_all_others_do(client: TestClient, path: str):
    done = client.get(path)
    assert done.status_code == 401
    assert done.headers['www-authenticate'] == 'Bearer'
    assert TOKEN not in done.text


@pytest.mark.parametrize(
    'sent', ['', 'Bearer', f'Bearer {TOKEN[:-1]}', f'Bearer {TOKEN}x', f'Basic {TOKEN}', TOKEN, 'Bearer é', 'Bearer ']
)
def test_a_wrong_token_is_401(client: TestClient, sent: str):
    headers = {'Authorization': sent.encode('latin-1'), 'Content-Type': 'image/jpeg'}
    assert client.post('/predict', content=photo(), headers=headers).status_code == 401


def test_the_token_lets_requests_in(client: TestClient):
    headers = {'Authorization': f'Bearer {TOKEN}', 'Content-Type': 'image/jpeg'}
    assert client.post('/predict', content=photo(), headers=headers).status_code == 200
    assert client.get('/classes', headers=headers).status_code == 200


def test_a_port_that_is_taken_while_the_model_is_loaded_is_one_line(tmp_path: Path):
    with bound_socket('127.0.0.1', 0) as other:

        def load() -> Served:
            other.listen()
            return Served(MeanColor('one'))

        with pytest.raises(UserError, match=r'SERVE\.PORT .* in use'):
            serve(load, tmp_path / 'model', ServiceOptions(), host='127.0.0.1', port=other.getsockname()[1])
