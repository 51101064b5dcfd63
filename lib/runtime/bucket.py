"""Requests to a bucket or a web server: repeated after failures that may pass, with errors in words."""

import errno
import functools
import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from lib.errors import shown
from lib.runtime.leaving import call
from lib.runtime.mirror import Version
from lib.runtime.storage_clients import Engine, Entry, OpenObject, RefusedRequest, engine_of

Result = TypeVar('Result')
_ATTEMPTS, _FIRST_PAUSE_SECONDS = 6, 0.1  # the pause doubles; the S3 client repeats some requests by itself before
_CHUNK_BYTES = 8 << 20
_MAX_OPEN = 256
_PARALLEL = 16  # requests for parts of one object
_PART_BYTES = tuple(size << 20 for size in (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128))  # of multipart uploads
_MAX_GAP, _MAX_RANGE = 64 << 10, 8 << 20  # bytes: neighbors with a smaller gap are read by one request
_NO_FOLDER = '.no-such-folder'

# Words in the errors of the clients, which hold names of objects, too -> what the user can do. The first one counts.
_REASONS = (
    (
        ('TOO_SKEWED', 'TooSkewed'),
        errno.ETIME,
        "refused, since this machine's clock differs from that of the server by more than some minutes; set the clock",
    ),
    (('NO_SUCH_BUCKET', 'NoSuchBucket', 'ContainerNotFound', 'bucket does not exist'), errno.ENOENT, 'no such bucket'),
    (
        (
            'ACCESS_DENIED', 'AccessDenied', 'INVALID_ACCESS_KEY', 'InvalidAccessKey', 'SIGNATURE_DOES_NOT_MATCH',
            'InvalidToken', 'ExpiredToken', 'EXPIRED_TOKEN', 'INVALID_CLIENT_TOKEN', 'UNRECOGNIZED_CLIENT',
            'PERMISSION_DENIED', 'UNAUTHENTICATED', 'AuthenticationFailed', 'AuthorizationFailure',
            'CredentialUnavailable', 'Unauthorized:', 'HTTP status 401', 'HTTP status 403',
        ),
        errno.EACCES,
        'access denied; check the credentials that the command finds: variables such as AWS_PROFILE or '
        'GOOGLE_APPLICATION_CREDENTIALS, the profile files, or the role of the machine (see docs/storage.md)',
    ),
)  # fmt: skip
_THROTTLED = ('SLOW_DOWN', 'SlowDown', 'THROTTL', 'Throttl', 'HTTP status 503', 'HTTP status 429', 'TooManyRequests')
_THROTTLED_REASON = 'the server keeps answering that there are too many requests; run the command again later'
# Repeating these for a minute would only delay the error of a first request.
_NO_NAME = ('Could not resolve host', 'Failed to resolve')
_UNREACHABLE = 'the server cannot be reached, or drops the connection ({}); check the network and {}'
_ADDRESSES = {
    's3': 'AWS_ENDPOINT_URL, if it is set',
    'gs': 'STORAGE_EMULATOR_HOST, if it is set',
    'abfs': 'AZURE_STORAGE_CONNECTION_STRING, if it is set',
    'https': 'the address',
}
_NOT_LOST = 'the file stays in the cache of this machine, and the next command that uses its folder uploads it'


