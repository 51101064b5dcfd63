"""Emulators of Google Cloud Storage and Azure on loopback, behind the proxy of tests/storage_server.py."""

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.storage_server import StorageServer, free_port, proxy

# The account that all emulators of Azure have, with its public key.
ACCOUNT = 'devstoreaccount1'
ACCOUNT_KEY = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=='


@dataclass(frozen=True)
class Emulator:
    """A program that answers as a provider does.

    Attributes:
        command: its arguments; {port} and {folder} are replaced.
        packages: Python packages that the tests need with it.
        install: how to install it.
    """

    command: tuple[str, ...]
    packages: tuple[str, ...]
    install: str

    def missing(self) -> str:
        """Return which programs and packages are not installed, and how to install them; '' if none is missing."""
        found = [name for name in self.packages if not _is_installed(name)]
        if shutil.which(self.command[0]) is None:
            found.append(self.command[0])
        return f'{", ".join(found)} not installed ({self.install})' if found else ''


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent
        return False


_PIP = 'python -m pip install -r requirements-dev.txt'
_GOOGLE, _AZURE = 'google.cloud.storage', 'azure.storage.blob'
EMULATORS = {
    'gs': Emulator(
        (sys.executable, '-m', 'gcp_storage_emulator', 'start', '--in-memory', '--host=127.0.0.1', '--port={port}'),
        ('gcp_storage_emulator', _GOOGLE),
        _PIP,
    ),
    'fake_gcs': Emulator(
        ('fake-gcs-server', '-scheme=http', '-backend=memory', '-host=127.0.0.1', '-port={port}', '-log-level=error'),
        (_GOOGLE,),
        f'{_PIP}; fake-gcs-server of fsouza in PATH',
    ),
    'abfs': Emulator(
        (
            'azurite-blob', '--blobHost=127.0.0.1', '--blobPort={port}', '--location={folder}', '--silent',
            '--skipApiVersionCheck', '--disableTelemetry',
        ),
        (_AZURE,),
        f'{_PIP}; npm install --global azurite',
    ),
}  # fmt: skip


# Parameters of the fixture storage_server.
SERVERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ('s3', *EMULATORS)]
every_server = pytest.mark.parametrize('storage_server', SERVERS, indirect=True)


class GoogleServer(StorageServer):
    """An emulator of Google Cloud Storage."""

    scheme = 'gs'
    secrets = ()

    def environment(self) -> dict[str, str]:
        return {'STORAGE_EMULATOR_HOST': self.url}

    @cached_property
    def _client(self) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        options = {'api_endpoint': f'http://127.0.0.1:{self.direct_port}'}
        return storage.Client('tests', AnonymousCredentials(), client_options=options)

    def _create(self, name: str) -> None:
        self._client.create_bucket(name)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self._client.bucket(bucket).blob(key).upload_from_string(data)

    def get(self, bucket: str, key: str) -> bytes:
        return self._client.bucket(bucket).blob(key).download_as_bytes()

    def delete(self, bucket: str, key: str) -> None:
        self._client.bucket(bucket).blob(key).delete()

    def names(self, bucket: str, prefix: str = '') -> dict[str, int]:
        return {blob.name: blob.size for blob in self._client.bucket(bucket).list_blobs(prefix=prefix or None)}


class AzureServer(StorageServer):
    """An emulator of Azure Blob Storage."""

    scheme = 'abfs'
    secrets = (ACCOUNT_KEY,)

    def environment(self) -> dict[str, str]:
        return {'AZURE_STORAGE_CONNECTION_STRING': self._connection(self.port)}

    def _connection(self, port: int) -> str:
        address = f'BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT}'
        return f'DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};{address}'

    @cached_property
    def _client(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self._connection(self.direct_port))

    def _create(self, name: str) -> None:
        self._client.create_container(name)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self._client.get_blob_client(bucket, key).upload_blob(data, overwrite=True)

    def get(self, bucket: str, key: str) -> bytes:
        return self._client.get_blob_client(bucket, key).download_blob().readall()

    def delete(self, bucket: str, key: str) -> None:
        self._client.get_blob_client(bucket, key).delete_blob()

    def names(self, bucket: str, prefix: str = '') -> dict[str, int]:
        found = self._client.get_container_client(bucket).list_blobs(name_starts_with=prefix or None)
        return {blob.name: blob.size for blob in found}


@contextmanager
def running_emulator(kind: str, folder: Path) -> Iterator[StorageServer]:
    """Run an emulator, with its files in `folder`, within the block; skip the test if it is not installed."""
    emulator = EMULATORS[kind]
    if reason := emulator.missing():
        pytest.skip(reason)
    port = free_port()
    command = [part.format(port=port, folder=folder) for part in emulator.command]
    command[0] = shutil.which(command[0]) or command[0]
    with open(folder / 'emulator.log', 'wb') as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_for(port, process)
            with proxy(str(port)) as addresses:
                url = f'http://127.0.0.1:{addresses["port"]}'
                yield (AzureServer if kind == 'abfs' else GoogleServer)(url, **addresses)
        finally:
            process.kill()  # it has nothing to finish


def _wait_for(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(('127.0.0.1', port), timeout=1).close()
        except OSError:
            assert process.poll() is None, 'the emulator has ended'
            assert time.monotonic() < deadline, 'the emulator does not answer'
            time.sleep(0.05)
        else:
            return
