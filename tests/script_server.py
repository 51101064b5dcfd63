"""Server that runs scripts in forks; see tests/scripts/preloaded.py. It needs no imports of torch here."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

PRELOADED = Path(__file__).with_name('scripts') / 'preloaded.py'
ENVIRONMENT = {'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}


@contextmanager
def script_server(environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """Start a server and return its address."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = f'{folder}/socket'  # of at most 100 characters, so not in a folder of pytest
        listener.bind(address)
        listener.listen()
        command = [sys.executable, str(PRELOADED), str(listener.fileno())]
        whole = os.environ | ENVIRONMENT | environment
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=whole, pass_fds=[listener.fileno()]) as server:
            yield address
            server.stdin.close()
