"""Stopping, and replacing the model, while clients send requests without a pause: none is lost."""

import http.client
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.service.serving import RunningService, fake_service, photo

pytestmark = [pytest.mark.process, pytest.mark.long]


class Clients:
    """Clients that send one request after the other over open connections, until they are refused."""

    def __init__(self, service: RunningService, number: int) -> None:
        self.versions: Counter[str] = Counter()
        self.faults: list[str] = []
        self.is_stopping = False
        self._service = service
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        image = photo(kind='PNG', size=(1, 1))  # 20 ms
        connection = http.client.HTTPConnection('127.0.0.1', self._service.port, timeout=30)
        while not self.is_stopping:
            try:
                connection.connect()
            except ConnectionRefusedError:
                return  # it does not listen any more: the request was never sent
            while not self.is_stopping:
                try:
                    connection.request('POST', '/predict', image, {'Content-Type': 'image/png'})
                    answer = connection.getresponse()
                    content = answer.read()
                except (OSError, http.client.HTTPException) as error:
                    self.faults.append(f'{type(error).__name__}: {error}')
                    return
                if answer.status != 200:
                    self.faults.append(f'{answer.status}: {content!r}')
                self.versions[answer.status] += 1
                self.versions[content[content.find(b'"model"') :][:20].split(b'"')[3].decode()] += 1
                if answer.headers.get('connection') == 'close':
                    connection.close()
                    break

    def join(self) -> None:
        self.is_stopping = True
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


def replace(path: Path, text: str) -> None:
    """Put another model at `path`, as training does."""
    new = path.with_name('new')
    new.write_text(text, encoding='utf-8')
    os.replace(new, path)


def wait_for(service: RunningService, words: str) -> None:
    end = time.monotonic() + 30
    while not any(words in line for line in service.lines):
        assert time.monotonic() < end, service.lines
        time.sleep(0.05)


def test_swap_and_stop_under_load_lose_no_request(tmp_path: Path):
    with fake_service(tmp_path, batch_size=4) as service:
        clients = Clients(service, 8)
        path = tmp_path / 'model.txt'
        replace(path, 'broken')
        wait_for(service, 'the model is not replaced: this model is broken')
        assert service.get('/classes').json['model'] == 'one'
        replace(path, 'two')
        wait_for(service, 'model two replaces one')
        assert service.get('/ready').json['model'] == 'two'
        assert 'model_info{version="two"} 1.0' in service.get('/metrics').body.decode()
        service.process.send_signal(signal.SIGHUP)  # the same file: nothing happens
        wait_for(service, 'the same model as before')
        replace(path, 'slow')
        wait_for(service, 'loading slowly')  # for longer than `stop` waits
        replies = []
        image = photo(kind='PNG', size=(50, 1))  # 1 s
        thread = threading.Thread(target=lambda: replies.append(service.predict(image)))
        thread.start()
        time.sleep(0.3)
        assert service.stop() == 0
        thread.join()
        assert replies[0].status == 200  # it was in progress
        assert replies[0].headers['connection'] == 'close'
        clients.join()
        assert clients.faults == []
        assert min(clients.versions['one'], clients.versions['two']) > 5
        assert clients.versions['one'] + clients.versions['two'] == clients.versions[200]
        assert any(line.startswith('stopped after') for line in service.lines)
