"""Clients of an HTTP service on this machine: a load generator that takes little of the cores that it shares.

It runs in a separate process, with prepared requests over open connections, and reads of an answer only its status
and its length.
"""

import asyncio
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lib.errors import UserError

_LENGTH = b'content-length: '
MAX_CONNECTIONS = 900


@dataclass
class Load:
    """The answers to many requests.

    Attributes:
        statuses: how often each status was answered; 0: no answer.
        latencies: seconds of each request that was answered with 200.
        seconds: from the first request to the last answer.
    """

    statuses: Counter = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def percentile(self, percent: float) -> float:
        """Return a latency, seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class _Client(asyncio.Protocol):
    """One connection, for one request at a time."""

    def __init__(self) -> None:
        self._buffer, self._answer = bytearray(), asyncio.get_running_loop().create_future()
        self.is_open = True

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, request: bytes) -> asyncio.Future:
        """Send a request and return the future of its status."""
        self._buffer.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b'\r\n\r\n')
        if end < 0:
            return
        start = self._buffer.find(_LENGTH) + len(_LENGTH)
        length = int(self._buffer[start : self._buffer.find(b'\r', start)])
        if len(self._buffer) >= end + 4 + length and not self._answer.done():
            self.is_open = b'connection: close' not in self._buffer[:end]
            self._answer.set_result(int(self._buffer[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if not self._answer.done():
            self._answer.set_result(0)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


async def _connected(port: int) -> _Client:
    _, client = await asyncio.get_running_loop().create_connection(_Client, '127.0.0.1', port)
    return client


async def _send(client: _Client, request: bytes, load: Load) -> None:
    started = time.perf_counter()
    status = await client.send(request)
    load.statuses[status] += 1
    if status == 200:
        load.latencies.append(time.perf_counter() - started)


async def closed_loop(port: int, requests: Sequence[bytes], num_clients: int) -> Load:
    """Send all requests; each client sends its next one after the answer to the previous one."""
    load, remaining = Load(), iter(requests)

    async def run() -> None:
        client = await _connected(port)
        for request in remaining:
            if not client.is_open:
                client = await _connected(port)
            await _send(client, request, load)
        client.close()

    started = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(num_clients)))
    load.seconds = time.perf_counter() - started
    return load


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Send `rate` requests per second, whether earlier ones are answered or not."""
    load, free, tasks = Load(), [], set()
    started = time.perf_counter()

    async def run(request: bytes) -> None:
        try:
            client = free.pop() if free else await _connected(port)
        except OSError:
            load.statuses[0] += 1
            return
        await _send(client, request, load)
        if client.is_open:
            free.append(client)

    for number, request in enumerate(islice(cycle(requests), round(rate * seconds))):
        late = time.perf_counter() - started - number / rate
        if late < 0:
            await asyncio.sleep(-late)
        elif number % 20 == 0:
            await asyncio.sleep(0)  # answers are read between
        while len(tasks) >= MAX_CONNECTIONS:
            await asyncio.sleep(0.01)
        task = asyncio.create_task(run(request))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - started
    for client in free:
        client.close()
    return load


def raw_request(path: Path) -> bytes:
    """Return the request that sends a photo as it is."""
    photo = path.read_bytes()
    return (
        b'POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n'
        b'Content-Length: %d\r\n\r\n' % len(photo) + photo
    )


def form_request(path: Path) -> bytes:
    """Return the request that sends a photo as a file of a form."""
    head = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="x.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = head + path.read_bytes() + b'\r\n--XX--\r\n'
    return (
        b'POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=XX\r\n'
        b'Content-Length: %d\r\n\r\n' % len(body) + body
    )


def _work(pipe: Connection, paths: Sequence[Path]) -> None:
    """Run load after load; this is the main function of the process."""
    prepared = {make.__name__: [make(path) for path in paths] for make in (raw_request, form_request)}
    while (order := pipe.recv()) is not None:
        run, port, kind, number, *arguments = order
        requests = list(islice(cycle(prepared[kind]), number)) if number else prepared[kind]
        pipe.send(asyncio.run(run(port, requests, *arguments)))


Clients = Callable[..., Load]


@contextmanager
def clients_for(paths: Sequence[Path]) -> Iterator[Clients]:
    """Yield a function that runs a load in another process: clients(closed_loop, port, 'raw_request', number, 32).

    Its last arguments are those of closed_loop or open_loop after the requests; `number` 0 stands for one per photo.
    """
    context = multiprocessing.get_context('spawn')
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, paths), daemon=True)
    process.start()
    there.close()  # so that the pipe is closed if the process dies

    def run(*order: Any) -> Load:
        here.send(order)
        try:
            return here.recv()
        except EOFError:
            raise UserError('the process of the clients has died; its traceback is above') from None

    try:
        yield run
    finally:
        with suppress(OSError):
            here.send(None)
        process.join(10)
