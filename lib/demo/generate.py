"""Write the demo set: photos, annotations, class names, and the truth about its wrong labels.

What the demo set holds: how many images of each class, which labels are wrong.
"""

import json
import re
import shutil
import signal
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lib.demo.catalog import FAMILIES, PRODUCTS, VARIANTS_PER_FAMILY
from lib.demo.shapes import draw_front
from lib.demo.views import photograph
from lib.errors import UserError
from lib.runtime.files import write_json
from lib.runtime.seeding import Purpose, generator
from lib.runtime.workers import num_cores

SPLITS = ('train', 'val', 'test')
LARGEST, SMALLEST = 120, 3  # train images of the largest and of the smallest class
EVALUATION = 8  # valid and test images a class
NOISE = 0.04  # share of the train labels that are wrong
SIBLING_NOISE = 0.5  # share of the wrong labels that name a sibling

# Streams of Purpose.DEMO: the plan takes epoch 0; the photos of split s take epoch 1 + s, their row as slot.
_SIZES, _NOISE = 0, 1


@dataclass(frozen=True, slots=True)
class Photo:
    """One image to be drawn. `given` is its annotated label, `shown` the product that it really shows."""

    split: int
    row: int
    fpath: str  # under the set's root, with forward slashes
    given: int
    shown: int


def plan_photos(seed: int, scale: float = 1.0) -> list[Photo]:
    """List the set's photos, in the order of the annotations, a pure function of its arguments.

    Train counts fall exponentially from LARGEST to SMALLEST over the classes (Cui et al., CVPR 2019) and are
    those of the given labels, as in any annotated set. Each family has one class in every quarter of the
    sizes, so that head and tail siblings meet. The first two photos of every class are never wrong.

    Args:
        seed: any non-negative integer.
        scale: multiplies the counts; at least one image a class stays in every split.
    """
    counts = np.stack([_train_counts(seed, scale), *[np.full(len(PRODUCTS), max(1, round(EVALUATION * scale)))] * 2])
    photos = []
    for split, name in enumerate(SPLITS):
        given = np.repeat(np.arange(len(PRODUCTS)), counts[split])
        number = np.arange(len(given)) - np.repeat(np.cumsum(counts[split]) - counts[split], counts[split])
        shown = _with_noise(given, number, seed) if name == 'train' else given
        for row, (label, product, n) in enumerate(zip(given.tolist(), shown.tolist(), number.tolist(), strict=True)):
            fpath = f'images/{name}/{PRODUCTS[label].name}/{n:03d}.jpg'
            photos.append(Photo(split, row, fpath, label, product))
    return photos


def _train_counts(seed: int, scale: float) -> np.ndarray:
    """Train images of each class, int64 (num_classes,)."""
    num_classes = len(PRODUCTS)
    rng = generator(seed, Purpose.DEMO, slot=_SIZES)
    size_ranks = np.arange(num_classes).reshape(VARIANTS_PER_FAMILY, len(FAMILIES))  # a quarter of the sizes a line
    size_ranks = rng.permuted(rng.permuted(size_ranks, axis=1).T, axis=1).ravel()  # (num_classes,), family by family
    sizes = LARGEST * scale * (SMALLEST / LARGEST) ** (size_ranks / (num_classes - 1))
    # Adding a little keeps 2.9999999 from becoming 2.
    return np.maximum(1, np.floor(sizes + 1e-6)).astype(np.int64)


def _with_noise(given: np.ndarray, number: np.ndarray, seed: int) -> np.ndarray:
    """Choose the products really shown: NOISE of the rows show a sibling or another product."""
    rng = generator(seed, Purpose.DEMO, slot=_NOISE)
    rows = rng.permutation(np.flatnonzero(number >= 2))[: round(NOISE * len(given))]
    shown = given.copy()
    for row in rows.tolist():
        label = int(given[row])
        family = label // VARIANTS_PER_FAMILY
        if rng.random() < SIBLING_NOISE:
            member = (label + rng.integers(1, VARIANTS_PER_FAMILY)) % VARIANTS_PER_FAMILY
        else:
            family = (family + rng.integers(1, len(FAMILIES))) % len(FAMILIES)
            member = rng.integers(VARIANTS_PER_FAMILY)
        shown[row] = family * VARIANTS_PER_FAMILY + member
    return shown


