"""Galleries of the report: worst classes and most confused pairs, with thumbnails of true and predicted class."""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lib.dataset.lazy_image import LazyImage
from lib.metrics.confusion import ConfusedPair, most_confused
from lib.report.report_metrics import ReportMetrics

THUMBNAIL_SIDE = 128  # pixels of the longer side
NUM_MISTAKES = 3  # misclassified images shown per card
NUM_WORST, NUM_PAIRS = 6, 10
_MARKUP_BYTES = 120  # approximate size of the HTML around a thumbnail


@dataclass(frozen=True)
class Thumbnail:
    """A small image of a valid row as a data: URL, and the class predicted for it."""

    row: int
    source: str
    predicted: int


@dataclass(frozen=True)
class CardThumbnails:
    """Thumbnails of one card.

    Attributes:
        label, predicted: an image of the true class and one of the predicted class, correctly classified if possible.
        mistakes: misclassified images.
        num_unreadable: images that could not be opened.
    """

    label: Thumbnail | None
    predicted: Thumbnail | None
    mistakes: tuple[Thumbnail, ...]
    num_unreadable: int


@dataclass(frozen=True)
class ClassCard:
    """A class, the class that it is confused with, and thumbnails of both.

    Attributes:
        label, predicted: the true class and the predicted one.
        num_images, num_wrong: images of the true class, and those that are misclassified.
        num_confused: images of the true class that are predicted as `predicted`.
        num_reverse: images of `predicted` that are predicted as `label`.
    """

    label: int
    predicted: int
    num_images: int
    num_wrong: int
    num_confused: int
    num_reverse: int
    thumbnails: CardThumbnails | None

    @property
    def fraction(self) -> float:
        """Fraction of the class's images that are predicted as `predicted`."""
        return self.num_confused / self.num_images

    @property
    def error(self) -> float:
        """Fraction of the class's images that are misclassified."""
        return self.num_wrong / self.num_images


class ThumbnailBudget:
    """Opens thumbnails of the valid split until their total size reaches a limit.

    Args:
        open_image: row -> RGB image; may raise.
        max_bytes: total size of all thumbnails in the page. All thumbnails after the first one that does not fit are
            left out, so the first ones of the page are always shown.
    """

    def __init__(self, open_image: Callable[[int], Image.Image], max_bytes: float = float('inf')) -> None:
        self._open_image = open_image
        self._sources: dict[int, str | None] = {}
        self.num_left_out = 0
        self.reset(max_bytes)

    def reset(self, max_bytes: float) -> None:
        """Start again with another limit; thumbnails are cached, so no image is opened twice."""
        self._bytes_left = max_bytes
        self.num_left_out = 0

    def source(self, row: int) -> str | None:
        """Return the data: URL of a thumbnail; '' if it exceeds the limit, None if the image cannot be opened."""
        if self._bytes_left <= 0:
            self.num_left_out += 1
            return ''
        if row not in self._sources:
            try:
                self._sources[row] = thumbnail_url(self._open_image(row))
            except Exception:  # any error of the reader: a missing thumbnail must not cost the report
                self._sources[row] = None
        source = self._sources[row]
        if source is None:
            return None
        self._bytes_left -= len(source) + _MARKUP_BYTES
        if self._bytes_left < 0:
            self.num_left_out += 1
            return ''
        return source


def fit_page(render: Callable[[ThumbnailBudget], str], budget: ThumbnailBudget, max_bytes: float) -> str:
    """Return a page with as many thumbnails as fit; it is larger than `max_bytes` only if it is so without any."""
    budget.reset(0)
    page = render(budget)
    bytes_left = max_bytes - len(page.encode())
    while bytes_left > 0:
        budget.reset(bytes_left)
        larger = render(budget)
        excess = len(larger.encode()) - max_bytes
        if excess <= 0:
            return larger
        bytes_left -= excess  # the HTML around the thumbnails is larger than estimated
    return page


def reduced(image: LazyImage, side: int) -> Image.Image:
    """Return an image, decoded at the smallest scale at which its longer side has at least `side` pixels."""
    pixels, _ = image.pixels(min(1.0, side / max(image.width, image.height)))
    return Image.fromarray(pixels)


