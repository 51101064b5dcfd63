"""Generate the demo data: photos, annotations, class names, and the true labels of wrongly labeled images."""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from lib.demo.catalog import FAMILIES, PRODUCTS, VARIANTS_PER_FAMILY
from lib.demo.photos import photograph
from lib.demo.shapes import draw_front
from lib.errors import UserError
from lib.runtime.files import rename, sync_folder, temporary_folder, write_json
from lib.runtime.locks import removed_lock
from lib.runtime.log import LOGGER
from lib.runtime.read_file import read_text
from lib.runtime.seeding import Purpose, generator
from lib.runtime.text import names_digest
from lib.runtime.workers import num_cores, run_in_processes

SPLITS = ('train', 'val', 'test')
LARGEST, SMALLEST = 120, 3  # training images of the largest and of the smallest class
EVALUATION = 8  # valid and test images per class
NOISE = 0.04  # fraction of the training labels that are wrong
SIBLING_NOISE = 0.5  # fraction of the wrong labels that are labels of a sibling

# Random streams of Purpose.DEMO: the plan uses epoch 0; the photos of split s use epoch 1 + s and their row as slot.
_SIZES, _NOISE = 0, 1


@dataclass(frozen=True, slots=True)
class Photo:
    """One image to be drawn. `label` is the annotated one, `true_label` that of the product in the image."""

    split: int
    row: int
    fpath: str  # relative to the root of the data set, with forward slashes
    label: int
    true_label: int


def plan_photos(seed: int, scale: float = 1.0) -> list[Photo]:
    """Return the photos in the order of the annotations, a pure function of the arguments.

    Training counts decrease exponentially from LARGEST to SMALLEST over the classes (Cui et al., CVPR 2019); they count
    the annotated labels, including wrong ones. Each family has one class in every quarter of the class sizes, so that
    head and tail classes are siblings. The labels of the first two photos of each class are correct.

    Args:
        seed: any non-negative integer.
        scale: factor of the counts; each class has at least one image in every split.
    """
    counts = np.stack([_train_counts(seed, scale), *[np.full(len(PRODUCTS), max(1, round(EVALUATION * scale)))] * 2])
    photos = []
    for split, name in enumerate(SPLITS):
        labels = np.repeat(np.arange(len(PRODUCTS)), counts[split])
        number = np.arange(len(labels)) - np.repeat(np.cumsum(counts[split]) - counts[split], counts[split])
        true_labels = _true_labels(labels, number, seed) if name == 'train' else labels
        columns = zip(labels.tolist(), true_labels.tolist(), number.tolist(), strict=True)
        for row, (label, true_label, n) in enumerate(columns):
            fpath = f'images/{name}/{PRODUCTS[label].name}/{n:03d}.jpg'
            photos.append(Photo(split, row, fpath, label, true_label))
    return photos


def _train_counts(seed: int, scale: float) -> np.ndarray:
    """Return the number of training images of each class, int64 (num_classes,)."""
    num_classes = len(PRODUCTS)
    rng = generator(seed, Purpose.DEMO, slot=_SIZES)
    quarters = np.arange(num_classes).reshape(VARIANTS_PER_FAMILY, len(FAMILIES))  # one quarter of the sizes per line
    size_ranks = rng.permuted(rng.permuted(quarters, axis=1).T, axis=1).ravel()  # (num_classes,), family by family
    sizes = LARGEST * scale * (SMALLEST / LARGEST) ** (size_ranks / (num_classes - 1))
    # Adding a little keeps 2.9999999 from becoming 2.
    return np.maximum(1, np.floor(sizes + 1e-6)).astype(np.int64)