VERSION = 1  # of the drawing; a set drawn by another version is drawn anew
MARKER = 'demo.json'
_FORMAT = 'drawn demo products'
_OWN = re.compile(
    r'(demo|classes|noise|converted_(train|val|test))\.json'
    rf'|images(/({"|".join(SPLITS)})(/({"|".join(product.name for product in PRODUCTS)})(/\d{{3}}\.jpg)?)?)?'
)
_MAX_WORKERS = 16
_JOB = 24  # photos
_STALE_SECONDS = 3600  # a temporary folder as old as this belongs to nobody any more


def generate_demo(root: Path, *, seed: int = 0, num_workers: int | None = None, scale: float = 1.0) -> None:
    """Draw the demo set into `root`, unless the same one is there already.

    The bytes depend on `seed`, `scale`, Pillow and NumPy alone. The set appears at once and whole: it is
    drawn into a folder beside `root`, which takes that name at the end. An incomplete demo set at `root`, or
    one of another seed, is replaced; a folder with anything else in it is left alone.

    Args:
        root: the folder to make.
        seed: any non-negative integer.
        num_workers: processes that draw; None takes one a CPU core, 1 stays in this process.
        scale: multiplies the number of images (tests draw small sets).

    Raises:
        UserError: `root` holds files that are not a demo set's, or cannot be written.
    """
    root = Path(root).resolve()
    if demo_is_complete(root, seed, scale):
        return
    _refuse_foreign(root)
    photos = plan_photos(seed, scale)
    temporary = _beside(root)
    try:
        _remove_stale(root)
        temporary.mkdir(parents=True)
        _draw_all(photos, temporary, root, seed, num_workers or min(num_cores(), _MAX_WORKERS))
        _write_lists(photos, temporary)
        write_json(temporary / MARKER, _marker(seed, scale))
        _move_into_place(temporary, root, seed, scale)
    except OSError as error:
        raise UserError(
            f'cannot write the demo set to {root}: {error.strerror or error}; '
            f'make room there or set another DATASET.ROOT'
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def demo_is_complete(root: Path, seed: int, scale: float = 1.0) -> bool:
    """Tell whether `root` holds the whole demo set of this seed, drawn by this version."""
    root = Path(root)
    if _read_marker(root) != _marker(seed, scale):
        return False
    lists = ['classes.json', 'noise.json', *(f'converted_{split}.json' for split in SPLITS)]
    return all((root / name).is_file() for name in [*lists, *(p.fpath for p in plan_photos(seed, scale))])


def _marker(seed: int, scale: float) -> dict:
    return {'format': _FORMAT, 'version': VERSION, 'seed': seed, 'scale': scale}


def _read_marker(root: Path) -> dict:
    """Return what the marker in `root` says, {} if there is none that can be read."""
    try:
        marker = json.loads((root / MARKER).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _refuse_foreign(root: Path) -> None:
    """Raise UserError unless `root` is absent, empty, or a demo set (a broken one too) with nothing added."""
    if not root.exists():
        return
    if not root.is_dir():
        raise UserError(f'{root} is a file, but the demo set needs a folder there; set another DATASET.ROOT')
    marked = _read_marker(root).get('format') == _FORMAT
    for path in sorted(root.rglob('*')):
        name = path.relative_to(root).as_posix()
        if not marked or path.is_symlink() or not _OWN.fullmatch(name):
            raise UserError(
                f'{root} holds {name}, not known to be part of a demo set, so nothing there is touched; '
                f'move the folder away or set another DATASET.ROOT'
            )


def _beside(root: Path) -> Path:
    """A new hidden name in the folder that holds `root`, so that renaming does not copy."""
    return root.with_name(f'.{root.name}.{uuid.uuid4().hex[:8]}.tmp')


def _remove_stale(root: Path) -> None:
    """Remove what a killed generation left beside `root`."""
    for path in root.parent.glob(f'.{root.name}.{"[0-9a-f]" * 8}.tmp'):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _move_into_place(temporary: Path, root: Path, seed: int, scale: float) -> None:
    """Let the finished set take its name; what was there goes last."""
    if demo_is_complete(root, seed, scale):
        return  # another process was faster, with the same bytes
    _refuse_foreign(root)  # minutes may have passed
    if root.exists():
        aside = _beside(root)
        root.replace(aside)
        temporary.replace(root)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        temporary.replace(root)


def _draw_all(photos: list[Photo], folder: Path, root: Path, seed: int, num_workers: int) -> None:
    """Draw and save every photo, in jobs of one product each, short enough for a quick Ctrl-C."""
    shown = defaultdict(list)
    for photo in photos:
        (folder / photo.fpath).parent.mkdir(parents=True, exist_ok=True)
        shown[photo.shown].append(photo)
    jobs = [group[i : i + _JOB] for group in shown.values() for i in range(0, len(group), _JOB)]
    draw = partial(draw_photos, folder=folder, seed=seed)
    print(f'drawing the demo set: {len(photos)} photos of {len(PRODUCTS)} products into {root}', file=sys.stderr)
    with tqdm(total=len(photos), unit=' photos', file=sys.stderr, disable=None, leave=False) as bar:
        for count in _run(draw, jobs, num_workers):
            bar.update(count)


def _run(draw: Callable[[list[Photo]], int], jobs: Iterable[list[Photo]], num_workers: int) -> Iterator[int]:
    """Give the number of photos of each finished job, in any order."""
    if num_workers == 1:
        yield from map(draw, jobs)
        return
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context('spawn'), initializer=_ignore_interrupt)
    try:
        for future in as_completed([pool.submit(draw, job) for job in jobs]):
            yield future.result()
    finally:
        # After an error or Ctrl-C the jobs not begun are dropped, the others waited for: nobody writes later.
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent, which then stops the workers: one message, not one a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def draw_photos(photos: list[Photo], folder: Path, seed: int) -> int:
    """Draw and save photos under `folder`; returns how many. Runs in a worker."""
    for photo in photos:
        rng = generator(seed, Purpose.DEMO, epoch=1 + photo.split, slot=photo.row)
        others = rng.integers(1, len(PRODUCTS), 2)  # any product but the one that is shown
        fronts = [_front((photo.shown + int(step)) % len(PRODUCTS)) for step in (0, *others)]
        (folder / photo.fpath).write_bytes(photograph(fronts[0], fronts[1:], rng))
    return len(photos)


@lru_cache(maxsize=len(PRODUCTS))
def _front(product: int) -> Image.Image:
    return draw_front(PRODUCTS[product])


def _write_lists(photos: list[Photo], folder: Path) -> None:
    """Write annotations, class names, and the rows whose labels are wrong."""
    for split, name in enumerate(SPLITS):
        annotations = [{'category_id': p.given, 'fpath': p.fpath} for p in photos if p.split == split]
        write_json(folder / f'converted_{name}.json', {'annotations': annotations, 'num_classes': len(PRODUCTS)})
    names, parents = [p.name for p in PRODUCTS], [p.parents for p in PRODUCTS]
    write_json(folder / 'classes.json', {'names': names, 'parents': parents})
    noise = [{'row': p.row, 'fpath': p.fpath, 'given': p.given, 'true': p.shown} for p in photos if p.given != p.shown]
    write_json(folder / 'noise.json', noise)
