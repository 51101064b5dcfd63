"""Clients of S3 and of web servers: pyarrow.fs and fsspec, behind one small interface without retries.

Credentials are found by the provider's own chain (variables, profiles, roles of the machine), never by this project.
"""

import email.utils
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lib.runtime.mirror import Version

if TYPE_CHECKING:
    from requests import Session

TIMEOUT = (10, 60)  # seconds: to connect, and for an answer
_PARALLEL, _MAX_CONNECTIONS = 16, 64


@dataclass(frozen=True)
class Entry:
    """An object or a folder in a listing: its name relative to the listed folder, bytes, seconds of its last change."""

    name: str
    size: int
    seconds: int
    is_folder: bool


class RefusedRequest(OSError):
    """A request that the server refuses, or did not answer in all attempts; `strerror` is for the user."""


@dataclass(frozen=True)
class OpenObject:
    """An object whose ranges can be read: read(offset, length) returns bytes, fewer at its end."""

    version: Version
    read: Callable[[int, int], bytes]


class Engine(Protocol):
    """The client of one kind of server. Keys are without the bucket; errors are OSErrors of any text."""

    def open(self, key: str) -> OpenObject:
        """Open an object by one request. Raises: FileNotFoundError."""

    def kind(self, key: str) -> str:
        """Return 'file', 'folder' or ''."""

    def entries(self, key: str, recursive: bool) -> Iterator[Entry]:
        """Yield the entries of a folder. Raises: FileNotFoundError."""

    def upload(self, key: str, path: Path) -> None:
        """Write an object that is visible only when it is complete."""

    def remove(self, key: str) -> None:
        """Remove an object. Raises: FileNotFoundError."""

    def remove_folder(self, key: str) -> None:
        """Remove all objects of a folder. Raises: FileNotFoundError."""

    def copy(self, key: str, other: str) -> None:
        """Copy an object on the server."""