def _true_labels(labels: np.ndarray, number: np.ndarray, seed: int) -> np.ndarray:
    """Return the true labels: for NOISE of the rows that of a sibling or of another product."""
    rng = generator(seed, Purpose.DEMO, slot=_NOISE)
    rows = rng.permutation(np.flatnonzero(number >= 2))[: round(NOISE * len(labels))]
    true_labels = labels.copy()
    for row in rows.tolist():
        label = int(labels[row])
        family = label // VARIANTS_PER_FAMILY
        if rng.random() < SIBLING_NOISE:
            variant = (label + int(rng.integers(1, VARIANTS_PER_FAMILY))) % VARIANTS_PER_FAMILY
        else:
            family = (family + int(rng.integers(1, len(FAMILIES)))) % len(FAMILIES)
            variant = int(rng.integers(VARIANTS_PER_FAMILY))
        true_labels[row] = family * VARIANTS_PER_FAMILY + variant
    return true_labels


VERSION = 1  # of the generator; data of another version is generated again
MARKER = 'demo.json'
_FORMAT = 'drawn demo products'
_DEMO_FILES = (
    r'(demo|classes|noise|converted_(train|val|test))\.json'
    rf'|images(/({"|".join(SPLITS)})(/({"|".join(product.name for product in PRODUCTS)})(/\d{{3}}\.jpg)?)?)?'
)  # not compiled on import, which takes a quarter of a second
_MAX_WORKERS = 16
_PHOTOS_PER_TASK = 24
_WAIT_SECONDS = 600  # for another process that generates the same data


