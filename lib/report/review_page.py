"""The pages for reviewing labels: one image at a time, decided by keyboard, exported as decisions.json."""

import base64
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
from markupsafe import Markup
from PIL import Image

from lib.dataset.corrections import Decision
from lib.formats.decisions import UNLABELED
from lib.report.contact_sheet import link_to
from lib.report.galleries import thumbnail_base64
from lib.report.page import PALETTE, inline_script, page_environment, thousands
from lib.runtime.files import remove, replace_together, write_text

MAX_ITEMS = 20_000  # images of a review
MAX_PAGES = 20  # the last one has all other images, without embedded photos
PHOTO_SIDE, TYPICAL_SIDE = 192, 112  # pixels of the longer side
NUM_TYPICAL = 3  # typical photos per class
NUM_STRIP = 9  # small photos for navigation, as in the script
MAX_PROPOSALS = 5  # of an image
_NUM_CACHED = 2000  # classes whose typical photos, and folders whose links, are cached
_CLASS_BYTES = 24  # of a class in JSON, apart from its name and photos
_MIN_SPACE = 50_000  # bytes for photos
_COLUMNS = ('fpaths', 'links', 'kinds', 'labels', 'annotated', 'errors', 'proposals', 'probabilities', 'photos')
KINDS = {
    'mislabeled': 'probably another class',
    'ambiguous': 'two similar classes',
    'out_of_catalog': 'no class fits',
    'duplicate': 'near copy with another label',
    'abstained': 'the model is not certain',
    'new_class': 'other unknown photos resemble it',
    'alone': 'no other unknown photo resembles it',
}


