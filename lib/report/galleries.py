"""Small pictures that show what was confused with what, as many as the page has room for.

Worst classes and confused pairs, each with pictures of true and predicted class side by side.
"""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lib.metrics.confusion import ConfusedPair, most_confused
from lib.report.report_metrics import ReportMetrics

THUMBNAIL = 128  # pixels of the longer side
MISTAKES = 3  # photos shown of a card's mistakes
_MARKUP = 120  # bytes of the page around a picture, about


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a valid row, as a data: address, and the class predicted for it."""

    row: int
    source: str
    predicted: int


@dataclass(frozen=True)
class CardThumbnails:
    """Pictures of a class and the one it was taken for: each as it was recognised, and the photos that were not."""

    label: Thumbnail | None
    predicted: Thumbnail | None
    mistakes: tuple[Thumbnail, ...]
    num_unreadable: int


class ThumbnailBudget:
    """Opens pictures of the valid split until there is no more room.

    Args:
        open_image: row -> RGB image; may raise.
        room: bytes that all pictures together may take in the page. What comes after the first that does not fit is
            left out, so that the first ones are always there.
    """

    def __init__(self, open_image: Callable[[int], Image.Image], room: float = float('inf')) -> None:
        self._open_image = open_image
        self._sources: dict[int, str | None] = {}
        self.num_left_out = 0
        self.fill_up_to(room)

    def fill_up_to(self, room: float) -> None:
        """Begin anew with other room; what was opened before is not opened again."""
        self._room = room
        self.num_left_out = 0

    def source(self, row: int) -> str | None:
        """Return a picture's address: '' where there is no room for it, None where it cannot be opened."""
        if self._room <= 0:
            self.num_left_out += 1
            return ''
        if row not in self._sources:
            try:
                self._sources[row] = thumbnail_url(self._open_image(row))
            except Exception:  # whatever the reader raises: a report is not worth losing over a picture
                self._sources[row] = None
        found = self._sources[row]
        if found is None:
            return None
        self._room -= len(found) + _MARKUP
        if self._room < 0:
            self.num_left_out += 1
            return ''
        return found


def card_thumbnails(
    album: ThumbnailBudget,
    rows: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    label: int,
    taken_for: int,
    mistakes: np.ndarray,
) -> CardThumbnails:
    """Return up to MISTAKES pictures of a class's mistakes and one of each class, preferably one that was recognised.

    Args:
        rows: (n,) what the album calls the images.
        labels, predicted: (n,) integers.
        label, taken_for: the classes.
        mistakes: int64 places among the n images, those to show first.
    """
    failures = 0

    def first(places: np.ndarray, limit: int) -> list[Thumbnail]:
        nonlocal failures
        photos, shown = [], 0
        for place in places[: 2 * limit]:  # a few unreadable files must not empty the card
            if shown == limit:
                break
            row = int(rows[place])
            source = album.source(row)
            failures += source is None
            shown += source is not None
            if source:
                photos.append(Thumbnail(row, source, int(predicted[place])))
        return photos

    def example(label: int) -> Thumbnail | None:
        places = np.flatnonzero(labels == label)
        places = places[~np.isin(places, mistakes[:MISTAKES])]
        recognised_first = places[np.argsort(predicted[places] != label, kind='stable')]
        return next(iter(first(recognised_first, 1)), None)

    # In the order of the page, since that is the order in which room runs out.
    true, other = example(label), example(taken_for)
    return CardThumbnails(true, other, tuple(first(mistakes, MISTAKES)), failures)


def thumbnail_url(image: Image.Image) -> str:
    """Return the image, at most THUMBNAIL pixels a side, as data: address of a JPEG without metadata."""
    small = image.convert('RGB')
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=3.0)
    bare = Image.new('RGB', small.size)  # comments and profiles would travel with a copy
    bare.paste(small)
    buffer = io.BytesIO()
    bare.save(buffer, format='JPEG', quality=82, optimize=True)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode('ascii')


NUM_WORST, NUM_PAIRS = 6, 10


@dataclass(frozen=True)
class ClassCard:
    """A class, what it was taken for, and pictures of both.

    Attributes:
        label, taken_for: classes; the second is the most frequent mistake.
        num_images, num_wrong, num_taken: of the class, all its mistakes, and those of the second class.
        num_reverse: images of the second class taken for the first.
    """

    label: int
    taken_for: int
    num_images: int
    num_wrong: int
    num_taken: int
    num_reverse: int
    photos: CardThumbnails | None

    @property
    def share(self) -> float:
        """Fraction of the class's images that were taken for the other one."""
        return self.num_taken / self.num_images

    @property
    def error(self) -> float:
        """Fraction of the class's images that are wrong."""
        return self.num_wrong / self.num_images


def worst_cards(metrics: ReportMetrics, album: ThumbnailBudget | None) -> list[ClassCard]:
    """Return the classes that are surely worst, of those that were taken for something."""
    labels, predicted = metrics.predictions.labels, metrics.predictions.predicted
    cards = []
    for label in _taken_for_something(metrics):
        other = int(metrics.table.mistaken_for[label])
        wrong = np.flatnonzero((labels == label) & (predicted != label) & (predicted >= 0))
        most_frequent_first = wrong[np.argsort(predicted[wrong] != other, kind='stable')]
        photos = _photos(album, metrics, label, other, most_frequent_first)
        num_images, num_taken = int(metrics.table.images[label]), int(metrics.table.num_mistaken[label])
        num_wrong = num_images - int(metrics.table.right[label])
        cards.append(ClassCard(label, other, num_images, num_wrong, num_taken, 0, photos))
    return cards


def pair_cards(metrics: ReportMetrics, pairs: list[ConfusedPair], album: ThumbnailBudget | None) -> list[ClassCard]:
    """Return the confused pairs with their pictures."""
    return [
        ClassCard(
            pair.label,
            pair.predicted,
            pair.num_images,
            pair.num_images - int(metrics.table.right[pair.label]),
            len(pair.rows),
            pair.num_reverse,
            _photos(album, metrics, pair.label, pair.predicted, pair.rows),
        )
        for pair in pairs
    ]


def make_class_cards(metrics: ReportMetrics | None) -> Callable[[ThumbnailBudget | None], dict[str, list[ClassCard]]]:
    """Return what makes the cards for an album, in the page's order; which pairs there are is found once."""
    if metrics is None:
        return lambda album: {'worst': [], 'pairs': []}
    pairs = most_confused(metrics.predictions.labels, metrics.predictions.predicted, NUM_PAIRS)
    return lambda album: {'worst': worst_cards(metrics, album), 'pairs': pair_cards(metrics, pairs, album)}


def _taken_for_something(metrics: ReportMetrics) -> Iterator[int]:
    worst = metrics.worst()
    return map(int, worst[metrics.table.mistaken_for[worst] >= 0][:NUM_WORST])


def _photos(
    album: ThumbnailBudget | None, metrics: ReportMetrics, label: int, taken_for: int, mistakes: np.ndarray
) -> CardThumbnails | None:
    if album is None:
        return None
    predictions = metrics.predictions
    return card_thumbnails(album, metrics.rows, predictions.labels, predictions.predicted, label, taken_for, mistakes)