def generate_demo(root: Path, *, seed: int = 0, num_workers: int | None = None, scale: float = 1.0) -> None:
    """Generate the demo data in `root`, unless the same data exists.

    The bytes depend only on `seed`, `scale`, Pillow and NumPy. The data appears atomically: it is written to a folder
    beside `root`, which is renamed at the end. Incomplete demo data in `root`, or data of another seed, is replaced; a
    folder with other files is not changed.

    Args:
        root: the folder to create.
        seed: any non-negative integer.
        num_workers: number of drawing processes; None: one per CPU core, 1: draw in this process.
        scale: factor of the number of images (tests use small ones).

    Raises:
        UserError: `root` contains files that are no demo data, or cannot be written.
    """
    given, root = root, Path(root).resolve()
    lock = root.with_name(f'.{root.name}.lock')  # removed at the end, unless the process is killed
    if demo_is_complete(root, seed, scale) and not lock.exists():
        return
    _refuse_foreign(root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with removed_lock(lock, _WAIT_SECONDS):
            if not demo_is_complete(root, seed, scale):  # else another process has generated it meanwhile
                photos = plan_photos(seed, scale)
                LOGGER.info('drawing %d photos of %d products into %s (once)', len(photos), len(PRODUCTS), given)
                _generate(root, photos, seed, num_workers or min(num_cores(), _MAX_WORKERS), scale)
    except OSError as error:
        raise UserError(
            f'cannot write the demo data to {root}: {error.strerror or error}; '
            f'free some disk space or set another DATASET.ROOT'
        ) from error


def _generate(root: Path, photos: list[Photo], seed: int, num_workers: int, scale: float) -> None:
    with temporary_folder(root) as temporary:
        _draw_all(photos, temporary, seed, num_workers)
        _write_lists(photos, temporary)
        write_json(temporary / MARKER, _marker(seed, scale))
        _rename_to_root(temporary, root)


def demo_is_complete(root: Path, seed: int, scale: float = 1.0) -> bool:
    """Return whether `root` contains the complete demo data of this seed and version."""
    root = Path(root)
    if _read_marker(root) != _marker(seed, scale):
        return False
    lists = ['classes.json', 'noise.json', *(f'converted_{split}.json' for split in SPLITS)]
    return all((root / name).is_file() for name in [*lists, *(p.fpath for p in plan_photos(seed, scale))])


def _marker(seed: int, scale: float) -> dict[str, Any]:
    return {'format': _FORMAT, 'version': VERSION, 'seed': seed, 'scale': scale}


def _read_marker(root: Path) -> dict[str, Any]:
    """Return the content of the marker file in `root`; {} if it cannot be read."""
    try:
        marker = json.loads(read_text(root / MARKER))
    except (OSError, ValueError, RecursionError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _refuse_foreign(root: Path) -> None:
    """Raise UserError unless `root` is missing, empty, or contains only demo data, complete or not."""
    if not root.exists():
        return
    if not root.is_dir():
        raise UserError(f'{root} is a file, but the demo data needs a folder; set another DATASET.ROOT')
    marked = _read_marker(root).get('format') == _FORMAT
    for path in sorted(root.rglob('*')):
        name = path.relative_to(root).as_posix()
        if not marked or path.is_symlink() or not re.fullmatch(_DEMO_FILES, name):
            raise UserError(
                f'{root} contains {name}, which is no demo data, so nothing is changed; '
                f'move the folder away or set another DATASET.ROOT'
            )


def _rename_to_root(temporary: Path, root: Path) -> None:
    """Rename the finished folder to `root`, then remove the old one."""
    _refuse_foreign(root)  # minutes may have passed
    if root.exists():
        with temporary_folder(root) as aside:
            rename(root, aside / root.name)
            rename(temporary, root)
    else:
        rename(temporary, root)
    sync_folder(root.parent)


def _draw_all(photos: list[Photo], folder: Path, seed: int, num_workers: int) -> None:
    """Draw and save all photos, in tasks of one product each, short enough for a quick Ctrl-C."""
    by_product: dict[int, list[Photo]] = defaultdict(list)
    for photo in photos:
        (folder / photo.fpath).parent.mkdir(parents=True, exist_ok=True)
        by_product[photo.true_label].append(photo)
    tasks = [
        group[start : start + _PHOTOS_PER_TASK]
        for group in by_product.values()
        for start in range(0, len(group), _PHOTOS_PER_TASK)
    ]
    with tqdm(total=len(photos), unit=' photos', file=sys.stderr, disable=None, leave=False) as bar:

        def progress(num_photos: int) -> None:
            bar.update(num_photos)

        num_processes = 0 if num_workers == 1 else num_workers
        drawn = run_in_processes(DrawPhotos(folder, seed), tasks, num_workers=num_processes, progress=progress)
        # After an error or Ctrl-C, no process writes later.
        with closing(drawn):
            for _ in drawn:
                pass


@dataclass(frozen=True)
class DrawPhotos:
    """Draws and saves photos under `folder`; runs in a worker process."""

    folder: Path
    seed: int

    def __call__(self, photos: list[Photo], progress: Callable[[int], Any]) -> None:
        """Draw some photos; `progress` gets their number."""
        for photo in photos:
            rng = generator(self.seed, Purpose.DEMO, epoch=1 + photo.split, slot=photo.row)
            others = rng.integers(1, len(PRODUCTS), 2)  # any other product
            fronts = [_front((photo.true_label + int(step)) % len(PRODUCTS)) for step in (0, *others)]
            (self.folder / photo.fpath).write_bytes(photograph(fronts[0], fronts[1:], rng))
        progress(len(photos))


@lru_cache(maxsize=len(PRODUCTS))
def _front(product: int) -> Image.Image:
    return draw_front(PRODUCTS[product])


def _write_lists(photos: list[Photo], folder: Path) -> None:
    """Write annotations, class names, and the rows with wrong labels."""
    names, parents = [p.name for p in PRODUCTS], [p.parents for p in PRODUCTS]
    about = {'num_classes': len(names), 'classes_digest': names_digest(names)}
    for split, split_name in enumerate(SPLITS):
        annotations = [{'category_id': p.label, 'fpath': p.fpath} for p in photos if p.split == split]
        write_json(folder / f'converted_{split_name}.json', {'annotations': annotations, **about})
    write_json(folder / 'classes.json', {'names': names, 'parents': parents})
    noise = [
        {'row': p.row, 'fpath': p.fpath, 'given': p.label, 'true': p.true_label}
        for p in photos
        if p.label != p.true_label
    ]
    write_json(folder / 'noise.json', noise)
