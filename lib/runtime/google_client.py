"""Client of Google Cloud Storage: Google's package, behind the interface of lib/runtime/storage_clients.py.

pyarrow.fs has one, too, but that starts to download every object that it opens, and lists no folders.
"""

import base64
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.errors import shown
from lib.runtime.mirror import Version
from lib.runtime.storage_clients import (
    TIMEOUT,
    Entry,
    OpenObject,
    RefusedRequest,
    folder_prefix,
    missing_package,
    remove_all,
    widened,
)


class GoogleEngine:
    """A bucket of Google Cloud Storage. STORAGE_EMULATOR_HOST and API_ENDPOINT_OVERRIDE set another server."""

    def __init__(self, scheme: str, bucket: str) -> None:
        """Find the credentials. Raises: RefusedRequest, if there are none or the package is missing."""
        try:
            from google.cloud import storage
        except ImportError:
            raise RefusedRequest(errno.ENOSYS, missing_package('gs')) from None
        with _errors():
            client = storage.Client(project=None)  # which only creating a bucket needs
        widened(client._http)
        self._bucket = client.bucket(bucket)

    def open(self, key: str) -> OpenObject:
        """Open an object; its ranges are those of this version."""
        with _errors():
            blob = self._bucket.get_blob(key, retry=None, timeout=TIMEOUT)
        if blob is None:
            raise FileNotFoundError(key)
        generation, size = blob.generation, blob.size or 0
        # Composite objects have no MD5; their generation changes with the content.
        tag = base64.b64decode(blob.md5_hash).hex() if blob.md5_hash else str(generation)

        def read(offset: int, length: int) -> bytes:
            end = min(offset + length, size)
            if offset >= end:
                return b''
            with _errors():
                return self._bucket.blob(key, generation=generation).download_as_bytes(
                    start=offset, end=end - 1, raw_download=True, checksum=None, retry=None, timeout=TIMEOUT
                )

        return OpenObject(Version(size, int(blob.updated.timestamp()), tag), read)

    def kind(self, key: str) -> str:
        """Find the kind of a key."""
        with _errors():
            if self._bucket.get_blob(key, retry=None, timeout=TIMEOUT) is not None:
                return 'file'
        with _errors(is_listing=True):
            return 'folder' if next(iter(self._blobs(key, max_results=1)), None) is not None else ''

    def entries(self, key: str, recursive: bool) -> Iterator[Entry]:
        """Yield the entries: folders in those that are not recursive."""
        found = self._blobs(key, delimiter=None if recursive else '/')
        prefix, is_empty = folder_prefix(key), bool(key)
        with _errors(is_listing=True):
            for blob in found:
                is_empty = False
                if not blob.name.endswith('/'):  # a mark of a folder
                    yield Entry(blob.name.removeprefix(prefix), blob.size or 0, int(blob.updated.timestamp()), False)
        for name in sorted(found.prefixes):
            is_empty = False
            yield Entry(name.removeprefix(prefix).rstrip('/'), 0, 0, True)
        if is_empty:
            raise FileNotFoundError(key)

    def _blobs(self, key: str, **options: Any) -> Any:
        return self._bucket.list_blobs(prefix=folder_prefix(key) or None, retry=None, timeout=TIMEOUT, **options)

    def upload(self, key: str, path: Path) -> None:
        """Write an object, which is visible when the request with its last bytes is answered."""
        with _errors():
            blob = self._bucket.blob(key)
            blob.upload_from_filename(path, 'application/octet-stream', retry=None, timeout=TIMEOUT)

    def remove(self, key: str) -> None:
        """Remove an object."""
        with _errors():
            self._bucket.blob(key).delete(retry=None, timeout=TIMEOUT)

    def remove_folder(self, key: str) -> None:
        """Remove the objects of a folder."""
        with _errors(is_listing=True):
            names = [blob.name for blob in self._blobs(key)]
        remove_all(self, names)

    def copy(self, key: str, other: str) -> None:
        """Copy an object."""
        source, target, token = self._bucket.blob(key), self._bucket.blob(other), None
        with _errors():
            while True:
                token, _, _ = target.rewrite(source, token, retry=None, timeout=TIMEOUT)
                if token is None:
                    return


@contextmanager
def _errors(*, is_listing: bool = False) -> Iterator[None]:
    """Turn errors into OSErrors, with the words of lib/runtime/bucket.py. Listings fail only without their bucket."""
    from google.api_core.exceptions import GoogleAPICallError, NotFound
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption
    from urllib3.exceptions import HTTPError

    try:
        yield
    except NotFound as error:
        raise OSError('NoSuchBucket') if is_listing else FileNotFoundError(str(error)) from None
    except GoogleAuthError as error:
        raise OSError(str(error) if error.retryable else f'Unauthorized: {shown(error)}') from None
    except GoogleAPICallError as error:
        raise OSError(f'HTTP status {int(error.code or 0)}: {error.message}') from None
    except (HTTPError, DataCorruption, ValueError) as error:  # an answer breaks off, a file changes during its upload
        raise OSError(str(error)) from None
