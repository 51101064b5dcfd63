"""The process of the service: it listens, stops gracefully at SIGTERM, and replaces its model with its file."""

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from lib.errors import UserError, shown
from lib.runtime import leaving
from lib.runtime.log import LOGGER
from lib.runtime.read_file import reason_of
from lib.runtime.text import count_of
from lib.service.app import create_app
from lib.service.connection import (
    KEEP_ALIVE_SECONDS,
    Connection,
    ConnectionLimits,
    Server,
    bound_socket,
)
from lib.service.interface import Served
from lib.service.service import Service, ServiceOptions

SECONDS_BETWEEN_CHECKS = 2.0
_MAX_CONNECTIONS, _OTHER_FILES = 1000, 64


def serve(
    load: Callable[[], Served],
    path: Path,
    options: ServiceOptions,
    *,
    host: str,
    port: int,
    **parts: Any,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; then finish the requests in progress, for at most `options.seconds`.

    Args:
        load: loads the model of `path`. It is called again, in a thread, when there is another file at `path`.
        parts: page and feedback, as for create_app.

    Raises:
        UserError: the address cannot be used.
    """
    with _address_errors(host, port):
        listening = bound_socket(host, port)
    with listening:
        version = _file_version(path)
        service = Service(load(), options)
        watcher = _Watcher(service, load, path, version)
        limits = ConnectionLimits(_max_connections(), options.seconds, options.max_bytes)
        config = uvicorn.Config(
            create_app(service, lifespan=watcher.running, **parts),
            http=partial(Connection, limits=limits),  # type: ignore[arg-type]  # it is called like a class
            ws='none',
            log_config=None,
            log_level='error',  # what clients do wrong is no line of the log
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(options.seconds)),
        )
        server = Server(config)
        server.on_start = lambda: LOGGER.info('serving on %s; to stop: Ctrl-C or SIGTERM', _address(listening))
        server.on_stop = service.stop
        server.on_hangup = server.stop if sys.stdin.isatty() else watcher.reload
        with _address_errors(host, port):
            listening.listen()  # another process may have bound the same port while the model was loaded
        server.run([listening])
    answered, failed = service.metrics.totals()
    LOGGER.info('stopped after %s, %s of them with an error', count_of(answered, 'request'), f'{failed:,}')
    leaving.exit_without_waiting(0)  # for a model that is still being loaded, which may take hours with SERVE.NEIGHBORS


@contextmanager
def _address_errors(host: str, port: int) -> Iterator[None]:
    """Raise UserError where the address cannot be used in the block."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'SERVE.HOST {shown(host)}, SERVE.PORT {port}: {reason_of(error)}; --SERVE_PORT 0 takes any free port'
        ) from None


def _max_connections() -> int:
    """Return how many connections fit into the limit of open files, at most 1,000."""
    try:
        import resource
    except ImportError:  # Windows
        return _MAX_CONNECTIONS
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_CONNECTIONS if allowed < 0 else max(1, min(_MAX_CONNECTIONS, allowed - _OTHER_FILES))


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f'http://{f"[{host}]" if ":" in host else host}:{port}'


class _Watcher:
    """Replaces the model of a service when there is another checkpoint at its path: every 2 s, and after SIGHUP.

    Attributes:
        version: version of the file that was loaded last, or could not be loaded.
    """

    def __init__(self, service: Service, load: Callable[[], Served], path: Path, version: tuple[int, ...]) -> None:
        self.version = version
        self._service, self._load, self._path = service, load, path

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Run the service, and watch the file, within the block."""
        async with self._service.running():
            task = asyncio.create_task(self._watch())
            try:
                yield
            finally:
                task.cancel()

    def reload(self) -> None:
        """Load the file soon, also if it seems to be the same; called by a signal handler."""
        self.version = ()

    async def _watch(self) -> None:
        before = self.version
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_CHECKS)
            version = await asyncio.to_thread(_file_version, self._path)
            # A file that has changed since the last check may still be being written.
            is_complete, before = version == before, version
            if version and version != self.version and is_complete:
                self.version = version
                # Not asyncio's threads, for which a service that stops would wait.
                thread = threading.Thread(target=leaving.call, args=(self._swap,), name='load', daemon=True)
                thread.start()
                while thread.is_alive():
                    await asyncio.sleep(SECONDS_BETWEEN_CHECKS)

    def _swap(self) -> None:
        """Load the model and serve it; after an error, the earlier one stays."""
        old = self._service.served.model.version
        try:
            served = self._load()
        except Exception as error:
            LOGGER.warning('the model is not replaced: %s', shown(error))
            return
        new = served.model.version
        if new == old:
            LOGGER.info('%s: the same model as before, %s', self._path, new)
            return
        self._service.swap(served)
        LOGGER.info('%s: model %s replaces %s', self._path, new, old)


def _file_version(path: Path) -> tuple[int, ...]:
    """Return values that change when another file is put at `path`; none if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
