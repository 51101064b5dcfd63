"""Run the steps of a grid in parallel, each as soon as the models that it needs exist, until all are done or Ctrl-C."""

import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from lib.experiments.grid import SubRun
from lib.runtime.log import duration_text
from lib.runtime.process import PARENT, handled_signals
from lib.runtime.workers import num_cores

_WIDTH = 80
_POLL_SECONDS = 0.2


@dataclass
class Outcome:
    """The end of a grid.

    Attributes:
        failed: name of the run -> reason.
        stopped: True if the user interrupted it.
    """

    failed: dict[str, str]
    stopped: bool


@dataclass
class _Active:
    run: SubRun
    verb: str
    gpu: str
    process: subprocess.Popen
    log: IO
    log_start: int
    started: float


def device_slots(jobs: int | None, gpus: Sequence[str]) -> list[str]:
    """Return the device of each run that may be active at the same time: a GPU's name, or '' for the CPU.

    Without `jobs`, there is one run per GPU, or one on the CPU. More jobs than GPUs are distributed over them.
    """
    jobs = jobs or len(gpus) or 1
    return [gpus[number % len(gpus)] if gpus else '' for number in range(jobs)]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [name.strip() for name in visible.split(',')] if visible else [str(number) for number in range(count)]
    return names[:count]


class Runner:
    """Starts the steps of all runs as processes until all runs are done, have failed or were stopped.

    Args:
        runs: each after those it needs.
        devices: as returned by `device_slots`.
        log: prints a line.
    """

    def __init__(self, runs: Sequence[SubRun], devices: Sequence[str], log: Callable[[str], None] = print) -> None:
        self._log = log
        self._free = list(devices)
        self._threads = max(1, num_cores() // len(devices))
        self._numbers = {run: number for number, run in enumerate(runs, 1)}
        self._waiting = list(runs)
        self._active: list[_Active] = []
        self._done: set[SubRun] = set()
        self._failed: dict[SubRun, str] = {}
        self._previous: dict[SubRun, list[str]] = {}
        self._seconds = dict.fromkeys(runs, 0.0)
        self._stopped = False

    def run(self) -> Outcome:
        """Run everything. At the first Ctrl-C, each run saves a checkpoint and ends; a second one ends them at once."""
        with self._signals():
            try:
                while self._start() or self._active:
                    time.sleep(_POLL_SECONDS)
                    self._collect()
            finally:
                # Not empty only after an exception in this process: no run outlives its grid.
                for active in self._active:
                    active.process.terminate()
                    active.process.wait()
                    active.log.close()
        return Outcome({run.name: reason for run, reason in self._failed.items()}, self._stopped)

    def _start(self) -> bool:
        """Start all runs that can be started; return True if any run has changed its state."""
        changed = False
        for run in list(self._waiting):
            missing = next((need for need in run.needs if need in self._failed), None)
            if missing:
                self._fail(run, f'needs {missing.name}, which failed')
            elif self._stopped or not self._free or not self._done.issuperset(run.needs):
                continue
            else:
                self._begin(run)
            self._waiting.remove(run)
            changed = True
        return changed

    def _begin(self, run: SubRun) -> None:
        step = run.next_step()
        if step is None:
            self._done.add(run)
            seconds = self._seconds[run]
            self._log_run(run, f'done in {duration_text(seconds)}' if seconds else 'already done')
            return
        if step.command == self._previous.get(run):
            self._fail(run, f'{step.verb} ended without error but wrote no result; see {run.log}')
            return
        self._previous[run] = step.command
        gpu = self._free.pop(0)
        environment = {'OMP_NUM_THREADS': str(self._threads), **os.environ, PARENT: str(os.getpid())}
        if gpu:
            environment['CUDA_VISIBLE_DEVICES'] = gpu
        run.log.parent.mkdir(parents=True, exist_ok=True)
        log = open(run.log, 'ab')  # noqa: SIM115 - closed when the process has ended
        # In a new session, so that Ctrl-C reaches it only once, from this process.
        process = subprocess.Popen(
            step.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        self._active.append(_Active(run, step.verb, gpu, process, log, log.tell(), time.monotonic()))
        self._log_run(run, f'{step.verb}{f" on GPU {gpu}" if gpu else ""}')

    def _collect(self) -> None:
        for active in list(self._active):
            code = active.process.poll()
            if code is None:
                continue
            self._active.remove(active)
            self._free.append(active.gpu)
            active.log.close()
            run = active.run
            self._seconds[run] += time.monotonic() - active.started
            if code == 0:
                # The next step of this run is started before any other run.
                self._waiting.insert(0, run)
            elif self._stopped:
                self._log_run(run, 'stopped')
            else:
                output = run.log.read_bytes()[active.log_start :].decode('utf-8', 'replace')
                self._fail(run, f'{active.verb}: {last_error(output)}')

    def _fail(self, run: SubRun, reason: str) -> None:
        self._failed[run] = reason
        self._log_run(run, f'FAILED: {reason}')

    def _log_run(self, run: SubRun, text: str) -> None:
        total = len(self._numbers)
        head = f'[{self._numbers[run]:{len(str(total))}}/{total}] '
        line = f'{head}{run.method.name}, seed {run.seed}: {text}'
        for part in textwrap.wrap(line, _WIDTH, subsequent_indent=' ' * len(head), break_on_hyphens=False):
            self._log(part)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            first, self._stopped = not self._stopped, True
            if first and self._active:
                self._log('stopping after the current training step; press Ctrl-C again to stop now')
            for active in self._active:
                # On Windows, Ctrl-C reaches all processes of a console anyway.
                if os.name != 'nt':
                    active.process.send_signal(signal.SIGINT)

        before = {number: signal.signal(number, stop) for number in handled_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def last_error(log: str) -> str:
    """Return the last `error: ...` of a log, without the prefix, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith('error: ')]
    return (errors or lines or ['ended without output'])[-1].removeprefix('error: ')
