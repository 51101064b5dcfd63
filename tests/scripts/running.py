"""Runs scripts as a user does, and reads the files that they write."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.trainer.checkpointing.io import read_checkpoint
from tests.script_server import ENVIRONMENT

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = Path(__file__).with_name('tiny.yaml')
# RUN.* never comes from a checkpoint, so commands that read one repeat it.
ON_CPU = ('--RUN_DEVICE', 'cpu', '--RUN_PRECISION', 'float32', '--RUN_NUM_WORKERS', '0')


@dataclass
class Running:
    """A running script."""

    scripts: 'Scripts'
    command: list[str]
    process: int
    stdout: Path
    stderr: Path

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Return when its output contains `text`."""
        end = time.monotonic() + seconds
        while text not in self.stdout.read_text():
            assert time.monotonic() < end, (
                f'{text!r} is not in the output: {self.stdout.read_text()}{self.stderr.read_text()}'
            )
            time.sleep(0.01)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.kill(self.process, signal.SIGINT)

    def wait(self, code: int | None = 0) -> subprocess.CompletedProcess:
        """Return its outcome, with exit code `code` if one is given."""
        exit_code = self.scripts.request({'wait': self.process, 'seconds': 300})
        done = subprocess.CompletedProcess(self.command, exit_code, self.stdout.read_text(), self.stderr.read_text())
        assert code is None or done.returncode == code, f'{self.command}\n{done.stdout}\n{done.stderr}'
        return done


class Scripts:
    """Starts scripts of the repository through the server of preloaded.py."""

    def __init__(self, address: str, logs: Path) -> None:
        """Connect to the server, which writes the output of scripts into the folder `logs`."""
        self._connection, self._logs = socket.socket(socket.AF_UNIX), logs
        self._connection.connect(address)
        self._replies = self._connection.makefile('r')
        self._number = 0

    def request(self, content: dict) -> int:
        """Send a request to the server and return its reply."""
        self._connection.sendall(f'{json.dumps(content)}\n'.encode())
        return json.loads(self._replies.readline())

    def close(self) -> None:
        """Close the connection, which ends its server."""
        self._replies.close()
        self._connection.close()

    def start(
        self,
        folder: Path,
        script: str,
        *options: object,
        report: bool = False,
        stdin: str | Path = os.devnull,
        environment: dict[str, str] = ENVIRONMENT,
        streams: dict[str, str] | None = None,
    ) -> Running:
        """Start `python script options... < stdin` in `folder`; report.html is written only if `report`.

        `streams`: paths of stdin, stdout or stderr that are not recorded; '' for a closed one.
        """
        self._number += 1
        logs = [self._logs / f'{self._number}.{name}' for name in ('stdout', 'stderr')]
        for log in logs:
            log.touch()
        command = [str(REPOSITORY / script), *map(str, options)]
        names = {
            'stdin': str(stdin),
            'stdout': str(logs[0]),
            'stderr': str(logs[1]),
            **(streams or {}),
            'report': report,
        }
        process = self.request({'argv': command, 'cwd': str(folder), 'env': environment, **names})
        return Running(self, command, process, *logs)

    def run(
        self,
        folder: Path,
        script: str,
        *options: object,
        code: int | None = 0,
        report: bool = False,
        stdin: str | Path = os.devnull,
    ) -> subprocess.CompletedProcess:
        """Run `python script options... < stdin` in `folder` to its end."""
        return self.start(folder, script, *options, report=report, stdin=stdin).wait(code)

    def run_until(
        self, folder: Path, signal: str, target: str, count: int, *options: object, code: int
    ) -> subprocess.CompletedProcess:
        """Run main.py, which receives a signal when the function `target` returns for the `count`th time."""
        wrapped = (signal, target, count, REPOSITORY / 'main.py', *options)
        return self.run(folder, 'tests/scripts/raise_signal.py', *wrapped, code=code)


def contents(folder: Path) -> dict[str, str]:
    """Return {name: digest} of all files in a folder except lock files and cached features."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and not path.name.endswith('.lock') and path.parent.parent.name != 'features'
    }


def metrics_of(run: Path) -> list[dict]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def selected_metrics(run: Path) -> dict:
    """Return the metrics on the valid split of the epoch in best_model.pth."""
    epoch = read_checkpoint(run / 'best_model.pth').progress.epoch
    (line,) = (line for line in metrics_of(run) if (line['epoch'], line['split']) == (epoch, 'valid'))
    return line


def check_same_run(
    run: Path, other: Path, names: Sequence[str] = ('last.pth', 'best_model.pth'), *, with_selection: bool = True
) -> None:
    """Check that two runs are bit-identical: weights, optimizer, best model, its selection, metrics except times."""
    for name in names:
        one, two = read_checkpoint(run / name), read_checkpoint(other / name)
        torch.testing.assert_close(one.state_dict, two.state_dict, rtol=0, atol=0)
        assert (one.optimizer is None) == (two.optimizer is None), name
        if one.optimizer is not None:  # its groups may hold texts, which torch does not compare
            torch.testing.assert_close(one.optimizer['state'], two.optimizer['state'], rtol=0, atol=0)
            assert one.optimizer['param_groups'] == two.optimizer['param_groups'], name
        assert one.progress == two.progress, name
        if with_selection:
            assert one.selection == two.selection, name
            np.testing.assert_array_equal(one.selection.best_scores, two.selection.best_scores)
        assert _without_times(one.history or []) == _without_times(two.history or []), name
    assert _without_times(metrics_of(run)) == _without_times(metrics_of(other))


def _without_times(lines: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in line.items() if name not in ('seconds', 'images_per_second')} for line in lines
    ]


def error_line(done: subprocess.CompletedProcess) -> str:
    """Return the error line of a user's mistake, which must be the only line except warnings."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith('warning: ')]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith('error: ')
    return lines[0]


def processes_of_group(group: int) -> list[int]:
    """Return the ids of running processes of a group, without zombies."""
    processes = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(')')[2].split()[:3]
            if int(its_group) == group and state not in 'ZX':
                processes.append(int(stat.parent.name))
    return processes


def wait_until_gone(group: int, seconds: float = 20) -> None:
    """Return when no process of a group is running."""
    end = time.monotonic() + seconds
    while processes_of_group(group):
        assert time.monotonic() < end, f'processes {processes_of_group(group)} outlive the main process'
        time.sleep(0.05)