class Bucket:
    """The objects of a bucket, by key, for any thread. Requests are repeated after failures that may pass.

    All methods raise RefusedRequest, and FileNotFoundError if there is no such object.
    """

    def __init__(self, scheme: str, name: str) -> None:
        """Set the address; the first request connects."""
        self.scheme, self.name = scheme, name
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._opened: dict[str, OpenObject] = {}
        self._is_known = scheme == 'https'  # that the bucket exists
        self._has_answered = False
        self._are_tags_checksums = True

    def version(self, key: str) -> Version:
        """Return the present version of an object."""
        return self._open(key).version

    def kind(self, key: str) -> str:
        """Return 'file', 'folder' or '' if there is nothing at the key."""
        kind = self._request(key, lambda engine: engine.kind(key)) if key else 'folder'
        if not kind:
            self._check_exists()
        return kind

    def entries(self, key: str, *, recursive: bool = False) -> list[Entry]:
        """Return the entries of a folder, sorted by name."""
        found = self._request(key, lambda engine: list(engine.entries(key, recursive)))
        return sorted((entry for entry in found if entry.name), key=lambda entry: entry.name)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return a range of an object, fewer bytes at its end."""

        def read(engine: Engine) -> bytes:
            opened = self._opened.get(key) or self._open(key)
            try:
                data = opened.read(offset, length)
                if len(data) == max(0, min(length, opened.version.size - offset)):
                    return data
                reason = 'incomplete answer'
            except RefusedRequest:
                raise
            except OSError as error:
                reason = str(error)  # perhaps the object was replaced, and the next attempt opens the new one
            self._opened.pop(key, None)
            raise OSError(reason)

        return self._request(key, read)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]], pool: ThreadPoolExecutor) -> list[bytes]:
        """Return ranges of an object, given as (offset, length); neighbors are read by one request."""
        groups = joined_ranges(ranges)
        blocks = (pool.map if len(groups) > 1 else map)(lambda group: self.read(key, group[0], group[1]), groups)
        found: list[bytes] = [b''] * len(ranges)
        for (start, _, members), block in zip(groups, blocks, strict=True):
            for number in members:
                offset, length = ranges[number]
                found[number] = block[offset - start : offset - start + length]
        return found

    def download(self, key: str, descriptor: int) -> Version:
        """Write a whole object to a file, in parts at a time; return its version."""
        damaged: str | None = None
        opened = self._opened.get(key)  # by `version`, just before
        while True:
            version = (opened or self._open(key)).version
            offsets = range(0, version.size, _CHUNK_BYTES)
            os.ftruncate(descriptor, version.size)

            def fetch(offset: int) -> None:
                os.pwrite(descriptor, self.read(key, offset, _CHUNK_BYTES), offset)

            if len(offsets) > 1:
                with ThreadPoolExecutor(min(len(offsets), _PARALLEL)) as pool:
                    list(pool.map(fetch, offsets))
            elif offsets:
                fetch(0)
            digest = _digest(descriptor, version) if self._are_tags_checksums else ''
            if digest not in ('', version.tag):
                if digest != damaged:
                    damaged, opened = digest, None
                    continue
                # The same again, so the tags of this bucket, such as encrypted ones, are no checksums.
                self._are_tags_checksums = False
            opened = self._opened.get(key) or self._open(key)
            if digest == version.tag or opened.version == version:
                return version  # else it was replaced, and some parts may be those of the new object

    def upload(self, key: str, path: Path) -> Version:
        """Write a file as an object; return its version."""
        self._opened.pop(key, None)
        try:
            self._request(key, lambda engine: engine.upload(key, path))
        except RefusedRequest as error:
            error.strerror = f'{error.strerror}; {_NOT_LOST}'
            raise
        return self._open(key).version

    def remove(self, key: str) -> None:
        """Remove an object, if it exists."""
        self._opened.pop(key, None)
        with suppress(FileNotFoundError):
            self._request(key, lambda engine: engine.remove(key))

    def remove_folder(self, key: str) -> None:
        """Remove all objects of a folder, if there are any."""
        self._opened.clear()
        with suppress(FileNotFoundError):
            self._request(key, lambda engine: engine.remove_folder(key))

    def copy(self, key: str, other: str) -> None:
        """Copy an object on the server."""
        self._request(key, lambda engine: engine.copy(key, other))

    def _open(self, key: str) -> OpenObject:
        opened = self._request(key, lambda engine: engine.open(key))
        with self._lock:
            self._opened.pop(key, None)
            self._opened[key] = opened
            while len(self._opened) > _MAX_OPEN:
                self._opened.pop(next(iter(self._opened)))
        return opened

    def _connected(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = engine_of(self.scheme)(self.scheme, self.name)
            return self._engine

    def _request(self, key: str, work: Callable[[Engine], Result], *, explain: bool = True) -> Result:
        url = f'{self.scheme}://{self.name}/{key}'
        for attempt in range(_ATTEMPTS):
            try:
                result = call(lambda: work(self._connected()))
                self._has_answered = True
                return result
            except RefusedRequest as error:
                error.filename = error.filename or url
                raise
            except FileNotFoundError:
                if explain:
                    self._check_exists()
                raise FileNotFoundError(errno.ENOENT, 'no such object', url) from None
            except (OSError, ValueError) as error:  # pyarrow refuses some names by a ValueError
                refusal = _refusal(error, url)
                if refusal is not None:
                    raise (_refusal(self._explained(error), url) or refusal if explain else refusal) from None
                has_no_network = not self._has_answered and any(words in str(error) for words in _NO_NAME)
                if attempt + 1 == _ATTEMPTS or has_no_network:
                    raise _failure(error, url) from None
                time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.5))
        raise AssertionError('unreachable')

    def _check_exists(self) -> None:
        """Raise RefusedRequest if there is no such bucket: an answer about an object does not show that."""
        if not self._is_known:
            with suppress(FileNotFoundError):
                self._request('', lambda engine: list(engine.entries(_NO_FOLDER, recursive=False)), explain=False)
            self._is_known = True

    def _explained(self, error: Exception) -> Exception:
        """Return the error of a listing, if that fails, too: only its answer has the reason why access is denied."""
        try:
            list(self._connected().entries(_NO_FOLDER, recursive=False))
        except FileNotFoundError:
            return error
        except (OSError, ValueError) as other:
            return other
        return error


def _refusal(error: Exception, url: str) -> RefusedRequest | None:
    """Return the error for the user if another attempt would fail, too."""
    text = str(error)
    for words, number, reason in _REASONS:
        if any(word in text for word in words):
            return RefusedRequest(number, reason, url)
    return RefusedRequest(errno.EINVAL, shown(error), url) if isinstance(error, ValueError) else None


def _failure(error: Exception, url: str) -> RefusedRequest:
    """Return the error for the user after the last attempt."""
    text = str(error)
    if any(word in text for word in _THROTTLED):
        return RefusedRequest(errno.EBUSY, _THROTTLED_REASON, url)
    address = _ADDRESSES[url.partition(':')[0].replace('abfss', 'abfs')]
    return RefusedRequest(errno.EIO, _UNREACHABLE.format(shown(error), address), url)


def _digest(descriptor: int, version: Version) -> str:
    """Return the ETag of a file in S3: its MD5, or that of the MD5s of its parts; '' for another kind of tag."""
    digest, _, num_parts = version.tag.partition('-')
    if not re.fullmatch('[0-9a-f]{32}', digest) or (num_parts and not num_parts.isdecimal()):
        return ''
    if not num_parts:
        return _md5(descriptor, 0, version.size).hexdigest()
    fitting = [size for size in _PART_BYTES if max(1, -(-version.size // size)) == int(num_parts)]
    if not fitting:
        return ''
    for size in fitting:
        parts = [_md5(descriptor, start, size).digest() for start in range(0, max(1, version.size), size)]
        found = f'{hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()}-{num_parts}'
        if found == version.tag:
            break
    return found


def _md5(descriptor: int, start: int, length: int) -> Any:
    md5, end = hashlib.md5(usedforsecurity=False), start + length
    while start < end and (data := os.pread(descriptor, min(end - start, _CHUNK_BYTES), start)):
        md5.update(data)
        start += len(data)
    return md5


@functools.lru_cache(maxsize=64)
def bucket_of(scheme: str, name: str) -> Bucket:
    """Return the bucket, with one client in this process."""
    return Bucket(scheme, name)


def joined_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """Return requests that cover ranges of (offset, length): offset, length, and the numbers of their ranges."""
    groups: list[tuple[int, int, list[int]]] = []
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        offset, length = ranges[number]
        if groups:
            start, size, members = groups[-1]
            end = max(start + size, offset + length)
            if offset <= start + size + _MAX_GAP and end - start <= _MAX_RANGE:
                groups[-1] = (start, end - start, [*members, number])
                continue
        groups.append((offset, length, [number]))
    return groups
