"""How fast does the doctor look at images, beside decoding them, and does its search for near copies stay linear?

REAL_PHOTOS=FOLDER python benchmarks/doctor.py [--workers N] [--rounds N] [--json FILE]

Decoding: all real photos, listed several times; all sides have the same processes and jobs, and are timed from the
first finished job on, so that starting processes does not count. Plain: the file is read and decoded whole to RGB by
libjpeg-turbo (simplejpeg), and nothing else is done with it. Grey: the same, in grey, which is what the doctor decodes
to. Doctor: its first look (the second one, at copies only, is left out: repeated photos are nothing but copies).
Hashes: 64-bit hashes, one in twenty a copy of another with five bits changed.
Figures: doctor_decode_ratio and doctor_grey_ratio (images a second, the doctor's over plain and over grey),
hashes_quarter_seconds (0.25 million), hashes_seconds (a million), doctor_hash_growth_ratio (a million's time over four
times a quarter's: 1 is linear), hashes_found (share of the changed copies).
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
from lib.audit.scan import Gallery, in_parallel, scan
from lib.commands.cli import cli_main
from lib.dataset.images import FileImages

LISTED = 4  # times, so that rates are of seconds, not of moments
DISTANCE = 5

Tell = Callable[[int], object]


def decode_plainly(gallery: Gallery, rows: np.ndarray, colours: str) -> int:
    """Decode some rows and return how many values they have."""
    return sum(simplejpeg.decode_jpeg(gallery.content(row), colorspace=colours).size for row in rows.tolist())


def photos_in(folder: Path) -> list[str]:
    """Return the paths that train.txt and val.txt list."""
    lines = [line for name in ('train.txt', 'val.txt') for line in (folder / name).read_text().splitlines()]
    return [line.split(',')[0].strip() for line in lines if line.strip()]


def decoding(folder: Path, workers: int, rounds: int) -> dict[str, float]:
    """Return the figures of looking and decoding."""
    paths = pa.array(photos_in(folder) * LISTED, pa.large_string())
    gallery = Gallery([FileImages(paths, str(folder))], [len(paths)])

    def plain(tell: Tell, colours: str) -> None:
        for rows, _ in in_parallel(partial(decode_plainly, colours=colours), gallery, np.arange(len(paths)), workers):
            tell(len(rows))

    def doctor(tell: Tell) -> None:
        scan(gallery, num_workers=workers, tell=tell)

    sides = {'plain': partial(plain, colours='RGB'), 'grey': partial(plain, colours='GRAY'), 'doctor': doctor}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            rates[name].append(images_per_second(side))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {
        **{f'{name}_images_per_second': rate for name, rate in medians.items()},
        'doctor_decode_ratio': medians['doctor'] / medians['plain'],
        'doctor_grey_ratio': medians['doctor'] / medians['grey'],
    }


def images_per_second(side: Callable[[Tell], None]) -> float:
    """Run a side once and return its rate from the first finished job on."""
    done: list[tuple[float, int]] = []
    side(lambda count: done.append((time.perf_counter(), count)))
    return sum(count for _, count in done[1:]) / (done[-1][0] - done[0][0])


def hashing(rounds: int) -> dict[str, float]:
    """Return the figures of the search for close hashes."""
    sets = {count: changed_copies(count) for count in (250_000, 1_000_000)}
    seconds: dict[int, list[float]] = {count: [] for count in sets}
    for _ in range(rounds):
        for count, (hashes, planted) in sets.items():
            started = time.perf_counter()
            pairs = close_pairs(hashes, DISTANCE)
            seconds[count].append(time.perf_counter() - started)
            found = np.isin(planted[:, 0] * count + planted[:, 1], pairs[:, 0] * count + pairs[:, 1]).mean()
    quarter, whole = (statistics.median(times) for times in seconds.values())
    return {
        'hashes_quarter_seconds': quarter,
        'hashes_seconds': whole,
        'doctor_hash_growth_ratio': whole / quarter / 4,
        'hashes_found': float(found),
    }


def changed_copies(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` hashes and the pairs (m, 2) of which one is the other with DISTANCE bits changed."""
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
