"""Small data sets for tests of packing, and shortcuts that pack them."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from lib.dataset.annotations import ClassNames
from lib.dataset.images import FileImages
from lib.dataset.lazy_image import LazyPixelImage
from lib.shards.encode import Copy
from lib.shards.images import ShardImages
from lib.shards.index import INDEX
from lib.shards.pack import SplitJob, pack_split

LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3], np.int32)
NAMES = [f'photos/é {row}.jpg' for row in range(len(LABELS))]
CLASSES = ClassNames(['apple', 'bread', 'kiwi', 'milk'], [])


@dataclass(frozen=True)
class LazyPixelImages:
    """Images in memory, of different sizes."""

    is_remote = False

    images: list[np.ndarray]

    def name(self, row: int) -> str:
        return f'image {row}'

    def open(self, row: int) -> LazyPixelImage:
        return LazyPixelImage(self.images[row])


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image without noise and without symmetry, different for each seed."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / width, y * 255 / height, (x + y) * (255 - 9 * (seed % 20)) / (width + height)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str = 'JPEG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_photos(folder: Path) -> FileImages:
    """Write one JPEG per row, of different sizes."""
    (folder / 'photos').mkdir()
    for row, name in enumerate(NAMES):
        (folder / name).write_bytes(encoded(smooth(40 + row, 30, row), quality=95))
    return FileImages(pa.array(NAMES, pa.large_string()), str(folder))


def job_of(images, folder: Path, **changes) -> SplitJob:
    """Return the job of copying eleven rows into shards of three."""
    values = {
        'folder': folder,
        'images': images,
        'labels': LABELS,
        'names': pa.array(NAMES, pa.large_string()),
        'num_classes': 4,
        'digest': 'd',
        'classes': CLASSES,
        'encoding': Copy(),
        'images_per_shard': 3,
        'max_bad_fraction': 0.1,
    }
    return SplitJob(**{**values, **changes})


def pack(images, folder: Path, num_workers: int = 0, **changes) -> ShardImages:
    pack_split(job_of(images, folder, **changes), num_workers=num_workers)
    return ShardImages(folder / INDEX)


def as_decoded(photos: FileImages, short_side: int) -> LazyPixelImages:
    """Return the photos as images in memory, decoded and reduced by Pillow."""
    images = []
    for row in range(len(photos)):
        photo = Image.open(photos.path(row)).convert('RGB')
        scale = min(1.0, short_side / min(photo.size))
        size = (round(photo.width * scale), round(photo.height * scale))
        images.append(np.asarray(photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)))
    return LazyPixelImages(images)


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob('*')) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
