"""An S3 server on loopback: moto's, behind a proxy that delays, cuts, corrupts and refuses a part of the requests.

`python -m tests.storage_server` prints its addresses as JSON and runs until its standard input is closed. Faults depend
on the seed, the request and how often it was made before, not on the order of concurrent requests.
"""

import asyncio
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from lib.runtime import bucket, mirror, outline, storage

REPOSITORY = Path(__file__).parents[1]
KEY_ID, SECRET = 'AKIAPLANTEDPLANTED00', 'planted/secret/k3y+that/no/file/may/hold'
# moto checks no signature, but reads the region from this header.
_SIGNED = f'AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0'
_CONTROL = '/-/'


@dataclass(frozen=True)
class Faults:
    """Faults of the requests to come; all numbers but the delay are fractions of the requests, from 0 to 1.

    Attributes:
        delay: seconds before a request is passed on. If its client ends meanwhile, it is dropped, as if its last bytes
            had not arrived, or passed on, half of them each.
        cut: the connection is closed, before the request is passed on or in the middle of the answer.
        flip: a bit of the object in the answer differs.
        slow_down, denied, skewed, missing: the answer is the error SlowDown (503), AccessDenied, RequestTimeTooSkewed
            or NoSuchBucket.
        only: regular expression: other requests, as 'METHOD /path?query', have no faults and no delay.
        seed: of the choices.
    """

    delay: float = 0.0
    cut: float = 0.0
    flip: float = 0.0
    slow_down: float = 0.0
    denied: float = 0.0
    skewed: float = 0.0
    missing: float = 0.0
    only: str = ''
    seed: int = 0


_REFUSALS = {
    'slow_down': (503, 'SlowDown'),
    'denied': (403, 'AccessDenied'),
    'skewed': (403, 'RequestTimeTooSkewed'),
    'missing': (404, 'NoSuchBucket'),
}


@dataclass(frozen=True)
class StorageServer:
    """A running server, as tests see it.

    Attributes:
        url: of the proxy.
        scheme: of the URLs of its objects.
        secrets: texts that no file may hold.
        port, direct_port: of the proxy, and of the server behind it.
    """

    url: str
    scheme: ClassVar[str] = 's3'
    secrets: ClassVar[tuple[str, ...]] = (KEY_ID, SECRET)
    port: int
    direct_port: int
    _buckets: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a process finds the server and its credentials."""
        return {
            'AWS_ENDPOINT_URL': self.url,
            'AWS_ACCESS_KEY_ID': KEY_ID,
            'AWS_SECRET_ACCESS_KEY': SECRET,
            'AWS_REGION': 'us-east-1',
            'AWS_DEFAULT_REGION': 'us-east-1',
            'AWS_EC2_METADATA_DISABLED': 'true',
            'AWS_CONFIG_FILE': os.devnull,
            'AWS_SHARED_CREDENTIALS_FILE': os.devnull,
        }

    def new_bucket(self) -> str:
        """Create a bucket and return its name."""
        name = f'bucket-{self.direct_port}-{len(self._buckets)}'
        self._buckets.append(name)
        self._create(name)
        return name

    def _create(self, name: str) -> None:
        self._direct('PUT', f'/{name}')

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object, past the proxy."""
        self._direct('PUT', f'/{bucket}/{urllib.parse.quote(key)}', data)

    def put_folder(self, bucket: str, prefix: str, folder: Path) -> None:
        """Write the files of a folder as objects."""
        for path in sorted(folder.rglob('*')):
            if path.is_file():
                self.put(bucket, f'{prefix}/{path.relative_to(folder)}'.lstrip('/'), path.read_bytes())

    def get(self, bucket: str, key: str) -> bytes:
        """Return an object, past the proxy. Raises: FileNotFoundError."""
        return self._direct('GET', f'/{bucket}/{urllib.parse.quote(key)}')

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object, past the proxy."""
        self._direct('DELETE', f'/{bucket}/{urllib.parse.quote(key)}')

    def delete_all(self, bucket: str) -> None:
        """Remove all objects of a bucket, past the proxy."""
        for name in self.names(bucket):
            self.delete(bucket, name)

    def names(self, bucket: str, prefix: str = '') -> dict[str, int]:
        """Return the keys of all objects whose key begins with `prefix`, and their sizes."""
        found: dict[str, int] = {}
        token = ''
        while True:
            query = {'list-type': '2', 'prefix': prefix} | ({'continuation-token': token} if token else {})
            tree = ElementTree.fromstring(self._direct('GET', f'/{bucket}?{urllib.parse.urlencode(query)}'))
            space = tree.tag.partition('}')[0] + '}' if tree.tag[0] == '{' else ''
            for entry in tree.iter(f'{space}Contents'):
                found[entry.findtext(f'{space}Key') or ''] = int(entry.findtext(f'{space}Size') or 0)
            token = tree.findtext(f'{space}NextContinuationToken') or ''
            if not token:
                return found

    def objects(self, bucket: str, prefix: str = '') -> dict[str, bytes]:
        """Return all objects whose key begins with `prefix`, by key."""
        return {name: self.get(bucket, name) for name in self.names(bucket, prefix)}

    def unfinished_uploads(self, bucket: str) -> int:
        """Return the number of multipart uploads that were neither completed nor aborted."""
        return self._direct('GET', f'/{bucket}?uploads').count(b'<UploadId>')

    @contextmanager
    def faults(self, **faults: float | str) -> Iterator[None]:
        """Disturb the requests within the block: see Faults."""
        self._control('PUT', 'faults', json.dumps(asdict(Faults(**faults))).encode())  # type: ignore[arg-type]
        try:
            yield
        finally:
            self._control('PUT', 'faults', json.dumps(asdict(Faults())).encode())

    def requests(self) -> list[str]:
        """Return the requests since the last call: 'METHOD /path?query STATUS', or the name of a fault as status.

        Those whose client ended while they were delayed have a line with 'dropped' or 'abandoned'.
        """
        return json.loads(self._control('GET', 'requests'))

    def key_ids(self) -> list[str]:
        """Return the access keys that signed requests since the last call; '' for none."""
        return json.loads(self._control('GET', 'key_ids'))

    def delayed(self) -> list[str]:
        """Return the requests that are delayed at this moment, as 'METHOD /path?query'."""
        return json.loads(self._control('GET', 'delayed'))

    def _control(self, method: str, name: str, body: bytes = b'') -> bytes:
        return _request(self.port, method, f'{_CONTROL}{name}', body)

    def _direct(self, method: str, path: str, body: bytes = b'') -> bytes:
        return _request(self.direct_port, method, path, body)


def _request(port: int, method: str, path: str, body: bytes) -> bytes:
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    try:
        connection.request(method, path, body, {'Authorization': _SIGNED})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status == 404:
        raise FileNotFoundError(path)
    assert response.status < 300, (method, path, response.status, content[:500])
    return content


@contextmanager
def running_server() -> Iterator[StorageServer]:
    """Run the server in a separate process within the block."""
    with proxy() as addresses:
        yield StorageServer(f'http://127.0.0.1:{addresses["port"]}', **addresses)


def free_port() -> int:
    """Return a port of this machine that no process uses now."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