class S3Engine:
    """A bucket of S3, or of a server with its interface, through pyarrow.fs."""

    def __init__(self, scheme: str, bucket: str) -> None:
        """Find the credentials; no request is made except for the region of a bucket in S3."""
        from pyarrow import fs

        self._fs, self._bucket = fs, bucket
        # from_uri would have a time limit of 3 seconds, in which a slow server does not store a part of a file.
        endpoint = os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')
        region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
        self._files = fs.S3FileSystem(
            endpoint_override=endpoint,
            region=region or (None if endpoint else fs.resolve_s3_region(bucket)),
            connect_timeout=TIMEOUT[0],
            request_timeout=TIMEOUT[1],
        )

    def _path(self, key: str) -> str:
        return f'{self._bucket}/{key}' if key else self._bucket

    def open(self, key: str) -> OpenObject:
        """Open an object."""
        file = self._files.open_input_file(self._path(key))
        found = {name.lower(): _text(value) for name, value in dict(file.metadata() or {}).items()}
        tag, seconds = found.get('etag', '').strip('"'), _seconds_of(found.get('last-modified', ''))
        # For the S3 client, an answer that is cut within its header is no error, but an object of 0 bytes.
        if not (tag and seconds) or (file.size() == 0 and not self._is_empty(key)):
            raise OSError('incomplete answer')
        version = Version(file.size(), seconds, tag)
        return OpenObject(version, lambda offset, length: file.read_at(length, offset))

    def _is_empty(self, key: str) -> bool:
        folder, _, name = key.rpartition('/')
        return any(entry.name == name and entry.size == 0 for entry in self.entries(folder, recursive=False))

    def kind(self, key: str) -> str:
        """Find the kind of a key."""
        kinds = {self._fs.FileType.File: 'file', self._fs.FileType.Directory: 'folder'}
        return kinds.get(self._files.get_file_info(self._path(key)).type, '')

    def entries(self, key: str, recursive: bool) -> Iterator[Entry]:
        """Yield the entries."""
        folder = self._path(key)
        for info in self._files.get_file_info(self._fs.FileSelector(folder, recursive=recursive)):
            is_folder = info.type == self._fs.FileType.Directory
            name = info.path[len(folder) :].strip('/')
            yield Entry(name, info.size or 0, (info.mtime_ns or 0) // 10**9, is_folder)

    def upload(self, key: str, path: Path) -> None:
        """Write an object in parts.

        A stream that is destroyed before all parts are written completes the object. So the mapped file is written by
        one call, which no signal interrupts, and after which a failure leaves no object.
        """
        from pyarrow import memory_map

        stream = self._files.open_output_stream(self._path(key))
        if path.stat().st_size:
            with memory_map(str(path)) as file:
                stream.write(file.read_buffer())
                stream.close()
        else:
            stream.close()

    def remove(self, key: str) -> None:
        """Remove an object."""
        self._files.delete_file(self._path(key))

    def remove_folder(self, key: str) -> None:
        """Remove the objects of a folder, a thousand by a request, or each by one.

        For servers such as Swift, a request for many objects needs an MD5, which AWS's client no longer sends.
        """
        try:
            self._files.delete_dir(self._path(key))
        except OSError as error:
            if 'Content-MD5' not in str(error):
                raise
            for entry in self.entries(key, recursive=True):
                if not entry.is_folder:
                    self.remove(f'{key}/{entry.name}')

    def copy(self, key: str, other: str) -> None:
        """Copy an object."""
        self._files.copy_file(self._path(key), self._path(other))


class WebEngine:
    """A web server, read only, through fsspec."""

    def __init__(self, scheme: str, host: str) -> None:
        """Prepare. Raises: RefusedRequest, if a package is missing."""
        import fsspec

        try:
            self._files = fsspec.filesystem(scheme, use_listings_cache=False)
        except ImportError:
            raise RefusedRequest(errno.ENOSYS, missing_package(scheme)) from None
        self._address = f'{scheme}://{host}/'

    def open(self, key: str) -> OpenObject:
        """Open an object."""
        url = self._url(key)
        with _web_errors(url):
            info = self._files.info(url)
        if info.get('size') is None:
            raise RefusedRequest(errno.EINVAL, 'the server sends no size of this file')
        changed = str(info.get('Last-Modified', ''))
        version = Version(info['size'], _seconds_of(changed), str(info.get('ETag', changed)).strip('"'))

        def read(offset: int, length: int) -> bytes:
            with _web_errors(url):
                data = self._files.cat_file(url, start=offset, end=offset + length)
            if len(data) > length:
                reason = 'the server has no HTTP ranges, which packed images and files above 8 MB need'
                raise RefusedRequest(errno.ENOSYS, reason, url)
            return data

        return OpenObject(version, read)

    def kind(self, key: str) -> str:
        """Return 'file' if there is one; a web server has no folders, so that any other path counts as one."""
        try:
            self.open(key)
        except (FileNotFoundError, RefusedRequest):
            return 'folder'
        return 'file'

    def entries(self, key: str, recursive: bool) -> Iterator[Entry]:
        """Refuse, since web servers have no listings."""
        raise RefusedRequest(errno.ENOSYS, 'a web server has no list of its files; give annotations or packed images')

    def upload(self, key: str, path: Path) -> None:
        """Refuse."""
        raise RefusedRequest(errno.EROFS, 'https is for reading only')

    def remove(self, key: str) -> None:
        """Refuse."""
        raise RefusedRequest(errno.EROFS, 'https is for reading only')

    def remove_folder(self, key: str) -> None:
        """Refuse."""
        raise RefusedRequest(errno.EROFS, 'https is for reading only')

    def copy(self, key: str, other: str) -> None:
        """Refuse."""
        raise RefusedRequest(errno.EROFS, 'https is for reading only')

    def _url(self, key: str) -> str:
        """Return the URL of a key, in which `#` and `?` belong to a name; `%20` is one character, as in any URL."""
        return self._address + key.replace('#', '%23').replace('?', '%3F')


@contextmanager
def _web_errors(url: str) -> Iterator[None]:
    """Turn errors into OSErrors, with the words of lib/runtime/bucket.py; fsspec may report any as a missing file."""
    from aiohttp import ClientError

    try:
        yield
    except (FileNotFoundError, ClientError) as error:
        cause = error if isinstance(error, ClientError) else error.__cause__
        status = getattr(cause, 'status', None)
        if cause is None or status in (404, 410):
            raise FileNotFoundError(url) from None
        if status in (401, 403):
            raise RefusedRequest(errno.EACCES, 'the server denies access to this file', url) from None
        raise OSError(f'HTTP status {status}: {cause}' if status else str(cause)) from None


def engine_of(scheme: str) -> Callable[[str, str], Engine]:
    """Return the client of a scheme; the packages of the others are not imported."""
    if scheme == 'gs':
        from lib.runtime.google_client import GoogleEngine

        return GoogleEngine
    if scheme in ('abfs', 'abfss'):
        from lib.runtime.azure_client import AzureEngine

        return AzureEngine
    return S3Engine if scheme == 's3' else WebEngine


def folder_prefix(key: str) -> str:
    """Return the text with which the keys of the objects of a folder begin."""
    return f'{key}/' if key else ''


def remove_all(engine: Engine, keys: Iterable[str]) -> None:
    """Remove those objects that still exist, several at a time."""

    def remove(key: str) -> None:
        with suppress(FileNotFoundError):
            engine.remove(key)

    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(remove, keys))


def widened(session: 'Session') -> 'Session':
    """Let a session have a connection per thread; with its default of 10, the others would connect for each request."""
    from requests.adapters import HTTPAdapter

    for scheme in ('http://', 'https://'):
        session.mount(scheme, HTTPAdapter(pool_connections=_MAX_CONNECTIONS, pool_maxsize=_MAX_CONNECTIONS))
    return session


def missing_package(scheme: str) -> str:
    """Return the message for the user about a client that is not installed."""
    return f'{scheme}:// needs a package; type: pip install -r requirements-storage.txt'


def _text(value: bytes | str) -> str:
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value)


def _seconds_of(time_text: str) -> int:
    """Return the seconds of a time in one of the forms of HTTP and JSON; 0 for any other text."""
    with suppress(ValueError):
        return int(datetime.fromisoformat(time_text.replace('Z', '+00:00')).timestamp())
    with suppress(ValueError, TypeError):
        return int(email.utils.parsedate_to_datetime(time_text).timestamp())
    return 0
