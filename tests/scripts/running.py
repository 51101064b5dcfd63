"""The scripts as a user runs them, and what they leave behind."""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from lib.trainer.checkpointing.io import read_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = Path(__file__).with_name('tiny.yaml')
# RUN.* never comes from a checkpoint, so it is said again wherever one is given.
ON_CPU = ('--RUN_DEVICE', 'cpu', '--RUN_PRECISION', 'float32', '--RUN_NUM_WORKERS', '0')
ENVIRONMENT = {'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}


@dataclass
class Running:
    """A script under way."""

    scripts: 'Scripts'
    command: list[str]
    process: int
    stdout: Path
    stderr: Path

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Return once `text` stands in its output."""
        end = time.monotonic() + seconds
        while text not in self.stdout.read_text():
            assert time.monotonic() < end, f'{text!r} was not said: {self.stdout.read_text()}{self.stderr.read_text()}'
            time.sleep(0.01)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.kill(self.process, signal.SIGINT)

    def wait(self, code: int | None = 0) -> subprocess.CompletedProcess:
        """Return its outcome; its exit code must be `code`, if one is given."""
        found = self.scripts.ask({'wait': self.process, 'seconds': 120})
        done = subprocess.CompletedProcess(self.command, found, self.stdout.read_text(), self.stderr.read_text())
        assert code is None or done.returncode == code, f'{self.command}\n{done.stdout}\n{done.stderr}'
        return done


class Scripts:
    """Starts scripts of the repository in a folder."""

    def __init__(self, server: subprocess.Popen, logs: Path) -> None:
        self._server, self._logs = server, logs
        self._number = 0

    def ask(self, request: dict) -> int:
        """Pass a request to preloaded.py and return its answer."""
        self._server.stdin.write(json.dumps(request) + '\n')
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self,
        folder: Path,
        script: str,
        *options: object,
        report: bool = False,
        environment: dict[str, str] = ENVIRONMENT,
    ) -> Running:
        """Start `python script options...` in `folder`; report.html is left out unless asked for."""
        self._number += 1
        logs = [self._logs / f'{self._number}.{name}' for name in ('stdout', 'stderr')]
        for log in logs:
            log.touch()
        command = [str(REPOSITORY / script), *map(str, options)]
        names = {'stdout': str(logs[0]), 'stderr': str(logs[1]), 'report': report}
        process = self.ask({'argv': command, 'cwd': str(folder), 'env': environment, **names})
        return Running(self, command, process, *logs)

    def run(
        self, folder: Path, script: str, *options: object, code: int | None = 0, report: bool = False
    ) -> subprocess.CompletedProcess:
        """Run `python script options...` in `folder` to its end."""
        return self.start(folder, script, *options, report=report).wait(code)

    def run_until(
        self, folder: Path, signal: str, target: str, count: int, *options: object, code: int
    ) -> subprocess.CompletedProcess:
        """Run main.py, which gets a signal when the function `target` returns for the `count`th time."""
        wrapped = (signal, target, count, REPOSITORY / 'main.py', *options)
        return self.run(folder, 'tests/scripts/raise_signal.py', *wrapped, code=code)


def contents(folder: Path) -> dict[str, str]:
    """Return {name: digest} of all files in a folder but for lock files, which say who was there last, and features.

    Those are kept for whoever looks next, and say nothing that the checkpoint does not.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != '.lock' and path.parent.parent.name != 'features'
    }


def metrics_of(run: Path) -> list[dict]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def check_same_run(run: Path, other: Path, names: Sequence[str] = ('last.pth', 'best_model.pth')) -> None:
    """Hold two runs to be the same bit for bit: weights, optimiser, best model, metrics but for the times."""
    for name in names:
        one, two = read_checkpoint(run / name), read_checkpoint(other / name)
        torch.testing.assert_close(one.state_dict, two.state_dict, rtol=0, atol=0)
        torch.testing.assert_close(one.optimizer, two.optimizer, rtol=0, atol=0)
        assert one.progress == two.progress, name
        assert _without_times(one.history) == _without_times(two.history), name
    assert _without_times(metrics_of(run)) == _without_times(metrics_of(other))


def _without_times(lines: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in line.items() if name not in ('seconds', 'images_per_second')} for line in lines
    ]


def the_error(done: subprocess.CompletedProcess) -> str:
    """Return the one line of a user's mistake."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith('warning: ')]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith('error: ')
    return lines[0]


def left_of(group: int) -> list[int]:
    """Return the processes of a group; those that have ended, but nobody has asked after, do not count."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(')')[2].split()[:3]
            if int(its_group) == group and state not in 'ZX':
                found.append(int(stat.parent.name))
    return found


def wait_until_gone(group: int, seconds: float = 20) -> None:
    """Return once no process of a group is left."""
    end = time.monotonic() + seconds
    while left_of(group):
        assert time.monotonic() < end, f'processes {left_of(group)} outlive the main one'
        time.sleep(0.05)
