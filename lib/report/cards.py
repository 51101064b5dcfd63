"""Worst classes and confused pairs, each with pictures of true and predicted class side by side."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lib.metrics.confusion import ConfusedPair, most_confused
from lib.report.galleries import Album, CardPhotos, card_photos
from lib.report.report_metrics import Measured

NUM_WORST, NUM_PAIRS = 6, 10


@dataclass(frozen=True)
class Card:
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
    photos: CardPhotos | None

    @property
    def share(self) -> float:
        """Fraction of the class's images that were taken for the other one."""
        return self.num_taken / self.num_images

    @property
    def error(self) -> float:
        """Fraction of the class's images that are wrong."""
        return self.num_wrong / self.num_images


def worst_cards(measured: Measured, album: Album | None) -> list[Card]:
    """Return the classes that are surely worst, of those that were taken for something."""
    labels, predicted = measured.answers.labels, measured.answers.predicted
    cards = []
    for label in _taken_for_something(measured):
        other = int(measured.table.mistaken_for[label])
        wrong = np.flatnonzero((labels == label) & (predicted != label) & (predicted >= 0))
        most_frequent_first = wrong[np.argsort(predicted[wrong] != other, kind='stable')]
        photos = _photos(album, measured, label, other, most_frequent_first)
        num_images, num_taken = int(measured.table.images[label]), int(measured.table.num_mistaken[label])
        num_wrong = num_images - int(measured.table.right[label])
        cards.append(Card(label, other, num_images, num_wrong, num_taken, 0, photos))
    return cards


def pair_cards(measured: Measured, pairs: list[ConfusedPair], album: Album | None) -> list[Card]:
    """Return the confused pairs with their pictures."""
    return [
        Card(
            pair.label,
            pair.predicted,
            pair.num_images,
            pair.num_images - int(measured.table.right[pair.label]),
            len(pair.rows),
            pair.num_reverse,
            _photos(album, measured, pair.label, pair.predicted, pair.rows),
        )
        for pair in pairs
    ]


def card_maker(measured: Measured | None) -> Callable[[Album | None], dict[str, list[Card]]]:
    """Return what makes the cards for an album, in the page's order; which pairs there are is found once."""
    if measured is None:
        return lambda album: {'worst': [], 'pairs': []}
    pairs = most_confused(measured.answers.labels, measured.answers.predicted, NUM_PAIRS)
    return lambda album: {'worst': worst_cards(measured, album), 'pairs': pair_cards(measured, pairs, album)}


def _taken_for_something(measured: Measured) -> Iterator[int]:
    worst = measured.worst()
    return map(int, worst[measured.table.mistaken_for[worst] >= 0][:NUM_WORST])


def _photos(
    album: Album | None, measured: Measured, label: int, taken_for: int, mistakes: np.ndarray
) -> CardPhotos | None:
    if album is None:
        return None
    answers = measured.answers
    return card_photos(album, measured.rows, answers.labels, answers.predicted, label, taken_for, mistakes)
