"""HTTP connections: uvicorn's, with the limits that it lacks on heads, on their time, and on the number of connections.

uvicorn reads a head of any length for any time, and a client that reads no answer keeps it in memory. Here the head of
a request, the rest of a body that was refused, and the answer have `seconds` each, and when the server stops, requests
that are on their way over open connections are still answered.
"""

import contextlib
import signal
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from lib.service.interface import error_body

MAX_HEAD_BYTES = 32 << 10
KEEP_ALIVE_SECONDS = 75  # longer than proxies keep an idle connection, or they would send into a closed one
_LINGER_SECONDS = 1.0


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        connections: open at a time.
        seconds: for the head of a request, for the rest of a refused body, and for the answer.
        body_bytes: number of bytes of a refused body that are read, so that the client can read the answer.
    """

    connections: int
    seconds: float
    body_bytes: int


class Connection(HttpToolsProtocol):
    """One connection of a client.

    Attributes:
        is_lost: the client has gone.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_lost = False
        self._limits, self._is_stopping = limits, False
        self._awaited_since: float | None = None  # the head of a request, or the rest of a refused body
        self._unsent_since: float | None = None
        self._num_bytes, self._max_bytes = 0, MAX_HEAD_BYTES
        self._is_in_body = False

    def connection_made(self, transport: Any) -> None:
        """Start the time of the first head; refuse the connection if there are too many."""
        super().connection_made(transport)
        self._await_bytes(MAX_HEAD_BYTES)
        if len(self.connections) > self._limits.connections:
            self.refuse(503, 'too many connections; try again later')

    def connection_lost(self, exc: Exception | None) -> None:
        """Mark the connection, so that no more work is done for its request."""
        self.is_lost = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data, and refuse a head that is too long."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._awaited_since is None:
            return
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes and not self.transport.is_closing():
            self.refuse(431, f'the head of the request has more than {MAX_HEAD_BYTES:,} bytes')

    def on_message_begin(self) -> None:
        """Start the time of a head."""
        super().on_message_begin()
        self.scope['connection'] = self  # type: ignore[typeddict-unknown-key]  # for `is_lost`
        self._await_bytes(MAX_HEAD_BYTES)

    def on_headers_complete(self) -> None:
        """Start the request, whose time is now that of the application."""
        self._awaited_since, self._is_in_body = None, True
        super().on_headers_complete()
        if self._is_stopping:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Note the end of a body; after a refused one, the next head is awaited."""
        super().on_message_complete()
        self._is_in_body = False
        if self.cycle.response_complete:
            self._await_bytes(MAX_HEAD_BYTES)

    def on_response_complete(self) -> None:
        """Await the rest of a body that was refused; a client that asked before sending it may send none."""
        super().on_response_complete()
        if self._is_in_body and self.expect_100_continue:
            self.transport.close()
        elif self._is_in_body:
            self._await_bytes(self._limits.body_bytes)

    def _await_bytes(self, max_bytes: int) -> None:
        self._awaited_since, self._num_bytes, self._max_bytes = self.loop.time(), 0, max_bytes

    def check_time(self) -> None:
        """End the connection if the client sends or reads too slowly."""
        now = self.loop.time()
        if not self.transport.get_write_buffer_size():
            self._unsent_since = None
        elif self._unsent_since is None:
            self._unsent_since = now
        elif now - self._unsent_since > self._limits.seconds:
            self.transport.abort()
            return
        if self._awaited_since is not None and now - self._awaited_since > self._limits.seconds:
            if self._num_bytes and not self._is_in_body:
                self.refuse(408, f'the head of the request took more than {self._limits.seconds:g} s')
            else:
                self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self.refuse(400, 'not a valid HTTP request')

    def refuse(self, status: int, text: str) -> None:
        """Answer with an error, unless an answer is on its way, and close the connection."""
        if self.cycle is None or self.cycle.response_complete:
            body = error_body(text)
            head = b'content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n' % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def shutdown(self) -> None:
        """Close the connection after its request, or, if it has none, after a while in which one may still come."""
        self._is_stopping = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LINGER_SECONDS, super().shutdown)
        else:
            self.cycle.keep_alive = False


class Server(uvicorn.Server):
    """uvicorn's server, which ends with a graceful stop after SIGTERM and Ctrl-C, without raising them again.

    Attributes:
        on_start, on_stop, on_hangup: called when it listens, when it begins to stop, and at SIGHUP.
    """

    on_start: Callable[[], None] = staticmethod(lambda: None)
    on_stop: Callable[[], None] = staticmethod(lambda: None)
    on_hangup: Callable[[], None] = staticmethod(lambda: None)

    def stop(self) -> None:
        """Begin to stop."""
        self.should_exit = True
        self.on_stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second Ctrl-C does not wait for requests."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals within the block."""
        hangup = getattr(signal, 'SIGHUP', None)  # Windows has none
        before = signal.signal(hangup, lambda *_: self.on_hangup()) if hangup else None
        try:
            with super().capture_signals():
                yield
        finally:
            if hangup:
                signal.signal(hangup, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self.on_start()

    async def on_tick(self, counter: int) -> bool:
        """Check the time of all connections, once a second."""
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.check_time()
        return await super().on_tick(counter)


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a TCP socket with an address, which does not listen yet. Raises: OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, 'SO_REUSEPORT'):  # not Windows, where SO_REUSEADDR would allow two servers
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
