"""/search and /catalog: products are added, found and removed by those who have the token."""

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip('httpx', reason='httpx is not installed')
from starlette.testclient import TestClient

from lib.catalog.catalog import create_catalog, open_catalog
from lib.service.app import create_app
from lib.service.interface import Served, photo_id
from lib.service.service import Service, ServiceOptions
from tests.service.fake_service import MeanColor
from tests.service.serving import photo

TOKEN = '0123456789abcdef'
HEADERS = {'Authorization': f'Bearer {TOKEN}', 'Content-Type': 'image/jpeg'}


def client_of(folder, **options) -> TestClient:
    service = Service(Served(MeanColor('one'), catalog=open_catalog(folder, 'features')), ServiceOptions(**options))
    return TestClient(create_app(service, lifespan=lambda _: service.running()))


@pytest.fixture
def folder(tmp_path):
    create_catalog(tmp_path / 'catalog', 'features', 3)
    return tmp_path / 'catalog'


@pytest.fixture
def client(folder) -> Iterator[TestClient]:
    with client_of(folder, token=TOKEN) as client:
        yield client


def found(client: TestClient, image: bytes, k: int = 5) -> list[str]:
    done = client.post(f'/search?k={k}', content=image, headers=HEADERS)
    assert done.status_code == 200, done.text
    return [product['name'] for product in done.json()['results'][0]['products']]


def test_products_are_added_found_and_removed(client, folder):
    assert found(client, photo('red')) == []
    done = client.post('/catalog?product=Apple', content=photo('red'), headers=HEADERS)
    assert done.json() == {'photos': [photo_id(photo('red'))], 'replaced': 0}
    token = {'Authorization': HEADERS['Authorization']}
    several = [
        ('images', ('1.jpg', photo('green'), 'image/jpeg')),
        ('images', ('2.jpg', photo('green', 'PNG'), 'image/png')),
    ]
    done = client.post('/catalog', params={'product': 'Cafe\u0301'}, files=several, headers=token)
    assert len(done.json()['photos']) == 2
    assert found(client, photo('red')) == ['Apple', 'Café']
    assert found(client, photo('green', 'PNG'), 1) == ['Café']
    best = client.post('/search', content=photo('red'), headers=HEADERS).json()['results'][0]['products'][0]
    assert best == {'name': 'Apple', 'similarity': pytest.approx(1, abs=0.02), 'photo': photo_id(photo('red'))}
    assert client.get('/catalog', headers=token).json()['photos'] == 3
    assert client.post('/catalog?product=Apple', content=photo('red'), headers=HEADERS).json()['replaced'] == 1
    # Another process adds a product, and this one finds it.
    open_catalog(folder).add(np.array([[0, 0, 1]], np.float32), ['Sky'], ['1.jpg'])
    assert found(client, photo('blue'), 1) == ['Sky']
    assert client.delete('/catalog', params={'product': 'Caf\u00e9'}, headers=token).json() == {'photos': 2}
    assert sorted(found(client, photo('green'))) == ['Apple', 'Sky']
    assert client.delete('/catalog?product=Tea', headers=token).status_code == 404


def test_mistakes(client):
    for query, body, status in (
        ('', photo(), 422),
        ('?product=', photo(), 400),
        (f'?product={"x" * 1001}', photo(), 400),
        ('?product=%00', photo(), 400),
        ('?product=Tea', b'no photo', 400),
    ):
        done = client.post(f'/catalog{query}', content=body, headers=HEADERS)
        assert (done.status_code, list(done.json())) == (status, ['error']), query
    assert client.post('/search?k=0', content=photo(), headers=HEADERS).status_code == 422
    assert client.get('/catalog', headers=HEADERS).json()['photos'] == 0


def test_changes_need_a_token(client, folder):
    photos = {'Content-Type': 'image/jpeg'}
    assert client.post('/catalog?product=Tea', content=photo(), headers=photos).status_code == 401
    assert client.delete('/catalog?product=Tea').status_code == 401
    with client_of(folder) as open_to_all:
        done = open_to_all.post('/catalog?product=Tea', content=photo(), headers=photos)
        assert (done.status_code, 'SERVE.TOKEN_FILE' in done.json()['error']) == (403, True)
        assert open_to_all.delete('/catalog?product=Tea').status_code == 403
        assert open_to_all.post('/search', content=photo(), headers=photos).status_code == 200


def test_without_a_catalog_there_are_no_routes():
    service = Service(Served(MeanColor('one')), ServiceOptions())
    app = create_app(service, lifespan=lambda _: service.running())
    assert not {'/search', '/catalog'} & {route.path for route in app.routes}
