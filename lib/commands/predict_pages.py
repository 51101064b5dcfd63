"""The pages of a prediction: the contact sheet, and uncertain or unknown photos, to be given a class."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel
from lib.dataset.images import FileImages
from lib.dataset.paths import path_as_text
from lib.formats.decisions import UNLABELED
from lib.metrics.confidence import Threshold
from lib.metrics.predictions import Predictions
from lib.posthoc.clusters import Clusters
from lib.report.contact_sheet import SheetData, write_contact_sheet
from lib.report.galleries import THUMBNAIL_SIDE, reduced
from lib.report.review_page import MAX_ITEMS, NUM_TYPICAL, PHOTO_SIDE, ReviewData, write_review_pages
from lib.runtime.text import count_of


def write_sheet(
    path: Path,
    trained: LoadedModel,
    split: DatasetSplit,
    predictions: Predictions,
    *,
    title: str,
    errors: dict[int, str],
    threshold: Threshold | None,
    is_unknown: np.ndarray | None = None,
) -> None:
    """Write the contact sheet.

    Args:
        errors: row -> reason, of the images that cannot be decoded.
        is_unknown: (n,) bool, whether the product is unknown; None: not judged.
    """
    images = split.images
    data = SheetData(
        title=title,
        model=str(trained.path),
        source=split.source,
        names=split.names,
        predictions=predictions,
        class_names=trained.class_names,
        errors=errors,
        threshold=threshold.value if threshold else None,
        is_unknown=is_unknown,
        open_image=lambda row: reduced(images.open(row), THUMBNAIL_SIDE),
        path_of=images.path if isinstance(images, FileImages) else None,
    )
    write_contact_sheet(path, data, max_bytes=1e6 * trained.cfg.REPORT.MAX_MB)


def write_queue(
    path: Path, trained: LoadedModel, split: DatasetSplit, predictions: Predictions, threshold: float, *, title: str
) -> list[Path]:
    """Write the review pages of the photos that the model abstains from, the least certain first; return the files.

    The predicted classes are the proposals.
    """
    confidence = predictions.confidence
    below = np.flatnonzero((predictions.predicted >= 0) & (confidence < threshold))
    if not len(below) or not isinstance(split.images, FileImages):
        return []
    rows = below[np.argsort(confidence[below], kind='stable')][:MAX_ITEMS]
    source = f'The model abstains from {count_of(len(below), "photo")}: the least certain first.'
    step = 'python tools/convert.py decisions decisions.json dataset/reviewed'
    data = _unlabeled_review(trained, split, rows, predictions.at(rows), title=title, source=source, next_step=step)
    return write_review_pages(path, data, max_bytes=1e6 * trained.cfg.REPORT.MAX_MB)


def write_proposals(
    path: Path,
    trained: LoadedModel,
    split: DatasetSplit,
    rows: np.ndarray,
    predictions: Predictions,
    clusters: Clusters,
    *,
    title: str,
    next_step: str,
) -> list[Path]:
    """Write the review pages of photos of unknown products, by cluster, the largest first; return the files.

    A cluster is the first proposal for its photos, the predicted classes are the others.

    Args:
        rows: (n,) of the split, which predictions and clusters are about.
        next_step: the command that takes decisions.json.
    """
    order, numbers = clusters.order, clusters.numbers[clusters.order]
    num_classes, sizes = len(trained.class_names), clusters.sizes.tolist()
    is_alone = int((numbers < 0).sum())
    data = _unlabeled_review(
        trained, split, rows[order], predictions.at(order), title=title,
        source=f'{count_of(len(sizes), "cluster")} of photos that may be new products, the largest first; then '
        f'{count_of(is_alone, "photo")} that no other resembles.',
        next_step=next_step,
    )  # fmt: skip
    known, of_cluster = data.typical, np.where(numbers < 0, -1, num_classes + numbers)
    data = replace(
        data,
        kinds=np.where(numbers < 0, 'alone', 'new_class').tolist(),
        proposals=np.concatenate([of_cluster[:, None], data.proposals], axis=1),
        probabilities=np.concatenate([np.ones((len(order), 1)), data.probabilities], axis=1),
        class_names=[*trained.class_names, *(f'new class {number + 1}' for number in range(len(sizes)))],
        typical=lambda label: known(label) if label < num_classes else rows[clusters.rows_of(label - num_classes)],
        cluster_sizes=sizes,
    )
    return write_review_pages(path, data, max_bytes=1e6 * trained.cfg.REPORT.MAX_MB)


def _unlabeled_review(
    trained: LoadedModel,
    split: DatasetSplit,
    rows: np.ndarray,
    predictions: Predictions,
    *,
    title: str,
    source: str,
    next_step: str,
) -> ReviewData:
    """Return the review of photos without labels: predicted classes with photos of the validation split.

    Args:
        rows: (n,) of the split, in the order of the page.
        predictions: predictions of these rows.
    """
    images, valid = split.images, trained.valid
    assert isinstance(images, FileImages)
    of_class, num_images = valid.index(), len(split)

    def open_image(row: int) -> Image.Image:
        return reduced(valid.images.open(row - num_images) if row >= num_images else images.open(row), PHOTO_SIDE)

    def path_of(row: int) -> str:
        if row < num_images:
            return images.path(row)
        return valid.images.path(row - num_images) if isinstance(valid.images, FileImages) else ''

    return ReviewData(
        title=title,
        source=source,
        split=UNLABELED,
        rows=rows,
        fpaths=[path_as_text(os.path.abspath(images.path(row))) for row in rows.tolist()],
        kinds=['abstained'] * len(rows),
        labels=np.full(len(rows), -1),
        errors=np.full(len(rows), np.nan),
        proposals=predictions.topk,
        probabilities=predictions.probabilities,
        class_names=trained.class_names,
        typical=lambda label: (of_class.rows_of(label)[:NUM_TYPICAL] + num_images).tolist(),
        open_image=open_image,
        path_of=path_of,
        next_step=next_step,
    )
