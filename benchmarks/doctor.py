"""Speed of the scan of tools/doctor.py compared with plain decoding, and growth of its search for near duplicates.

REAL_PHOTOS=FOLDER python benchmarks/doctor.py [--workers N] [--rounds N] [--json FILE]

Decoding: all real photos, listed several times. All sides have the same processes and jobs, and are timed from the
first finished job on, so the start of the processes is not included. Plain: the whole file is read and decoded to RGB
by libjpeg-turbo (simplejpeg). Gray: the same in grayscale, to which the doctor decodes. Doctor: its first scan (the
second one, of possible duplicates only, is left out: all repeated photos are duplicates).
Hashes: 64-bit hashes; 1 in 20 is a copy of another one with 5 bits changed.
Results: doctor_decode_ratio and doctor_gray_ratio (images per second, doctor / plain and doctor / gray),
hashes_quarter_seconds (0.25 million), hashes_seconds (1 million), doctor_hash_growth_ratio (time of 1 million / 4 times
that of 0.25 million: 1 is linear), hashes_found (fraction of the changed copies that is found).
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import simplejpeg

from benchmarks.harness import finish, parse_arguments, real_photos
from lib.audit.hashing import close_pairs
from lib.audit.scan import ConcatImages, map_rows, scan
from lib.commands.cli import cli_main
from lib.dataset.images import FileImages

REPEATS = 4  # of the photos, so that a round takes seconds
DISTANCE = 5

Progress = Callable[[int], object]


def decode_plainly(images: ConcatImages, rows: np.ndarray, colors: str) -> int:
    """Decode some rows and return the number of pixel values."""
    return sum(simplejpeg.decode_jpeg(images.content(row), colorspace=colors).size for row in rows.tolist())


def photos_in(folder: Path) -> list[str]:
    """Return the paths that train.txt and val.txt list."""
    lines = [line for name in ('train.txt', 'val.txt') for line in (folder / name).read_text().splitlines()]
    return [line.split(',')[0].strip() for line in lines if line.strip()]


def decoding(folder: Path, workers: int, rounds: int) -> dict[str, float]:
    """Return rates and ratios of scanning and decoding."""
    paths = pa.array(photos_in(folder) * REPEATS, pa.large_string())
    images = ConcatImages([FileImages(paths, str(folder))], [len(paths)])

    def plain(progress: Progress, colors: str) -> None:
        for rows, _ in map_rows(partial(decode_plainly, colors=colors), images, np.arange(len(paths)), workers):
            progress(len(rows))

    def doctor(progress: Progress) -> None:
        scan(images, num_workers=workers, progress=progress)

    sides = {'plain': partial(plain, colors='RGB'), 'gray': partial(plain, colors='GRAY'), 'doctor': doctor}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            rates[name].append(images_per_second(side))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        **{f'{name}_images_per_second': rate for name, rate in medians.items()},
        'doctor_decode_ratio': medians['doctor'] / medians['plain'],
        'doctor_gray_ratio': medians['doctor'] / medians['gray'],
    }


def images_per_second(side: Callable[[Progress], None]) -> float:
    """Run a side once and return its rate from the first finished job on."""
    done: list[tuple[float, int]] = []
    side(lambda count: done.append((time.perf_counter(), count)))
    return sum(count for _, count in done[1:]) / (done[-1][0] - done[0][0])


def hashing(rounds: int) -> dict[str, float]:
    """Return times and growth of the search for close hashes."""
    sets = {count: changed_copies(count) for count in (250_000, 1_000_000)}
    seconds: dict[int, list[float]] = {count: [] for count in sets}
    for _ in range(rounds):
        for count, (hashes, planted) in sets.items():
            started = time.perf_counter()
            pairs = close_pairs(hashes, DISTANCE)
            seconds[count].append(time.perf_counter() - started)
            recall = np.isin(planted[:, 0] * count + planted[:, 1], pairs[:, 0] * count + pairs[:, 1]).mean()
    quarter, whole = (statistics.median(times) for times in seconds.values())
    return {
        'hashes_quarter_seconds': quarter,
        'hashes_seconds': whole,
        'doctor_hash_growth_ratio': whole / quarter / 4,
        'hashes_found': float(recall),
    }


def changed_copies(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` hashes, and the pairs (m, 2) of originals and copies with DISTANCE bits changed."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    copies = np.arange(count - count // 20, count)
    originals = random.integers(0, copies[0], len(copies))
    bits = random.random((len(copies), 64)).argsort(axis=1)[:, :DISTANCE].astype(np.uint64)
    hashes[copies] = hashes[originals] ^ (np.uint64(1) << bits).sum(axis=1, dtype=np.uint64)
    return hashes, np.stack([originals, copies], axis=1)


def main() -> None:
    question = __doc__.splitlines()[0]
    arguments = parse_arguments(question, workers=(2, 'processes of each side'), rounds=(5, 'passes of each side'))
    figures = decoding(real_photos(), arguments.workers, arguments.rounds)
    finish({**figures, **hashing(min(arguments.rounds, 3))}, arguments.json)


if __name__ == '__main__':
    cli_main(main)
