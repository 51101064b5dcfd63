"""A service in another process, and clients for it."""

import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
COLORS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}


def photo(color: str = 'red', kind: str = 'JPEG', size: tuple[int, int] = (40, 30)) -> bytes:
    """Return an image file of one color."""
    file = io.BytesIO()
    Image.new('RGB', size, COLORS[color]).save(file, kind)
    return file.getvalue()


@dataclass
class Reply:
    """The answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RunningService:
    """A service that listens."""

    process: subprocess.Popen
    port: int
    lines: list[str] = field(default_factory=list)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send one request over a new connection; `_` in the name of a header stands for `-`."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
        try:
            names = {name.replace('_', '-'): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.request('GET', path, **headers)

    def predict(self, image: bytes, path: str = '/predict', kind: str = 'image/jpeg', **headers: str) -> Reply:
        return self.request('POST', path, image, Content_Type=kind, **headers)

    def connect(self) -> socket.socket:
        return socket.create_connection(('127.0.0.1', self.port), timeout=30)

    def exchange(self, data: bytes) -> bytes:
        """Send bytes, and return all that is answered until the connection is closed."""
        with self.connect() as connection:
            try:
                connection.sendall(data)
                return received(connection)
            except ConnectionError:
                return b''

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def memory(self) -> float:
        """Return the resident memory, MB."""
        text = Path(f'/proc/{self.process.pid}/status').read_text(encoding='ascii')
        return int(re.search(r'VmRSS:\s+(\d+)', text)[1]) / 1000


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the connection is closed."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b''.join(parts)


@contextmanager
def running(command: list[str], cwd: Path = REPOSITORY) -> Iterator[RunningService]:
    """Start a service, and end it with the block."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        text=True, cwd=cwd,
    )  # fmt: skip
    service = RunningService(process, 0)
    try:
        for line in process.stdout:
            service.lines.append(line.rstrip())
            if found := re.search(r'serving on http://\S+:(\d+)', line):
                service.port = int(found[1])
                break
        assert service.port, '\n'.join(service.lines)
        reader = threading.Thread(target=lambda: service.lines.extend(map(str.rstrip, process.stdout)), daemon=True)
        reader.start()
        yield service
    finally:
        process.kill()
        process.wait()


@contextmanager
def fake_service(folder: Path, version: str = 'one', **options: Any) -> Iterator[RunningService]:
    """Start the service of fake_service.py with a model file in `folder`."""
    path = folder / 'model.txt'
    path.write_text(version, encoding='utf-8')
    script = Path(__file__).parent / 'fake_service.py'
    with running([str(script), str(path), json.dumps(options)]) as service:
        yield service
