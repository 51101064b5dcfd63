"""Runs scripts in forks of a process that has imported torch and lib: imports take longer than the runs.

The argument is the descriptor of a listening socket. Each connection has its own server, a fork of this process, so
that workers of pytest share the imports. It ends when the connection is closed, this process when standard input is.
Each line of a connection is a request, and each reply is a line:
{"argv": [script, ...], "cwd", "env", "stdin", "stdout", "stderr", "report"} -> process id, where an empty path is a
closed stream; {"wait": id, "seconds"} -> exit code.
The server itself computes nothing, so that a fork starts with torch in the state of a fresh process.
"""

import atexit
import gc
import importlib
import json
import os
import platform
import runpy
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pyarrow

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = [f'lib.commands.{path.stem}' for path in sorted((REPOSITORY / 'lib' / 'commands').glob('*.py'))]
HEAVY.append('lib.backbone.split_attention')  # imports timm, which lib imports where it is needed


def listen(listener: socket.socket) -> None:
    """Fork a server per connection until standard input ends."""
    while sys.stdin not in (ready := select.select([listener, sys.stdin], [], [])[0]):
        assert ready == [listener]
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            serve(connection)
            os._exit(0)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # of connections that are closed
                pass


def serve(connection: socket.socket) -> None:
    """Reply to requests until the connection is closed."""
    with connection, connection.makefile('r') as requests:
        for line in requests:
            request = json.loads(line)
            if 'wait' in request:
                reply = _wait(request['wait'], request['seconds'])
            elif (reply := os.fork()) == 0:
                os.close(connection.detach())
                _run(**request)
            connection.sendall(f'{json.dumps(reply)}\n'.encode())


def _wait(process: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            end += seconds
        time.sleep(0.01)


def _run(argv: list[str], cwd: str, env: dict[str, str], stdin: str, stdout: str, stderr: str, report: bool) -> None:
    """Run `python argv...` and end the fork with the script's exit code."""
    if not report:
        # Reports take four times as long as a tiny run.
        sys.modules['lib.commands.report'].training_report = lambda run: 'omitted'
        sys.modules['lib.commands.tau_norm'].rebalanced_report = lambda path, *_: path
    for number, (name, path) in enumerate({'stdin': stdin, 'stdout': stdout, 'stderr': stderr}.items()):
        if path:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY), number)
        else:  # as the interpreter starts when its caller has closed the stream
            setattr(sys, name, None)
            setattr(sys, f'__{name}__', None)
            os.close(number)
    os.fsync = os.fstat  # refuses the same descriptors, and does not wait for the disk
    os.chdir(cwd)
    os.environ.update(env)
    sys.argv[:] = argv
    sys.path[0] = str(Path(argv[0]).parent)
    code = 0
    try:
        runpy.run_path(argv[0], run_name='__main__')
    except SystemExit as exit:
        code = exit.code or 0
    # Like the interpreter's exit, without the destruction of torch's objects, which takes seconds in a fork.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == '__main__':
    sys.path.insert(1, str(REPOSITORY))
    for name in HEAVY:
        importlib.import_module(name)
    pyarrow.array([])  # imports pandas if that is installed
    platform.platform()  # starts `uname -p` in its first call
    # Otherwise a garbage collection in a fork would visit all that is imported here, and copy its memory.
    gc.collect()
    gc.freeze()
    listen(socket.socket(fileno=int(sys.argv[1])))
