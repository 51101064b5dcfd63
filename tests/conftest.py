"""Settings of all tests: one thread per parallel worker, and other processes only where a test is marked so."""

import contextlib
import gc
import multiprocessing.process
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from lib.runtime import bucket as bucket_module
from lib.runtime import mirror
from lib.runtime.workers import process_context
from tests.cloud_servers import running_emulator
from tests.script_server import script_server
from tests.storage_server import StorageServer, forget, running_server

if 'PYTEST_XDIST_WORKER' in os.environ:
    # A worker per core; torch reads this once, when it is imported, so nothing above imports it.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    # Threads of faiss, one per core whatever the variable above is, sleep instead of spin while they wait.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

# Tests import openvino directly, too, and then it would send usage data.
sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]

# Files of a process that ends are in the system's cache, so no test needs the disk, which takes milliseconds per file.
os.fsync = os.fstat  # type: ignore[assignment]

platform.platform()  # starts `uname -p` in its first call, and caches the result

# Fixtures that start processes; tests that use one of them are marked.
PROCESS_FIXTURES = {'scripts', 'browser', 'per_rank', 'rank_results', 'all_help', 'storage_server'}
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')

ADDRESSES: dict[str, str] = {}
SERVERS = contextlib.ExitStack()  # of the process that starts the workers


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Start the fork server and the server of scripts once for all workers, since each imports for five seconds."""
    if 'not process' in node.config.option.markexpr or not hasattr(os, 'fork'):
        return
    if not ADDRESSES:
        os.environ.setdefault('OMP_NUM_THREADS', '1')
        process_context('tests.fork_server')
        ADDRESSES['fork_server'] = sys.modules['multiprocessing.forkserver']._forkserver._forkserver_address
        ADDRESSES['script_server'] = SERVERS.enter_context(script_server())
    node.workerinput |= ADDRESSES


def pytest_configure(config: pytest.Config) -> None:
    """Use the fork server of all workers in this worker."""
    if address := getattr(config, 'workerinput', {}).get('fork_server'):
        from multiprocessing import forkserver, resource_tracker  # Windows has none

        server = forkserver._forkserver  # type: ignore[attr-defined]
        server._forkserver_address, server._forkserver_alive_fd = address, os.pipe()[1]
        server.ensure_running = forkserver.ensure_running = resource_tracker.ensure_running


def pytest_unconfigure() -> None:
    SERVERS.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if PROCESS_FIXTURES & set(getattr(item, 'fixturenames', ())):
            item.add_marker(pytest.mark.process)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    gc.disable()  # garbage collections would take a third of the time
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    # Otherwise each full garbage collection would visit all tests and modules.
    gc.collect()
    gc.freeze()


def _refuse(*_: object, **__: object) -> None:
    pytest.fail('this test starts a process: mark it with @pytest.mark.process, so that `make test-fast` omits it')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let only tests marked `process` start processes, their fixtures included."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker('process') is None:
            patch.setattr(subprocess.Popen, '__init__', _refuse)
            patch.setattr(multiprocessing.process.BaseProcess, 'start', _refuse)
            # A run in the test's process would ask git for the commit; without it, .git is read.
            patch.setattr('lib.runtime.checkout._git', lambda *_: None)
        else:
            # Starts the fork server, once. Its imports are those of ranks, which would take each of them seconds
            # if a test of loading workers started it.
            process_context('tests.fork_server')
        return (yield)


@pytest.fixture(scope='session')
def browser() -> Iterator:
    """Headless Chromium; `make test` installs it if possible."""
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f'no Chromium on this machine ({", ".join(BROWSERS)}); on Debian: apt-get install chromium')
    # Chromium's sandbox does not work for root, as in containers.
    options = ['--no-sandbox'] if hasattr(os, 'getuid') and os.getuid() == 0 else []
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=options)
        yield started
        started.close()


@pytest.fixture(scope='session')
def start_server(tmp_path_factory) -> Iterator[Callable[[str], StorageServer]]:
    """Return a function that starts an S3 server ('s3') or one of tests.cloud_servers, each once per worker."""
    with contextlib.ExitStack() as started:

        def start(kind: str) -> StorageServer:
            if kind == 's3':
                pytest.importorskip('moto', reason='moto is not installed')
                return started.enter_context(running_server())
            return started.enter_context(running_emulator(kind, tmp_path_factory.mktemp(kind)))

        yield cache(start)


@pytest.fixture(scope='session')
def storage_server(request, start_server) -> StorageServer:
    """Return a server on loopback, without faults: of S3, or of the kind that is the parameter of a test."""
    return start_server(getattr(request, 'param', 's3'))


@pytest.fixture
def bucket(storage_server, tmp_path, monkeypatch) -> Iterator[str]:
    """Return the name of a new bucket; this process finds the server, and knows nothing of any bucket."""
    for name, value in storage_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket_module, '_FIRST_PAUSE_SECONDS', 0.01)
    monkeypatch.setattr(mirror._settings, 'root', '')
    mirror.configure(tmp_path / 'cache', 1 << 30)
    forget()
    yield storage_server.new_bucket()
    forget()