@dataclass(frozen=True)
class ReviewData:
    """The images to review, in the order of the pages, and the classes that they may belong to.

    Attributes:
        title, source: shown at the top of the page.
        split: 'train' or 'valid', as in decisions.json; UNLABELED for images that belong to no split.
        rows: (n,) int of the images, for `open_image` and `path_of`.
        fpaths: (n,) text that names each image in decisions.json: the path as annotated.
        kinds: (n,) names of KINDS.
        labels: (n,) int class as labeled; -1: none.
        errors: (n,) float probability that the label is wrong; nan: unknown.
        proposals: (n, k) int classes that are proposed, the most probable first; -1: none.
        probabilities: (n, k) float of the proposals.
        class_names: names of all classes, which the page can search; the last ones may be proposals for new classes.
        cluster_sizes: photos of each of these proposals, which get the name that one of their photos is given.
        typical: class -> rows of typical images of it, the most typical first.
        open_image: row -> RGB image, whose longer side has PHOTO_SIDE pixels or more if possible; may raise.
        path_of: row -> path of the image's file, for links, '' without a file; None: no image is a file.
        next_step: what to do with decisions.json, in one line.
        earlier: decisions that the labels include already (DATASET.CORRECTIONS). Where the page does not decide again,
            they are exported, too, since all decisions correct the same annotations.
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
    earlier: Sequence[Decision] = ()
    cluster_sizes: Sequence[int] = ()


def write_review_pages(path: str | os.PathLike, data: ReviewData, *, max_bytes: float) -> list[Path]:
    """Write path.html, path_2.html, ..., all at once, and return their paths; remove those of an earlier, longer set.

    Photos are embedded, in as many pages of at most `max_bytes` as are needed. The last of MAX_PAGES, and a page whose
    limit leaves no space for photos, has all other images with links to their files, and may be larger.
    """
    path = Path(path)
    render = _renderer(data)
    space = max_bytes - len(render({}, [path], 1).encode())
    contents = _contents(data, space if space > max(max_bytes / 4, _MIN_SPACE) else 0, path.parent)
    paths = [path, *(path.with_name(f'{path.stem}_{number}{path.suffix}') for number in range(2, len(contents) + 1))]
    with replace_together(path.parent):
        for number, (file, content) in enumerate(zip(paths, contents, strict=True), start=1):
            write_text(file, render(content, paths, number))
    for number in count(len(paths) + 1):
        earlier = path.with_name(f'{path.stem}_{number}{path.suffix}')
        if not earlier.is_file():
            break
        remove(earlier)
    return paths


def _renderer(data: ReviewData) -> Callable[[dict[str, Any], Sequence[Path], int], str]:
    """Return a function from the content of a page, all pages, and its number to its HTML."""
    environment = page_environment()
    environment.filters.update(thousands=thousands)
    template = environment.get_template('review_page.html')
    script, script_hash = inline_script('page.js', 'review_decisions.js', 'review_page.js')
    rare = {
        'names': [str(name) for name in data.class_names],
        'earlier': [msgspec.to_builtins(decision) for decision in data.earlier],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(rare, separators=(',', ':')).encode(), 9)).decode('ascii')
    first = len(data.class_names) - len(data.cluster_sizes)
    cluster_sizes = dict(enumerate(data.cluster_sizes, start=first))
    common = {'review': _digest(data), 'split': data.split, 'kindMeanings': KINDS, 'clusterSizes': cluster_sizes}
    num_images = len(data.fpaths)

    def render(content: dict[str, Any], paths: Sequence[Path], number: int) -> str:
        return template.render(
            data=data,
            palette=PALETTE,
            labeled=data.split != UNLABELED,
            has_clusters=bool(data.cluster_sizes),
            num_images=num_images,
            num_listed=min(num_images, MAX_ITEMS),
            has_all=num_images <= MAX_ITEMS,
            num_typical=NUM_TYPICAL,
            num_strip=NUM_STRIP,
            pages=[f'./{quote(os.fsencode(file.name))}' for file in paths],
            number=number,
            content=_json_block(content | common | {'page': number, 'numPages': len(paths)}),
            packed=_json_block(packed),
            show_files=True,
            script=script,
            script_hash=script_hash,
        )

    return render


def _digest(data: ReviewData) -> str:
    """Return a digest of the images and their labels, by which browsers store decisions."""
    labels = [_name(data, label) for label in np.asarray(data.labels[:MAX_ITEMS]).tolist()]
    content = json.dumps([data.split, list(map(str, data.fpaths[:MAX_ITEMS])), labels])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _name(data: ReviewData, label: int) -> str:
    return str(data.class_names[label]) if label >= 0 else ''


def _json_block(value: Any) -> Markup:
    """Return JSON in ASCII for a <script> element, in which `<` could end the element."""
    return Markup(json.dumps(value, separators=(',', ':')).replace('<', '\\u003c'))


class _Photos:
    """The photos of a review: JPEGs in base64, and links to their files."""

    def __init__(self, data: ReviewData, folder: Path) -> None:
        self._data, self._folder = data, folder
        self.photo = lru_cache(1)(self._jpeg)  # one that does not fit is the first of the next page
        self.typical = lru_cache(_NUM_CACHED)(self._typical)
        self._folder_link = lru_cache(_NUM_CACHED)(lambda path: link_to(path or '.', folder))

    def link(self, row: int) -> str:
        """Return the address of a photo's file, relative to the pages; '' if there is none."""
        path = self._data.path_of(row) if self._data.path_of else ''
        folder, name = os.path.split(path)
        return f'{self._folder_link(folder)}/{quote(os.fsencode(name))}' if path else ''

    def typical_links(self, label: int) -> list[str]:
        """Return the addresses of the typical photos of a class."""
        return [link for row in self._typical_rows(label) if (link := self.link(row))]

    def _typical(self, label: int) -> list[str]:
        photos = [self._jpeg(row, TYPICAL_SIDE) for row in self._typical_rows(label)]
        return [photo for photo in photos if photo]

    def _typical_rows(self, label: int) -> list[int]:
        return [int(row) for row in self._data.typical(label)[:NUM_TYPICAL]]

    def _jpeg(self, row: int, side: int = PHOTO_SIDE) -> str | None:
        """Return a photo; None if it cannot be opened."""
        try:
            return thumbnail_base64(self._data.open_image(row), side)
        except Exception:  # any error of the reader: a missing photo must not cost the page
            return None


