"""What every benchmark does alike: alternate two sides in one run, take medians, print, write JSON."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from lib.errors import UserError
from lib.experiments.records import run_environment
from lib.runtime.files import write_json


def parse_arguments(description: str, **options: tuple[int, str]) -> argparse.Namespace:
    """Return --json and whole-number options, given as name=(default, meaning)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--json', metavar='FILE', help='write figures, hardware, versions and command here too')
    for name, (default, meaning) in options.items():
        parser.add_argument(f'--{name}', type=int, default=default, metavar='N', help=f'{meaning} (default: {default})')
    return parser.parse_args()


def alternate(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Run each side once to warm up, then in turns; return images a second, the median of each side's rounds.

    A side does a fixed amount of work and returns the number of images it did.
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
    """Return the folder of real photos.

    Raises:
        UserError: REAL_PHOTOS does not name it.
    """
    folder = Path(os.environ.get('REAL_PHOTOS', ''))
    if not (folder / 'train.txt').exists():
        raise UserError('REAL_PHOTOS must name the folder of the Grocery Store Dataset that holds train.txt')
    return folder


def finish(figures: dict[str, float], json_file: str | None) -> None:
    """Print the figures, and write them with what they depend on."""
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f'{name:<{width}}  {value:10.3f}' if abs(value) >= 1e-3 else f'{name:<{width}}  {value:10.1e}')
    if json_file:
        content = {'figures': figures, **run_environment()}
        write_json(json_file, content)
        print(f'wrote {json_file}: {json.dumps(content["hardware"])}')
