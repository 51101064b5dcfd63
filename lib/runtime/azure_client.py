"""Client of Azure Blob Storage: Azure's package, behind the interface of lib/runtime/storage_clients.py.

pyarrow.fs has one, too, but that replaces an object by an empty one before it uploads the new content.
"""

import errno
import logging
import os
import time
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

_BLOCK_BYTES, _COPY_SECONDS = 8 << 20, 0.5
_CONNECTION = 'AZURE_STORAGE_CONNECTION_STRING'
_NO_ACCOUNT = f'no account; type abfss://CONTAINER@ACCOUNT.dfs.core.windows.net, or set {_CONNECTION}'


class AzureEngine:
    """A container of Azure, in the account of the URL or of the variables of Azure's command line."""

    def __init__(self, scheme: str, bucket: str) -> None:
        """Find the credentials. Raises: RefusedRequest, if variables are wrong or a package is missing."""
        try:
            from azure.core.pipeline.transport import RequestsTransport
            from azure.storage.blob import ContainerClient
            from requests import Session
        except ImportError:
            raise RefusedRequest(errno.ENOSYS, missing_package('abfs')) from None
        logging.getLogger('azure').setLevel(logging.CRITICAL + 1)  # pages about an error, which is raised, too
        container, _, host = bucket.partition('@')
        self._container: Any  # typed only where Azure's package is installed
        options: dict[str, Any] = {
            'transport': RequestsTransport(session=widened(Session()), session_owner=False),
            'connection_timeout': TIMEOUT[0],
            'read_timeout': TIMEOUT[1],
            'retry_total': 0,
            'max_block_size': _BLOCK_BYTES,
            'max_single_put_size': _BLOCK_BYTES,
        }
        if text := os.environ.get(_CONNECTION):
            try:
                self._container = ContainerClient.from_connection_string(text, container, **options)
            except ValueError:  # whose text may hold the key
                raise RefusedRequest(errno.EINVAL, f'{_CONNECTION} is no connection string') from None
            account = self._container.account_name
            if host and host.partition('.')[0] != account:
                raise RefusedRequest(errno.EINVAL, f'{_CONNECTION} is that of another account, {shown(account)}')
            return
        if not host:
            if not (account := os.environ.get('AZURE_STORAGE_ACCOUNT')):
                raise RefusedRequest(errno.EINVAL, _NO_ACCOUNT)
            host = f'{account}.blob.core.windows.net'
        url = f'https://{host.replace(".dfs.", ".blob.", 1)}'
        try:
            self._container = ContainerClient(url, container, _credential(), **options)
        except ValueError as error:
            raise RefusedRequest(errno.EINVAL, shown(error)) from None

    def open(self, key: str) -> OpenObject:
        """Open an object; its ranges are those of this version."""
        from azure.core import MatchConditions

        client = self._container.get_blob_client(key)
        with _errors():
            found = client.get_blob_properties()
        if _is_folder(found):
            raise FileNotFoundError(key)
        etag, size, md5 = found.etag, found.size, found.content_settings.content_md5

        def read(offset: int, length: int) -> bytes:
            length = min(length, size - offset)
            if length <= 0:
                return b''
            with _errors():
                same = MatchConditions.IfNotModified
                return client.download_blob(offset, length, etag=etag, match_condition=same).readall()

        tag = bytes(md5).hex() if md5 else etag.strip('"')
        return OpenObject(Version(size, int(found.last_modified.timestamp()), tag), read)

    def kind(self, key: str) -> str:
        """Find the kind of a key."""
        from azure.core.exceptions import ResourceNotFoundError

        with _errors():
            try:
                found = self._container.get_blob_client(key).get_blob_properties()
                return 'folder' if _is_folder(found) else 'file'
            except ResourceNotFoundError:
                pages = self._container.list_blobs(folder_prefix(key), results_per_page=1).by_page()
                return 'folder' if next(iter(next(pages, [])), None) is not None else ''

    def entries(self, key: str, recursive: bool) -> Iterator[Entry]:
        """Yield the entries: folders in those that are not recursive."""
        prefix, is_empty = folder_prefix(key), bool(key)
        arguments = {'name_starts_with': prefix or None, 'include': ['metadata']}
        with _errors():
            found = self._container.list_blobs(**arguments) if recursive else self._container.walk_blobs(**arguments)
            folders = set()
            for blob in found:
                is_empty = False
                name = blob.name.removeprefix(prefix).rstrip('/')
                if blob.get('size') is None or _is_folder(blob) or blob.name.endswith('/'):
                    folders.add(name)
                else:
                    yield Entry(name, blob.size, int(blob.last_modified.timestamp()), False)
        for name in sorted(folders):  # the mark of a folder has its name, too
            yield Entry(name, 0, 0, True)
        if is_empty:
            raise FileNotFoundError(key)

    def upload(self, key: str, path: Path) -> None:
        """Write an object, which is visible when the request with its last bytes is answered."""
        with _errors(), open(path, 'rb') as file:
            length = os.fstat(file.fileno()).st_size
            self._container.get_blob_client(key).upload_blob(file, length=length, overwrite=True)

    def remove(self, key: str) -> None:
        """Remove an object."""
        with _errors():
            self._container.delete_blob(key)

    def remove_folder(self, key: str) -> None:
        """Remove the objects of a folder, then the marks of the folders in it, which must be empty in a Data Lake."""
        with _errors():
            found = list(self._container.list_blobs(folder_prefix(key), include=['metadata']))
        remove_all(self, [blob.name for blob in found if not _is_folder(blob)])
        for name in sorted((blob.name for blob in found if _is_folder(blob)), reverse=True):
            self.remove(name)

    def copy(self, key: str, other: str) -> None:
        """Copy an object."""
        source, target = self._container.get_blob_client(key), self._container.get_blob_client(other)
        with _errors():
            status: Any = target.start_copy_from_url(source.url)['copy_status']
            while status == 'pending':
                time.sleep(_COPY_SECONDS)
                status = target.get_blob_properties().copy.status
        if status != 'success':
            raise OSError(f'copy: {status}')


def _credential() -> Any:
    key = os.environ.get('AZURE_STORAGE_KEY') or os.environ.get('AZURE_STORAGE_SAS_TOKEN')
    if key:
        return key
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise RefusedRequest(errno.ENOSYS, missing_package('abfs')) from None
    return DefaultAzureCredential()


def _is_folder(blob: Any) -> bool:
    """Return whether an object is the mark of a folder, in a Data Lake or written by other programs."""
    return str((blob.get('metadata') or {}).get('hdi_isfolder', '')).lower() == 'true'


@contextmanager
def _errors() -> Iterator[None]:
    """Turn errors into OSErrors, with the words of lib/runtime/bucket.py."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceNotFoundError

    try:
        yield
    except ResourceNotFoundError as error:
        if getattr(error, 'error_code', '') == 'ContainerNotFound':
            raise OSError('ContainerNotFound') from None
        raise FileNotFoundError(str(error)) from None
    except ClientAuthenticationError as error:
        raise OSError(f'Unauthorized: {error.message}') from None
    except HttpResponseError as error:
        code = getattr(error, 'error_code', None) or ''
        raise OSError(f'HTTP status {error.status_code} {code}: {error.message}') from None
    except (AzureError, ValueError) as error:  # DeserializationError of an answer that breaks off in its header
        raise OSError(f'{type(error).__name__}: {shown(error)}') from None
