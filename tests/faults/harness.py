"""Runs a case with faults in a folder that is the same for each run, and compares what it leaves."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.commands import Case, read_lines
from tests.faults.outcome import contents
from tests.scripts.running import REPOSITORY, Scripts

INJECT = 'tests/faults/inject.py'


class Point(NamedTuple):
    """A point of a run: the `count`th time that an event has this name."""

    event: str
    name: str
    count: int

    @property
    def may_tear(self) -> bool:
        """Return whether a kill during this operation leaves other files than one after it or before it.

        Half of a temporary file is as good as the whole one.
        """
        return self.event == 'before unlink' or (self.event == 'after write' and '.RANDOM.tmp' not in self.name)


class Harness:
    """Runs one case, again and again.

    Attributes:
        scripts: that run it.
        folder: in which it runs.
        points: of the undisturbed run, those after which the files differ from the point before.
        all_points: all of them.
        expected: files after the undisturbed run.
        earlier: files before it.
    """

    def __init__(self, scripts: Scripts, case: Case, inputs: Path, folder: Path) -> None:
        self.scripts, self._case = scripts, case
        self._template, self.folder, self._plan = folder / 'template', folder / 'work', folder / 'plan.json'
        shutil.copytree(inputs, self._template, symlinks=True)
        if case.prepare:
            case.prepare(self._template)
        self.reset()
        for argv in case.before:
            self._run({}, argv, code=0)
        if case.before:
            shutil.rmtree(self._template)
            shutil.copytree(self.folder, self._template, symlinks=True)
        self.reset()
        self.earlier = contents(self.folder)
        record = folder / 'record.jsonl'
        record.touch()
        self.done = self.run({'record': str(record)}, code=0)
        self.expected = contents(self.folder)
        lines = read_lines(record)
        self.all_points = [Point(*line[:3]) for line in lines]
        self.points = [Point(*line[:3]) for line in lines if line[3]]

    def kill_points(self) -> list[Point]:
        """Return the points after which files differ, and those of removals, which may end half-way."""
        changing = {*self.points}
        return [point for point in self.all_points if point in changing or point.event == 'before unlink']

    def reset(self) -> None:
        """Restore the files from before the command."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._template, self.folder, symlinks=True)

    def run(self, plan: dict[str, Any] | None = None, code: int | None = None) -> subprocess.CompletedProcess:
        """Run the command with a plan of inject.py."""
        return self._run(plan or {}, self._case.argv, code=code)

    def run_again(self) -> subprocess.CompletedProcess:
        """Run the command that completes what an interrupted one left."""
        checkpoints, argv = self._case.resume
        found = self.folder.glob(checkpoints) if checkpoints else ()
        is_resumed = any(path.name[0] != '.' for path in found)
        return self._run({}, argv if is_resumed else self._case.argv)

    def _run(self, plan: dict[str, Any], argv: tuple, code: int | None = None) -> subprocess.CompletedProcess:
        self._plan.write_text(json.dumps({**plan, 'patch': self._case.patch}))
        script = argv[0] if (self.folder / argv[0]).exists() else REPOSITORY / argv[0]
        command = (self._plan, script, *argv[1:])
        return self.scripts.run(self.folder, INJECT, *command, code=code, report=self._case.report)

    def fail_at(self, point: Point, fault: str) -> subprocess.CompletedProcess:
        """Restore the files and run the command with a fault at a point."""
        self.reset()
        return self.run({'at': point, 'fault': fault})

    def completes(self) -> str:
        """Run the command again after a fault; return the fault that remains, '' if there is none."""
        if not self.difference():
            return ''  # it had finished, so it refuses to replace its result, or renames it
        again = self.run_again()
        return again.stderr.strip() or f'exit code {again.returncode}' if again.returncode else self.difference()

    def difference(self) -> str:
        """Return how the files differ from those of the undisturbed run; '' if they are equal."""
        found = contents(self.folder)
        allowed = re.compile(self._case.allowed)
        return describe_difference({name: one for name, one in found.items() if not allowed.match(name)}, self.expected)


def describe_difference(found: dict[str, str], expected: dict[str, str]) -> str:
    """Return the names of files that differ."""
    parts = {
        'left over': sorted(found.keys() - expected.keys()),
        'missing': sorted(expected.keys() - found.keys()),
        'different': sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name]),
    }
    return '; '.join(f'{kind}: {", ".join(names[:5])} ({len(names)})' for kind, names in parts.items() if names)
