"""Small pictures that show what was confused with what."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lib.evaluation.confusion import ConfusedPair

THUMBNAIL = 128  # pixels of the longer side
MISTAKES = 3  # photos shown of a pair's mistakes


@dataclass(frozen=True)
class Photo:
    """A picture of a valid row, as a data: address."""

    row: int
    source: str


@dataclass(frozen=True)
class PairPhotos:
    """Pictures of a confused pair: each class as it was recognised, and the photos that were not."""

    label: Photo | None
    predicted: Photo | None
    mistakes: tuple[Photo, ...]
    num_unreadable: int


def pair_photos(
    pair: ConfusedPair, labels: np.ndarray, predicted: np.ndarray, open_image: Callable[[int], Image.Image]
) -> PairPhotos:
    """Open up to MISTAKES of the pair's photos and one of each class, preferably one that was recognised.

    `labels` and `predicted` are integers (num_images,). Pictures that cannot be opened are counted.
    """
    failures = 0

    def first(rows: np.ndarray, limit: int) -> list[Photo]:
        nonlocal failures
        photos = []
        for row in rows[: 2 * limit]:  # a few unreadable files must not empty the card
            if len(photos) == limit:
                break
            try:
                photos.append(Photo(int(row), thumbnail(open_image(int(row)))))
            except Exception:  # whatever the reader raises: a report is not worth losing over a picture
                failures += 1
        return photos

    def example(label: int) -> Photo | None:
        rows = np.flatnonzero(labels == label)
        rows = rows[~np.isin(rows, pair.rows[:MISTAKES])]
        recognised_first = rows[np.argsort(predicted[rows] != label, kind='stable')]
        return next(iter(first(recognised_first, 1)), None)

    mistakes = tuple(first(pair.rows, MISTAKES))
    return PairPhotos(example(pair.label), example(pair.predicted), mistakes, failures)


def thumbnail(image: Image.Image) -> str:
    """Return the image, at most THUMBNAIL pixels a side, as data: address of a JPEG without metadata."""
    small = image.convert('RGB')
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=3.0)
    bare = Image.new('RGB', small.size)  # comments and profiles would travel with a copy
    bare.paste(small)
    buffer = io.BytesIO()
    bare.save(buffer, format='JPEG', quality=82, optimize=True)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode('ascii')
