"""Shared by all benchmarks: options, alternating runs of several sides, medians, and output as text and JSON."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from lib.config.options import Parser, local_path
from lib.errors import UserError
from lib.experiments.records import run_environment
from lib.runtime.files import write_json

# Module -> package, of the libraries in requirements-bench.txt.
PEERS = {
    'cv2': 'opencv-python-headless', 'nvidia.dali': 'nvidia-dali-cuda130', 'playwright': 'playwright',
    'cleanlab': 'cleanlab',
}  # fmt: skip


def new_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the option --json of all benchmarks."""
    parser = Parser(prog=f'benchmarks/{Path(sys.argv[0]).name}', description=description, allow_abbrev=False)
    meaning = 'write results, hardware, versions and command to this file'
    parser.add_argument('--json', metavar='FILE', type=local_path, help=meaning)
    return parser


def parse_arguments(description: str, **options: tuple[int, str]) -> argparse.Namespace:
    """Return --json and integer options, given as name=(default, meaning)."""
    parser = new_parser(description)
    for name, (default, meaning) in options.items():
        parser.add_argument(f'--{name}', type=int, default=default, metavar='N', help=f'{meaning} (default: {default})')
    return parser.parse_args()


def require(*modules: str) -> None:
    """Raise UserError if one of PEERS, which a benchmark compares with, is not installed."""
    missing = [PEERS[module] for module in modules if not _is_installed(module)]
    if missing:
        raise UserError(
            f'this benchmark needs {" and ".join(missing)}: python -m pip install -r benchmarks/requirements-bench.txt'
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def alternate(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Run each side once to warm up, then all sides alternately; return the median images per second of each side.

    A side does a fixed amount of work and returns its number of images.
    """
    for run in sides.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            images = run()
            rates[name].append(images / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def real_photos() -> Path:
    """Return the folder of real photos, from the environment variable REAL_PHOTOS.

    Raises:
        UserError: REAL_PHOTOS is not set or has no train.txt.
    """
    folder = Path(os.environ.get('REAL_PHOTOS', ''))
    if not (folder / 'train.txt').exists():
        raise UserError('REAL_PHOTOS must be the folder of the Grocery Store Dataset that contains train.txt')
    return folder


def finish(results: dict[str, float], json_file: Path | None) -> None:
    """Print the results, and write them with hardware, versions and command to `json_file`, if given."""
    width = max(map(len, results))
    for name, value in results.items():
        print(f'{name:<{width}}  {value:10.3f}' if abs(value) >= 1e-3 else f'{name:<{width}}  {value:10.1e}')
    if json_file:
        content = {'figures': results, **run_environment()}
        write_json(json_file, content)
        print(f'wrote {json_file}: {json.dumps(content["hardware"])}')