@contextmanager
def proxy(*arguments: str) -> Iterator[dict[str, int]]:
    """Run this file in a separate process within the block; yield its addresses."""
    command = [sys.executable, '-m', 'tests.storage_server', *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd=REPOSITORY) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.kill()  # it has nothing to finish


def forget() -> None:
    """Forget what this process knows of buckets, as if another one had started."""
    storage._checked.clear()
    outline._outlined.clear()
    bucket.bucket_of.cache_clear()
    mirror._limit.cache_clear()


class _Request:
    """One request, read completely."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode('latin-1').split('\r\n')
        self.method, self.target, _ = first.split(' ')
        self.headers = [tuple(line.split(': ', 1)) for line in lines if ': ' in line]
        self.body = body

    @property
    def name(self) -> str:
        return f'{self.method} {self.target}'

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), '')

    def encoded(self) -> bytes:
        """Return the request as it is passed on: of known length, on a separate connection."""
        dropped = {'connection', 'expect', 'transfer-encoding', 'content-length'}
        lines = [f'{key}: {value}' for key, value in self.headers if key.lower() not in dropped]
        lines += [f'Content-Length: {len(self.body)}', 'Connection: close']
        return '\r\n'.join([f'{self.name} HTTP/1.1', *lines, '', '']).encode('latin-1') + self.body


class _Proxy:
    """Passes requests on, with faults."""

    def __init__(self, direct_port: int) -> None:
        self._direct_port = direct_port
        self._faults = Faults()
        self._counts: Counter[str] = Counter()
        self._log: list[str] = []
        self._delayed: list[str] = []
        self._key_ids: set[str] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await self._read(reader, writer)
                is_control = request.target.startswith(_CONTROL)
                answer = self._control(request) if is_control else await self._answer(request, reader.at_eof)
                writer.write(answer[0])
                await writer.drain()
                if answer[1]:
                    break
        writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Request:
        head = await reader.readuntil(b'\r\n\r\n')
        request = _Request(head, b'')
        if request.header('expect'):
            writer.write(b'HTTP/1.1 100 Continue\r\n\r\n')
        if 'chunked' in request.header('transfer-encoding'):
            parts = []
            while size := int((await reader.readuntil(b'\r\n')).split(b';')[0], 16):
                parts.append(await reader.readexactly(size))
                await reader.readexactly(2)
            request.body = b''.join(parts)
            while await reader.readuntil(b'\r\n') != b'\r\n':
                pass
        else:
            request.body = await reader.readexactly(int(request.header('content-length') or 0))
        return request

    def _control(self, request: _Request) -> tuple[bytes, bool]:
        body = b''
        if request.target == f'{_CONTROL}faults':
            self._faults = Faults(**json.loads(request.body))
            self._counts.clear()
        elif request.target == f'{_CONTROL}delayed':
            body = json.dumps(self._delayed).encode()
        elif request.target == f'{_CONTROL}key_ids':
            body = json.dumps(sorted(self._key_ids)).encode()
            self._key_ids.clear()
        else:
            body, self._log = json.dumps(self._log).encode(), []
        return _response(200, 'OK', body), False

    async def _answer(self, request: _Request, has_ended: Callable[[], bool]) -> tuple[bytes, bool]:
        """Return the bytes of the answer, and whether the connection is closed after it.

        `has_ended` returns whether the client has closed the connection.
        """
        self._key_ids.add(request.header('authorization').partition('Credential=')[2].partition('/')[0])
        faults, draw = self._faults, self._draw(request)
        if faults.only and not re.search(faults.only, request.name):
            faults = Faults()
        if faults.delay:
            self._delayed.append(request.name)
            end = time.monotonic() + faults.delay
            while not has_ended() and time.monotonic() < end:
                await asyncio.sleep(0.01)
            self._delayed.remove(request.name)
            if has_ended():
                is_dropped = bool(int(draw * 1e9) % 2)
                self._log.append(f'{request.name} {"dropped" if is_dropped else "abandoned"}')
                if is_dropped:
                    return b'', True
        fault = self._fault(draw, faults)
        if fault in _REFUSALS:
            status, code = _REFUSALS[fault]
            self._log.append(f'{request.name} {fault}')
            text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
            return _response(status, code, b'' if request.method == 'HEAD' else text.encode()), False
        if fault == 'cut' and int(draw * 1e9) % 2:
            self._log.append(f'{request.name} cut before')
            return b'', True
        answer = await self._pass_on(request)
        head, _, body = answer.partition(b'\r\n\r\n')
        status = head.split(b' ')[1].decode()
        self._log.append(f'{request.name} {fault or status}')
        if fault == 'cut':
            return answer[: len(head) // 2 if len(body) < 2 else len(head) + 4 + len(body) // 2], True
        if fault == 'flip' and request.method == 'GET' and b'/xml' not in head.lower() and body:
            position = int(draw * 1e9) % len(body)
            body = body[:position] + bytes([body[position] ^ 4]) + body[position + 1 :]
        return head + b'\r\n\r\n' + body, False

    def _draw(self, request: _Request) -> float:
        """Return a number from 0 to 1 that depends on the seed, the request and its number."""
        key = f'{request.name} {request.header("range")}'
        self._counts[key] += 1
        text = f'{self._faults.seed} {key} {self._counts[key]}'
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64

    def _fault(self, draw: float, faults: Faults) -> str:
        for name in ('cut', 'flip', *_REFUSALS):
            draw -= getattr(faults, name)
            if draw < 0:
                return name
        return ''

    async def _pass_on(self, request: _Request) -> bytes:
        """Return the server's answer, as one that keeps the connection."""
        reader, writer = await asyncio.open_connection('127.0.0.1', self._direct_port)
        try:
            writer.write(request.encoded())
            await writer.drain()
            answer = await reader.read(-1)
        finally:
            writer.close()
        head, _, body = answer.partition(b'\r\n\r\n')
        if b'transfer-encoding: chunked' in head.lower():
            body = _without_chunks(body)
        first, *lines = head.split(b'\r\n')
        lines = [line for line in lines if not line.lower().startswith((b'connection:', b'transfer-encoding:'))]
        if request.method != 'HEAD':  # whose length is that of the object
            lines = [line for line in lines if not line.lower().startswith(b'content-length:')]
            lines.append(b'Content-Length: %d' % len(body))
        return b'\r\n'.join([b'HTTP/1.1 ' + first.split(b' ', 1)[1], *lines]) + b'\r\n\r\n' + body


def _without_chunks(body: bytes) -> bytes:
    """Return the content of a body that was sent in chunks, each after its length."""
    parts = []
    while size := int(body.partition(b'\r\n')[0] or b'0', 16):
        start = body.index(b'\r\n') + 2
        parts.append(body[start : start + size])
        body = body[start + size + 2 :]
    return b''.join(parts)


def _response(status: int, reason: str, body: bytes) -> bytes:
    head = f'HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n'
    return head.encode() + body


async def _serve(direct_port: int) -> None:
    # Bodies are read by their length, so the limit is that of the headers.
    server = await asyncio.start_server(_Proxy(direct_port).serve, '127.0.0.1', 0, limit=1 << 20)
    addresses = {'port': server.sockets[0].getsockname()[1], 'direct_port': direct_port}
    print(json.dumps(addresses), flush=True)
    await server.serve_forever()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """Run the proxy of the server at a port, by default moto's, until the standard input is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else _start_moto()))


def _start_moto() -> int:
    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import make_server

    app = create_backend_app('s3')
    server = make_server('127.0.0.1', 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


if __name__ == '__main__':
    main()
