"""Runs of a grid side by side: each starts when the models it needs are there, and stops well when told to."""

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
from lib.runtime.workers import num_cores

_WIDTH = 80
_POLL_SECONDS = 0.2
_SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


@dataclass
class Outcome:
    """How a grid ended: {name of the run: why it failed}, and whether the user stopped it."""

    failed: dict[str, str]
    stopped: bool


@dataclass
class _Active:
    run: SubRun
    verb: str
    place: str
    process: subprocess.Popen
    log: IO
    log_start: int
    started: float


def places(jobs: int | None, gpus: Sequence[str]) -> list[str]:
    """Return where runs go, one entry for each that may run at a time: a GPU's name, or '' on the CPU.

    `jobs` None: one a GPU, or one. More jobs than GPUs share them in turn.
    """
    jobs = jobs or len(gpus) or 1
    return [gpus[number % len(gpus)] if gpus else '' for number in range(jobs)]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [name.strip() for name in given.split(',')] if given else [str(number) for number in range(count)]
    return names[:count]


class Runner:
    """Runs sub-runs until nothing is left that can be done.

    Args:
        runs: each after those it needs.
        places: as `places` returns them.
        say: prints a line.
    """

    def __init__(self, runs: Sequence[SubRun], places: Sequence[str], say: Callable[[str], None] = print) -> None:
        self._say = say
        self._free = list(places)
        self._threads = max(1, num_cores() // len(places))
        self._numbers = {run: number for number, run in enumerate(runs, 1)}
        self._waiting = list(runs)
        self._active: list[_Active] = []
        self._done: set[SubRun] = set()
        self._failed: dict[SubRun, str] = {}
        self._previous: dict[SubRun, list[str]] = {}
        self._seconds = dict.fromkeys(runs, 0.0)
        self._stopped = False

    def run(self) -> Outcome:
        """Run everything. The first Ctrl-C lets each run save and end, a second one ends them at once."""
        with self._signals():
            try:
                while self._start() or self._active:
                    time.sleep(_POLL_SECONDS)
                    self._collect()
            finally:
                # Only after an error of ours: no run goes on without its grid.
                for active in self._active:
                    active.process.terminate()
                    active.process.wait()
                    active.log.close()
        return Outcome({run.name: why for run, why in self._failed.items()}, self._stopped)

    def _start(self) -> bool:
        """Start what can be started; return whether anything changed."""
        changed = False
        for run in list(self._waiting):
            lost = next((need for need in run.needs if need in self._failed), None)
            if lost:
                self._fail(run, f'needs {lost.name}, which failed')
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
            self._tell(run, f'done in {_duration(seconds)}' if seconds else 'done before')
            return
        if step.command == self._previous.get(run):
            self._fail(run, f'{step.verb} ended well but left no result; see {run.log}')
            return
        self._previous[run] = step.command
        place = self._free.pop(0)
        environment = {'OMP_NUM_THREADS': str(self._threads), **os.environ}
        if place:
            environment['CUDA_VISIBLE_DEVICES'] = place
        run.log.parent.mkdir(parents=True, exist_ok=True)
        log = open(run.log, 'ab')  # noqa: SIM115 - closed when the process has ended
        # A session of its own: Ctrl-C reaches it through us alone, once.
        process = subprocess.Popen(
            step.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        self._active.append(_Active(run, step.verb, place, process, log, log.tell(), time.monotonic()))
        self._tell(run, f'{step.verb}{f" on GPU {place}" if place else ""}')

    def _collect(self) -> None:
        for active in list(self._active):
            code = active.process.poll()
            if code is None:
                continue
            self._active.remove(active)
            self._free.append(active.place)
            active.log.close()
            run = active.run
            self._seconds[run] += time.monotonic() - active.started
            if code == 0:
                # What comes next of the same run comes before new ones.
                self._waiting.insert(0, run)
            elif self._stopped:
                self._tell(run, 'stopped')
            else:
                said = run.log.read_bytes()[active.log_start :].decode('utf-8', 'replace')
                self._fail(run, f'{active.verb}: {last_error(said)}')

    def _fail(self, run: SubRun, why: str) -> None:
        self._failed[run] = why
        self._tell(run, f'FAILED: {why}')

    def _tell(self, run: SubRun, text: str) -> None:
        total = len(self._numbers)
        head = f'[{self._numbers[run]:{len(str(total))}}/{total}] '
        line = f'{head}{run.method.name}, seed {run.seed}: {text}'
        for part in textwrap.wrap(line, _WIDTH, subsequent_indent=' ' * len(head), break_on_hyphens=False):
            self._say(part)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, frame: object) -> None:
            first, self._stopped = not self._stopped, True
            if first and self._active:
                self._say('stopping: each run saves after its step; once more Ctrl-C ends them at once')
            for active in self._active:
                # Windows sends Ctrl-C to the processes of a console itself.
                if os.name != 'nt':
                    active.process.send_signal(signal.SIGINT)

        before = {number: signal.signal(number, note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def last_error(log: str) -> str:
    """Return the line of a log that says what went wrong: the last `error: ...`, else the last one there is."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith('error: ')]
    return (errors or lines or ['ended without a word'])[-1].removeprefix('error: ')


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
