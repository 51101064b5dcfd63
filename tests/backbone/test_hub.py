"""Published weights without a network: one line within seconds, whatever the network does."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import timm

from lib.backbone import hub
from lib.backbone.create import changes_with_size, create_backbone, published_weights
from lib.errors import UserError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Yield the port of a server that accepts connections and never answers."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def fails(endpoint: str, monkeypatch, name: str = 'test_vit.r160_in1k', seconds: float = 0.3) -> str:
    """Return the error line; a limit of 0.3 s instead of 6 s keeps the test short."""
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', endpoint + '/{repo_id}/resolve/{revision}/{filename}'
    )
    monkeypatch.setattr(hub, '_REACH_SECONDS', seconds)
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        published_weights(name)
    assert time.monotonic() - started < seconds + 1
    assert '\n' not in str(caught.value)
    return str(caught.value)


def names_the_way_out(line: str) -> bool:
    path = 'pretrain_models/test_vit.r160_in1k.safetensors'
    return all(
        part in line
        for part in ('model.safetensors', 'timm/test_vit.r160_in1k', f'put it at {path}', f'--MODEL_PRETRAINED {path}')
    )


def test_refused_connection(closed_port, monkeypatch):
    line = fails(f'http://127.0.0.1:{closed_port}', monkeypatch, seconds=5)
    assert names_the_way_out(line)
    assert 'refused' in line


def test_server_that_never_answers(silent_port, monkeypatch):
    line = fails(f'http://127.0.0.1:{silent_port}', monkeypatch)
    assert names_the_way_out(line)
    assert 'no answer within 0.3 s' in line or 'timed out' in line


def test_name_of_the_server_is_never_resolved(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: release.wait(20))
    try:
        assert names_the_way_out(fails('http://hub.invalid', monkeypatch))
    finally:
        release.set()


def test_weights_at_a_url(closed_port, monkeypatch):
    """The weights of a few models of timm are not on the hub."""
    name = 'gcvit_tiny.in1k'
    published = timm.get_pretrained_cfg(name)
    monkeypatch.setattr(published, 'url', f'http://127.0.0.1:{closed_port}/weights/gcvit_tiny-1.pth')
    monkeypatch.setattr('timm.models.get_pretrained_cfg', lambda _: published)
    line = fails('http://unused', monkeypatch, name, seconds=5)
    assert f'gcvit_tiny-1.pth of http://127.0.0.1:{closed_port}/weights cannot be downloaded' in line
    assert '--MODEL_PRETRAINED pretrain_models/gcvit_tiny-1.pth' in line


class Server(BaseHTTPRequestHandler):
    """A hub with one file; it has no model.safetensors."""

    content = b'weights'

    def do_HEAD(self) -> None:
        self.respond(with_content=False)

    def do_GET(self) -> None:
        self.respond(with_content=True)

    def respond(self, *, with_content: bool) -> None:
        found = self.path.endswith('/pytorch_model.bin')
        self.send_response(200 if found else 404)
        for key, value in {
            'X-Repo-Commit': '0' * 40,
            'ETag': '"1"',
            'Content-Length': str(len(self.content) if found else 0),
            **({} if found else {'X-Error-Code': 'EntryNotFound'}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if found and with_content:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_download_and_cache(monkeypatch):
    with ThreadingHTTPServer(('127.0.0.1', 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        endpoint = f'http://127.0.0.1:{server.server_port}'
        monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', endpoint)
        monkeypatch.setattr(
            huggingface_hub.constants,
            'HUGGINGFACE_CO_URL_TEMPLATE',
            endpoint + '/{repo_id}/resolve/{revision}/{filename}',
        )
        path, license_name = published_weights('resnet18.a1_in1k')
        server.shutdown()
        thread.join()
    assert path.read_bytes() == Server.content
    assert license_name == 'apache-2.0'
    assert published_weights('resnet18.a1_in1k').path == path  # without the server


def test_backbone_on_the_hub_without_a_network(closed_port, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub.constants,
        'HUGGINGFACE_CO_URL_TEMPLATE',
        f'http://127.0.0.1:{closed_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}',
    )
    with pytest.raises(UserError, match=r'config\.json of .*/shop/vit cannot be downloaded .*pretrain_models/'):
        create_backbone('hf-hub:shop/vit', image_size=64, allow_download=True)


def test_backbone_on_the_hub_at_another_size(tmp_path, monkeypatch):
    """Its config.json describes it; once that is cached, the network is not used."""
    description = {'input_size': [3, 160, 160], 'fixed_input_size': True, 'num_classes': 0, 'license': 'mit'}
    config = {'architecture': 'test_vit', 'num_classes': 0, 'pretrained_cfg': description}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'model.safetensors').touch()
    monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda repo, name, **_: str(tmp_path / name))
    backbone = create_backbone('hf-hub:shop/vit', image_size=64, allow_download=True)
    assert backbone.pos_embed.shape[1] == 1 + (64 // 16) ** 2
    assert changes_with_size('hf-hub:shop/vit')
    assert published_weights('hf-hub:shop/vit') == (tmp_path / 'model.safetensors', 'mit')


@pytest.mark.parametrize('name', ['res32_cifar', 'resnet10t', 'test_vit'])
def test_missing_published_weights_raise_before_any_download(name, monkeypatch):
    monkeypatch.setattr('timm.models.get_pretrained_cfg', lambda _: None)
    with pytest.raises(UserError, match='MODEL'):
        published_weights(name)