def thumbnail(image: Image.Image, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Return an RGB image of at most `side` pixels per side."""
    small = image.convert('RGB')
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small


def thumbnail_jpeg(image: Image.Image, side: int = THUMBNAIL_SIDE) -> bytes:
    """Return the thumbnail of an image as JPEG without metadata."""
    small = thumbnail(image, side)
    bare = Image.new('RGB', small.size)  # a copy would include comments and profiles
    bare.paste(small)
    buffer = io.BytesIO()
    bare.save(buffer, format='JPEG', quality=82, optimize=True)
    return buffer.getvalue()


def thumbnail_base64(image: Image.Image, side: int = THUMBNAIL_SIDE) -> str:
    """Return the thumbnail of an image as JPEG without metadata, in base64."""
    return base64.b64encode(thumbnail_jpeg(image, side)).decode('ascii')


def thumbnail_url(image: Image.Image) -> str:
    """Return the thumbnail of an image as data: URL."""
    return f'data:image/jpeg;base64,{thumbnail_base64(image)}'


def make_class_cards(
    metrics: ReportMetrics | None,
) -> Callable[[ThumbnailBudget | None], dict[str, list[ClassCard]]]:
    """Return a function from a budget to the page's cards; the confused pairs are computed once."""
    if metrics is None:
        return lambda budget: {'worst': [], 'pairs': []}
    pairs = most_confused(metrics.predictions.labels, metrics.predictions.predicted, NUM_PAIRS)
    # Worst classes first, as on the page: the budget is spent in this order.
    return lambda budget: {'worst': worst_cards(metrics, budget), 'pairs': pair_cards(metrics, pairs, budget)}


def worst_cards(metrics: ReportMetrics, budget: ThumbnailBudget | None) -> list[ClassCard]:
    """Return cards of the classes with the highest lower bound of the error that are confused with another class."""
    labels, predicted = metrics.predictions.labels, metrics.predictions.predicted
    cards = []
    for label in _worst_confused_classes(metrics):
        other = int(metrics.table.mistaken_for[label])
        wrong = np.flatnonzero((labels == label) & (predicted != label) & (predicted >= 0))
        most_frequent_first = wrong[np.argsort(predicted[wrong] != other, kind='stable')]
        thumbnails = _thumbnails(budget, metrics, label, other, most_frequent_first)
        num_images, num_confused = int(metrics.table.images[label]), int(metrics.table.num_mistaken[label])
        num_wrong = num_images - int(metrics.table.correct[label])
        cards.append(ClassCard(label, other, num_images, num_wrong, num_confused, 0, thumbnails))
    return cards


def pair_cards(metrics: ReportMetrics, pairs: list[ConfusedPair], budget: ThumbnailBudget | None) -> list[ClassCard]:
    """Return cards of the confused pairs."""
    return [
        ClassCard(
            pair.label,
            pair.predicted,
            pair.num_images,
            pair.num_images - int(metrics.table.correct[pair.label]),
            len(pair.rows),
            pair.num_reverse,
            _thumbnails(budget, metrics, pair.label, pair.predicted, pair.rows),
        )
        for pair in pairs
    ]


def card_thumbnails(
    budget: ThumbnailBudget,
    rows: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    label: int,
    other: int,
    mistakes: np.ndarray,
) -> CardThumbnails:
    """Return up to NUM_MISTAKES thumbnails of misclassified images and one of each class.

    Args:
        rows: (n,) rows of the images in the valid split.
        labels, predicted: (n,) integers.
        label, other: the true class and the predicted one.
        mistakes: int64 indices into the n images, in the order of preference.
    """
    num_unreadable = 0

    def first(indices: np.ndarray, limit: int) -> list[Thumbnail]:
        nonlocal num_unreadable
        thumbnails, num_opened = [], 0
        for index in indices[: 2 * limit]:  # with spare ones, so that a few unreadable files don't empty the card
            if num_opened == limit:
                break
            row = int(rows[index])
            source = budget.source(row)
            num_unreadable += source is None
            num_opened += source is not None
            if source:
                thumbnails.append(Thumbnail(row, source, int(predicted[index])))
        return thumbnails

    def example(label: int) -> Thumbnail | None:
        indices = np.flatnonzero(labels == label)
        indices = indices[~np.isin(indices, mistakes[:NUM_MISTAKES])]
        correct_first = indices[np.argsort(predicted[indices] != label, kind='stable')]
        return next(iter(first(correct_first, 1)), None)

    # In the order of the page, because the budget is spent in this order.
    true_class, other_class = example(label), example(other)
    return CardThumbnails(true_class, other_class, tuple(first(mistakes, NUM_MISTAKES)), num_unreadable)


def _worst_confused_classes(metrics: ReportMetrics) -> Iterator[int]:
    worst = metrics.worst()
    return map(int, worst[metrics.table.mistaken_for[worst] >= 0][:NUM_WORST])


def _thumbnails(
    budget: ThumbnailBudget | None, metrics: ReportMetrics, label: int, other: int, mistakes: np.ndarray
) -> CardThumbnails | None:
    if budget is None:
        return None
    predictions = metrics.predictions
    return card_thumbnails(budget, metrics.rows, predictions.labels, predictions.predicted, label, other, mistakes)
