"""The pages for reviewing labels: one image at a time, decided by keyboard, exported as decisions.json."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

UNLABELED = 'unlabeled'  # split of decisions about images that belong to no split
KINDS = {
    'mislabeled': 'probably another class',
    'ambiguous': 'two similar classes',
    'out_of_catalog': 'no class fits',
    'duplicate': 'near copy with another label',
    'abstained': 'the model is not certain',
}


@dataclass(frozen=True)
class ReviewData:
    """The images to review, in the order of the pages, and the classes that they may belong to.

    Attributes:
        title, source: for the head of the page.
        split: 'train' or 'valid', as in decisions.json; UNLABELED for images that belong to no split.
        rows: (n,) int of the images, for `open_image` and `path_of`.
        fpaths: (n,) text that names each image in decisions.json: the path as annotated.
        kinds: (n,) names of KINDS.
        labels: (n,) int class as labeled; -1: none.
        errors: (n,) float probability that the label is wrong; nan: unknown.
        proposals: (n, k) int classes that are proposed, the most probable first; -1: none.
        probabilities: (n, k) float of the proposals.
        class_names: of all classes, which the page can search.
        typical: class -> rows of typical images of it, the most typical first.
        open_image: row -> RGB image, whose longer side has PHOTO_SIDE pixels or more if possible; may raise.
        path_of: row -> path of the image's file, for links; None: the images are not files.
        next_step: what to do with decisions.json, in one line.
    """

    title: str
    source: str
    split: str
    rows: np.ndarray
    fpaths: Sequence[str]
    kinds: Sequence[str]
    labels: np.ndarray
    errors: np.ndarray
    proposals: np.ndarray
    probabilities: np.ndarray
    class_names: Sequence[str]
    typical: Callable[[int], Sequence[int]]
    open_image: Callable[[int], Image.Image]
    path_of: Callable[[int], str] | None = None
    next_step: str = ''


def write_review_pages(path: str | os.PathLike, data: ReviewData, *, max_bytes: float) -> list[Path]:
    """Write the pages path.html, path_2.html, ... of at most `max_bytes` each together, and return their paths."""
    raise NotImplementedError