class _Page:
    """The content of a page: columns with an entry per image, and the classes of these images.

    Args:
        annotated: as in `_item`.
        space: bytes for the content. When it is used up, images have no embedded photos.
    """

    def __init__(
        self, data: ReviewData, annotated: Mapping[tuple[str, str], str], photos: _Photos, space: float
    ) -> None:
        self._data, self._annotated, self._photos, self._space = data, annotated, photos, space
        self._items: list[dict[str, Any]] = []
        self._names: dict[int, str] = {}
        self._typical: dict[int, list[str]] = {}

    def content(self) -> dict[str, Any]:
        """Return the content for the script: class -> (name, typical photos), and the columns."""
        classes = {label: (name, self._typical.get(label, [])) for label, name in self._names.items()}
        return {'classes': classes} | {name: [item[name] for item in self._items] for name in _COLUMNS}

    def add(self, index: int, *, needed: bool) -> bool:
        """Add an image and its classes; return False if they do not fit. A `needed` one is added without photos."""
        data, row = self._data, int(self._data.rows[index])
        item = _item(data, index, self._annotated) | {'links': self._photos.link(row), 'photos': ''}
        label, proposals = item['labels'], item['proposals']
        names = {each: _name(data, each) for each in [label, *proposals] if each >= 0 and each not in self._names}
        # The label and the best proposal; without a label, the best two.
        compared = [each for each in [label, *proposals] if each >= 0][:2]
        added = [each for each in compared if each not in self._typical]
        size: float = len(json.dumps([item, *names.values()])) + _CLASS_BYTES * len(names)
        photo: str | None = ''
        typical: dict[int, list[str]] = {}
        if size < self._space:
            photo, typical = self._photos.photo(row), {each: self._photos.typical(each) for each in added}
            size += len(photo or '') + len(json.dumps(list(typical.values())))
        if size > self._space:
            if not needed:
                return False
            photo, typical = '', {each: self._photos.typical_links(each) for each in added}
            size = math.inf
        self._space -= size
        self._items.append(item | {'photos': photo})
        self._names |= names
        self._typical |= typical
        return True


def _item(data: ReviewData, index: int, annotated: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Return the entries of an image in the columns, without links and photos.

    Args:
        annotated: (fpath, label) of each image that was relabeled -> its label as annotated.
    """
    label, error = int(data.labels[index]), float(data.errors[index])
    proposals = np.asarray(data.proposals[index])[:MAX_PROPOSALS].tolist()
    values = np.nan_to_num(data.probabilities[index])[:MAX_PROPOSALS].tolist()
    pairs = [(each, round(value, 4)) for each, value in zip(proposals, values, strict=True) if each >= 0]
    return {
        'fpaths': str(data.fpaths[index]),
        'kinds': str(data.kinds[index]),
        'labels': label,
        'annotated': annotated.get((str(data.fpaths[index]), _name(data, label)), ''),
        'errors': round(error, 4) if math.isfinite(error) else None,
        'proposals': [each for each, _ in pairs],
        'probabilities': [value for _, value in pairs],
    }


def _contents(data: ReviewData, space: float, folder: Path) -> list[dict[str, Any]]:
    """Return the content of each page: of `space` bytes each, or, without space, of one page without photos."""
    photos, num_items = _Photos(data, folder), min(len(data.fpaths), MAX_ITEMS)
    annotated = {(one.fpath, one.to): one.label for one in data.earlier if one.action == 'relabel'}
    contents: list[dict[str, Any]] = []
    position = 0
    while position < num_items or not contents:
        page, start = _Page(data, annotated, photos, space), position
        has_rest = space <= 0 or len(contents) + 1 == MAX_PAGES
        while position < num_items and page.add(position, needed=has_rest or position == start):
            position += 1
        contents.append(page.content())
    return contents
