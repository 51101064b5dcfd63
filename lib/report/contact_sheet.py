"""The contact sheet of a prediction: photos with names and probabilities, in one HTML file of limited size."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from lib.metrics.confidence import HALF, summarize_confidence
from lib.metrics.predictions import Predictions
from lib.report.galleries import ThumbnailBudget, fit_page
from lib.report.page import PALETTE, inline_script, page_environment, percent, thousands
from lib.runtime.files import write_text

MAX_PHOTOS = 1000  # more photos: half of these are the first ones, half the least certain ones
NUM_OTHERS = 2  # further classes shown per photo


@dataclass(frozen=True)
class SheetData:
    """The predictions of the images of a split.

    Attributes:
        title, model, source: shown at the top of the page.
        names: (n,) of the images; indexed by row.
        predictions: predictions of all n images; labels are -1 where unknown.
        errors: row -> reason, of the images that cannot be decoded.
        threshold: probability below which the model abstains; None: none was chosen.
        open_image: row -> RGB image, at least as large as a thumbnail; may raise.
        path_of: row -> path of the photo's file, for links; None: the images are not files.
        is_unknown: (n,) bool, whether the product is none of the classes; None: not judged.
    """

    title: str
    model: str
    source: str
    names: Sequence[Any]
    predictions: Predictions
    class_names: Sequence[str]
    errors: dict[int, str]
    threshold: float | None
    open_image: Callable[[int], Image.Image]
    path_of: Callable[[int], str] | None = None
    is_unknown: np.ndarray | None = None


@dataclass(frozen=True)
class PhotoCard:
    """A photo on the page.

    Attributes:
        name, link: name and link of the photo; the link is relative to the page, '' if there is no file.
        predicted, probability: the predicted class; '' and 0 for an unreadable image.
        others: (name, probability) of the next classes.
        label: true class if it is known and another one, else ''.
        is_below: the model abstains.
        is_unknown: the product is none of the classes.
        error: reason why the image cannot be decoded, else ''.
        first, uncertain: positions in the order of the images and from the least certain on; -1: not listed there.
        thumbnail: data: URL; '' if there is no thumbnail.
    """

    name: str
    link: str
    predicted: str
    probability: float
    label: str
    is_below: bool
    is_unknown: bool
    error: str
    first: int
    uncertain: int
    thumbnail: str
    others: list[tuple[str, float]] = field(default_factory=list)


def write_contact_sheet(path: str | os.PathLike, data: SheetData, *, max_bytes: float) -> None:
    """Write the page to `path`, atomically; thumbnails are embedded until it has `max_bytes`, the others are links."""
    environment = page_environment()
    environment.filters.update(percent=percent, thousands=thousands)
    script, script_hash = inline_script('contact_sheet.js')
    num_images = len(data.predictions)
    first, uncertain = listed_rows(data.predictions)
    template = environment.get_template('contact_sheet.html')

    def render(budget: ThumbnailBudget) -> str:
        cards = _cards(data, first, uncertain, budget, Path(path).parent)
        return template.render(
            data=data,
            palette=PALETTE,
            cards=cards,
            num_images=num_images,
            num_listed=len(first),
            has_all=len(first) == num_images,
            num_without=sum(not card.thumbnail and not card.error for card in cards),
            summary=summarize_confidence(data.predictions, data.threshold),
            limit=f'{100 * HALF:.0f}\u202f%' if data.threshold is None else percent(data.threshold),
            script=script,
            script_hash=script_hash,
        )

    write_text(path, fit_page(render, ThumbnailBudget(data.open_image), max_bytes))


def listed_rows(predictions: Predictions, limit: int = MAX_PHOTOS) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows in the order of the images and those from the least certain on, unreadable images first.

    All rows if there are at most `limit`, else half as many in each order.
    """
    num_images = len(predictions)
    length = num_images if num_images <= limit else limit // 2
    certainty = np.where(predictions.predicted < 0, -1.0, predictions.confidence)
    least = np.argsort(certainty, kind='stable') if num_images <= limit else _smallest(certainty, length)
    return np.arange(length), least


def _smallest(values: np.ndarray, number: int) -> np.ndarray:
    """Return the indices of the smallest values, ascending, of equal ones the first; without sorting all values."""
    bound = np.partition(values, number - 1)[number - 1]
    candidates = np.flatnonzero(values <= bound)
    return candidates[np.argsort(values[candidates], kind='stable')][:number]


def _cards(
    data: SheetData, first: np.ndarray, uncertain: np.ndarray, budget: ThumbnailBudget, folder: Path
) -> list[PhotoCard]:
    """Return the cards of all listed rows, in the order of the images."""
    position = {int(row): index for index, row in enumerate(first)}
    rank = {int(row): index for index, row in enumerate(uncertain)}
    # The budget is spent on the beginnings of both orders alike.
    by_need = sorted({*position, *rank}, key=lambda row: min(position.get(row, MAX_PHOTOS), rank.get(row, MAX_PHOTOS)))
    thumbnails = {row: budget.source(row) or '' for row in by_need if row not in data.errors}
    return [
        _card(data, row, position.get(row, -1), rank.get(row, -1), thumbnails.get(row, ''), folder)
        for row in sorted(by_need)
    ]


def _card(data: SheetData, row: int, first: int, uncertain: int, thumbnail: str, folder: Path) -> PhotoCard:
    predictions = data.predictions
    classes, values = predictions.topk[row].tolist(), predictions.probabilities[row].tolist()
    label, is_readable = int(predictions.labels[row]), classes[0] >= 0
    name = data.names[row]
    return PhotoCard(
        name=str(name.as_py() if hasattr(name, 'as_py') else name),
        link=link_to(data.path_of(row), folder) if data.path_of else '',
        predicted=data.class_names[classes[0]] if is_readable else '',
        probability=values[0] if is_readable else 0.0,
        label=data.class_names[label] if label >= 0 and label != classes[0] else '',
        is_below=is_readable and data.threshold is not None and values[0] < data.threshold,
        is_unknown=data.is_unknown is not None and bool(data.is_unknown[row]),
        error='' if is_readable else data.errors.get(row, 'unreadable'),
        first=first,
        uncertain=uncertain,
        thumbnail=thumbnail,
        others=[
            (data.class_names[other], value)
            for other, value in zip(classes[1 : 1 + NUM_OTHERS], values[1 : 1 + NUM_OTHERS], strict=True)
            if other >= 0
        ],
    )


def link_to(path: str, folder: Path) -> str:
    """Return the address of a file, relative to a page in `folder`, so that both can be moved together."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive of Windows
        return Path(path).resolve().as_uri()
    return './' + quote(os.fsencode(relative.replace(os.sep, '/')))
