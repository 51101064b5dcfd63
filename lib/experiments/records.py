"""Figures kept as data: what papers published, and what was measured with this library.

Hardware, versions and command line of a measurement.
"""

import csv
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from lib.errors import UserError
from lib.runtime.files import write_json

_HERE = Path(__file__).resolve().parent
PUBLISHED_FILE, MEASURED_FILE = _HERE / 'published.csv', _HERE / 'measured.json'


@dataclass(frozen=True)
class Published:
    """One figure of a paper.

    Attributes:
        method: a name of method_list's METHODS or OTHERS.
        dataset: such as cifar10_lt.
        imbalance: largest over smallest class of CIFAR-LT; None where the data set has but one.
        error: top-1 error, percent, as printed: on balanced test sets the mean class error.
        source: whose.
    """

    method: str
    dataset: str
    imbalance: int | None
    error: str
    source: str


def read_published(file: Path = PUBLISHED_FILE) -> list[Published]:
    """Return all published figures, in the file's order."""
    with open(file, encoding='utf-8', newline='') as lines:
        return [
            Published(
                row['method'],
                row['dataset'],
                int(row['imbalance']) if row['imbalance'] else None,
                row['error'],
                row['source'],
            )
            for row in csv.DictReader(lines)
        ]


def published_for(figures: Sequence[Published], method: str, dataset: str, imbalance: int | None) -> Published | None:
    """Return the first figure of that method there: the one whose recipe the base configs follow."""
    wanted = (method, dataset, imbalance)
    return next((one for one in figures if (one.method, one.dataset, one.imbalance) == wanted), None)


def read_measured(file: Path = MEASURED_FILE) -> list[dict[str, Any]]:
    """Return all measured figures: base, dataset, imbalance, method, seeds, options, figures, hardware, versions, date.

    Raises:
        UserError: the file is no list of these.
    """
    try:
        entries = json.loads(file.read_text(encoding='utf-8')) if file.exists() else []
    except json.JSONDecodeError as error:
        raise UserError(f'{file}: not valid JSON in line {error.lineno}; take an earlier version of it') from None
    if not isinstance(entries, list) or not all(isinstance(one, dict) and 'method' in one for one in entries):
        raise UserError(f'{file}: must hold a list of objects, each with a method; take an earlier version of it')
    return entries


def record(entries: Sequence[dict[str, Any]], file: Path = MEASURED_FILE) -> None:
    """Merge measured figures into the file: the same method, base, imbalance and options are replaced."""
    known = {_identity(entry): entry for entry in (*read_measured(file), *entries)}
    write_json(file, [known[key] for key in sorted(known)])


def _identity(entry: dict[str, Any]) -> tuple[str, ...]:
    parts = (entry['base'], entry.get('imbalance') or 0, entry['method'])
    return (*map(str, parts), json.dumps(entry.get('options', {}), sort_keys=True))


def run_environment() -> dict[str, Any]:
    """Return {hardware, versions, command} of this process, as written beside measured numbers."""
    return {
        'hardware': {'cpu': _cpu(), 'cores': os.cpu_count(), 'gpu': _gpu()},
        'versions': {
            'python': platform.python_version(),
            'torch': str(torch.__version__),
            'torchvision': str(torchvision.__version__),
        },
        'command': shlex.join(['python', *sys.argv]),
    }


def _cpu() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='ascii', errors='replace').splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
