"""Published errors (published.csv), measured results (measured.json), and the environment of a measurement."""

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

from lib.errors import UserError
from lib.runtime.files import wait_for_lock, write_json
from lib.runtime.json_file import Record, read_json

_HERE = Path(__file__).resolve().parent
PUBLISHED_FILE, MEASURED_FILE = _HERE / 'published.csv', _HERE / 'measured.json'


@dataclass(frozen=True)
class Published:
    """One published result.

    Attributes:
        method: a name of method_list's METHODS or OTHERS.
        dataset: such as cifar10_lt.
        imbalance: largest / smallest class of CIFAR-LT; None for other data sets.
        error: top-1 error in percent, as printed; on balanced test sets, it equals the mean class error.
        source: authors, venue and year.
    """

    method: str
    dataset: str
    imbalance: int | None
    error: str
    source: str


def read_published(file: Path = PUBLISHED_FILE) -> list[Published]:
    """Return all published results, in the file's order."""
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


def published_for(results: Sequence[Published], method: str, dataset: str, imbalance: int | None) -> Published | None:
    """Return the first result of that method and data set: the one whose recipe the base configs follow."""
    key = (method, dataset, imbalance)
    return next((result for result in results if (result.method, result.dataset, result.imbalance) == key), None)


def read_measured(file: Path = MEASURED_FILE) -> list[dict[str, Any]]:
    """Return the entries of measured.json, one per method, base, imbalance and options.

    Raises:
        UserError: the file is invalid.
    """
    entries = read_json(file, list[Record], hint='; restore an earlier version') if file.exists() else []
    if not all(isinstance(entry.get('method'), str) and isinstance(entry.get('base'), str) for entry in entries):
        raise UserError(f'{file}: must be a list of objects, each with a method and a base; restore an earlier version')
    return entries


def save_measured(entries: Sequence[dict[str, Any]], file: Path = MEASURED_FILE) -> None:
    """Add measured results to the file; they replace results of the same method, base, imbalance and options."""
    with wait_for_lock(file.parent):  # another grid may record at the same time
        merged = {_key(entry): entry for entry in (*read_measured(file), *entries)}
        write_json(file, [merged[key] for key in sorted(merged)])


def _key(entry: dict[str, Any]) -> tuple[str, ...]:
    parts = (entry['base'], entry.get('imbalance') or 0, entry['method'])
    return (*map(str, parts), json.dumps(entry.get('options', {}), sort_keys=True))


def run_environment() -> dict[str, Any]:
    """Return {hardware, versions, command} of this process, to be stored with measured results."""
    import torchvision  # imported here: it takes seconds

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
