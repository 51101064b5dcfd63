"""OpenStack Swift with its S3 API on this machine, for tests: a second implementation beside moto's server.

Debian: swift-proxy, swift-account, swift-container and swift-object, which run in Debian's own Python.
"""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.scripts.rank_runs import free_port

PYTHON = '/usr/bin/python3'
SERVERS = ('object', 'container', 'account', 'proxy')
# swift.conf has a fixed place; storage policies are read from it on import.
START = """\
import runpy, sys
from swift.common import utils
utils.SWIFT_CONF_FILE = sys.argv[1]
sys.argv[:] = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""
SWIFT = """\
[swift-hash]
swift_hash_path_suffix = tests
swift_hash_path_prefix = tests
[storage-policy:0]
name = only
default = yes
"""
SERVER = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_name = {name}
log_level = WARNING
[pipeline:main]
pipeline = {pipeline}
"""
APPLICATION = """\
[app:{name}-server]
use = egg:swift#{name}
"""
# s3api finds its users through tempauth; large uploads are manifests of slo. No memcached runs: the cache stays empty.
PROXY = """\
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:slo]
use = egg:swift#slo
"""
PIPELINE = 'catch_errors cache listing_formats s3api tempauth slo proxy-server'


def missing() -> list[str]:
    """Return the programs of Swift that are not installed."""
    names = [*(f'swift-{name}-server' for name in SERVERS), 'swift-ring-builder']
    return [name for name in names if shutil.which(name) is None]


@dataclass(frozen=True)
class SwiftServer:
    """A running Swift.

    Attributes:
        endpoint: address of its S3 API.
    """

    endpoint: str

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which AWS's client, and so Arrow, finds the server."""
        return {
            'AWS_ENDPOINT_URL': self.endpoint,
            'AWS_ACCESS_KEY_ID': 'test:tester',
            'AWS_SECRET_ACCESS_KEY': 'testing',
            'AWS_DEFAULT_REGION': 'us-east-1',
            'AWS_EC2_METADATA_DISABLED': 'true',
            # Debian's Swift knows no uploads in chunks with checksums, the default of newer clients (NotImplemented).
            'AWS_REQUEST_CHECKSUM_CALCULATION': 'when_required',
            'AWS_RESPONSE_CHECKSUM_VALIDATION': 'when_required',
        }


@contextmanager
def swift_server(folder: Path) -> Iterator[SwiftServer]:
    """Start Swift's servers with all their files in `folder`, on a file system with extended attributes; end them."""
    (folder / 'devices' / 'disk').mkdir(parents=True)
    (folder / 'swift.conf').write_text(SWIFT)
    ports = {name: free_port() for name in SERVERS}
    with ExitStack() as started:
        for name in SERVERS:
            if name != 'proxy':
                _build_ring(folder, name, ports[name])
            started.enter_context(_running(folder, name, ports[name]))
        for port in ports.values():
            _wait_for(f'http://127.0.0.1:{port}', folder)
        yield SwiftServer(f'http://127.0.0.1:{ports["proxy"]}')


def _build_ring(folder: Path, name: str, port: int) -> None:
    """Write the ring of a server: one disk, one replica, few partitions."""
    builder = folder / f'{name}.builder'
    for command in (('create', '4', '1', '0'), ('add', f'r1z1-127.0.0.1:{port}/disk', '1'), ('rebalance',)):
        done = subprocess.run(
            ['swift-ring-builder', str(builder), *command], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def _running(folder: Path, name: str, port: int) -> Iterator[None]:
    config = folder / f'{name}.conf'
    text = SERVER.format(
        port=port, folder=folder, name=name, user=os.environ.get('USER') or 'root',
        pipeline=PIPELINE if name == 'proxy' else f'{name}-server',
    ) + APPLICATION.format(name=name)  # fmt: skip
    config.write_text(text + PROXY if name == 'proxy' else text)
    program = shutil.which(f'swift-{name}-server') or name
    command = [PYTHON, '-c', START, str(folder / 'swift.conf'), program, str(config), '--verbose']
    with open(folder / f'{name}.log', 'w') as log:
        # A server sends signals to its group when it ends.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(endpoint: str, folder: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=5)
            return
        except urllib.error.HTTPError:  # any answer is one
            return
        except OSError:
            logs = ''.join(f'{log.name}\n{log.read_text()[-2000:]}\n' for log in sorted(folder.glob('*.log')))
            assert time.monotonic() < end, logs
            time.sleep(0.2)
