"""Open segments of a catalog: their rows without the removed ones, and search among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lib.catalog.manifest import File, Manifest, Segment, part_name, read_manifest
from lib.catalog.rows import Codec, Index, Rows, map_rows, write_index, write_rows
from lib.errors import UserError, shown
from lib.inference.neighbors import nearest, unit_length
from lib.inference.whitening import Whitening

EFFORT = 384
_RESCORED = 4  # effort per candidate of short codes whose similarity is computed
_RESCORED_BYTES = 8 << 20
_TRIES = 5


class Found(NamedTuple):
    """Rows (n, c) int64 of a segment for each query, -1 where there are fewer, and their cosine similarities."""

    rows: np.ndarray
    values: np.ndarray


class _Vectors:
    """Decoded codes of some rows as an array, of which a block is in memory at a time."""

    def __init__(self, codes: np.ndarray, codec: Codec, rows: np.ndarray | None) -> None:
        self._codes, self._codec, self._rows = codes, codec, rows
        self.shape = (len(codes) if rows is None else len(rows), codec.width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, some: slice) -> np.ndarray:
        codes = self._codes[some] if self._rows is None else self._codes[self._rows[some]]
        return self._codec.decode(codes)


class OpenSegment:
    """A segment whose files are mapped."""

    def __init__(self, folder: Path, entry: Segment, codec: Codec, rows: Rows, bits: np.ndarray | None) -> None:
        self.entry, self._folder, self._codec, self._rows, self._bits = entry, folder, codec, rows, bits

    def with_bits(self, entry: Segment, bits: np.ndarray | None) -> 'OpenSegment':
        """Return the same segment with other rows removed; mapped files are shared."""
        other = OpenSegment(self._folder, entry, self._codec, self._rows, bits)
        if '_index' in self.__dict__:
            other.__dict__['_index'] = self._index
        return other

    @cached_property
    def _index(self) -> Index:
        assert self.entry.index is not None
        return Index(self._folder / self.entry.index.name, self.entry.kind, self._rows.codes, self._codec)

    def check_index(self) -> None:
        """Map the index, if there is one. Raises: ValueError: it is damaged or of other rows; UserError: no faiss."""
        if self.entry.index is not None:
            _ = self._index

    @cached_property
    def _left_rows(self) -> np.ndarray | None:
        """Rows that are not removed; None: all."""
        if self._bits is None:
            return None
        return np.flatnonzero(np.unpackbits(self._bits, count=len(self._rows), bitorder='little'))

    def left(self, without: np.ndarray | None = None) -> Rows:
        """Return the rows that are not removed, and not among `without`."""
        left = self._left_rows
        if without is not None and len(without):
            left = np.setdiff1d(np.arange(len(self._rows)) if left is None else left, without, assume_unique=True)
        return self._rows if left is None else self._rows.take(left)

    def left_bits(self, without: np.ndarray) -> bytes:
        """Return the bits of the rows that are not removed, and not among `without`."""
        bits = np.ones(len(self._rows), np.uint8)
        if self._left_rows is not None:
            bits[:] = 0
            bits[self._left_rows] = 1
        bits[without] = 0
        return np.packbits(bits, bitorder='little').tobytes()

    def _if_left(self, rows: np.ndarray) -> np.ndarray:
        if self._bits is None or not len(rows):
            return rows
        return rows[(self._bits[rows >> 3] >> (rows & 7)) & 1 == 1]

    def rows_of(self, products: pa.LargeStringArray) -> np.ndarray:
        """Return the rows of some products."""
        return self._if_left(self._rows.of(products))

    def rows_with(self, others: Rows) -> np.ndarray:
        """Return the rows with product and image of one of the `others`."""
        return self._if_left(self._rows.same_images(others))

    def images_of(self, product: str) -> list[str]:
        """Return the images of a product."""
        return self._rows.images.take(pa.array(self.rows_of(pa.array([product], pa.large_string())))).to_pylist()

    def names(self, rows: np.ndarray) -> tuple[pa.LargeStringArray, pa.LargeStringArray]:
        """Return product and image of some rows."""
        indices = pa.array(rows)
        return self._rows.products.take(indices), self._rows.images.take(indices)

    def search(self, queries: np.ndarray, k: int, effort: int, *, exact: bool) -> Found:
        """Return at most k rows per query, approximately if there is an index, with exact similarities to their codes.

        Args:
            queries: (n, width) float32 unit vectors.
        """
        if self.entry.index is None or exact:
            found = nearest(queries, _Vectors(self._rows.codes, self._codec, self._left_rows), k)  # type: ignore[arg-type]  # len, shape and slices are all that it uses
            rows = found.rows if self._left_rows is None else self._left_rows[found.rows]
            return Found(rows, found.values)
        num_rows, num_left = self.entry.num_rows, self.entry.num_left
        wanted = 2 * k + effort // _RESCORED if self.entry.kind == 'ivfpq' else k  # whose own order is a rough one
        wanted = min(wanted, num_left)
        effort = max(effort, wanted) * num_rows // num_left  # removed rows are compared, too
        rows = self._index.search(queries, wanted, effort, self._bits)
        values = self._similarities(queries, rows)
        if rows.shape[1] > k:
            best = np.argpartition(-values, k - 1, axis=1)[:, :k]
            rows, values = (np.take_along_axis(part, best, axis=1) for part in (rows, values))
        return Found(rows, values)

    def _similarities(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the cosine similarity (n, k) of each query to its rows; -inf where the row is -1."""
        values = np.full(rows.shape, -np.inf, np.float32)
        step = max(1, _RESCORED_BYTES // (8 * rows.shape[1] * self._codec.width))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            vectors = self._codec.decode(self._rows.codes[rows[some]])  # (queries, k, width)
            products = np.matmul(vectors, queries[some, :, None])[..., 0]
            values[some] = products / np.sqrt(np.einsum('qkd,qkd->qk', vectors, vectors)).clip(min=1e-12)
        values[rows < 0] = -np.inf
        return values


def open_segment(folder: Path, entry: Segment, codec: Codec, known: OpenSegment | None, *, verify: bool) -> OpenSegment:
    """Open a segment.

    Args:
        known: the same segment as it was opened before, maybe with other rows removed.
        verify: compare all files with their checksums.

    Raises:
        FileNotFoundError, OSError, ValueError: a file is missing or damaged.
        UserError: it needs faiss, which is not installed.
    """
    bits = None
    if entry.left is not None:
        bits = np.frombuffer(entry.left.check(folder, verify=True).read_bytes(), np.uint8)
        if len(bits) != -(-entry.num_rows // 8):
            raise ValueError(f'{folder / entry.left.name}: has another size')
    if known is not None:
        return known.with_bits(entry, bits)
    path = entry.rows.check(folder, verify=verify)
    if entry.index is not None:
        entry.index.check(folder, verify=verify)
    try:
        rows = map_rows(path, entry.num_rows, codec.num_bytes, verify=verify)
        segment = OpenSegment(folder, entry, codec, rows, bits)
        segment.check_index()
    except ValueError as error:
        raise ValueError(f'{path}: {shown(error)}') from None
    return segment


@dataclass(frozen=True)
class Generation:
    """All that one manifest names, opened. It never changes, so that threads may share it."""

    manifest: Manifest
    whitening: Whitening | None
    segments: tuple[OpenSegment, ...]

    def vectors(self, features: np.ndarray) -> np.ndarray:
        """Return unit vectors (n, width) float32 of features (n, num_features). Raises: ValueError: another width."""
        if features.ndim != 2 or features.shape[1] != self.manifest.num_features:
            raise ValueError(f'features of shape {features.shape}, not (n, {self.manifest.num_features})')
        if self.whitening is not None:
            return self.whitening(features)
        return unit_length(np.asarray(features, np.float32))


def open_generation(folder: Path, known: dict[str, OpenSegment], *, verify: bool) -> Generation:
    """Open what the manifest names.

    Args:
        known: file of the rows -> open segment, of an earlier generation.
        verify: compare all files with their checksums.

    Raises:
        UserError: no catalog, a damaged one, or faiss is needed and missing.
    """
    for last in (False,) * (_TRIES - 1) + (True,):
        manifest = read_manifest(folder)
        try:
            segments = [
                open_segment(folder, entry, manifest.codec, known.get(entry.rows.name), verify=verify)
                for entry in manifest.segments
            ]
            whitening = None
            if manifest.whitening is not None:
                path = manifest.whitening.check(folder, verify=True)
                values = np.frombuffer(path.read_bytes(), '<f4').copy()
                values = values.reshape(manifest.width + 1, manifest.num_features)
                whitening = Whitening(values[0], values[1:])
            return Generation(manifest, whitening, tuple(segments))
        except FileNotFoundError as error:
            # Another process has replaced the manifest, and removed files of the old one.
            if last:
                raise UserError(f'{folder}: {error.filename} is missing; build the catalog again') from None
        except (OSError, ValueError) as error:
            raise UserError(f'{shown(str(error))}; build the catalog again, in another folder') from None
    raise AssertionError


def write_segment(folder: Path, rows: Rows, codec: Codec, kind: str) -> Segment:
    """Write the files of a segment.

    Args:
        kind: kind of the index; '': none.
    """
    path = folder / part_name(*rows.content())
    rows_path, index = path.with_suffix('.arrow'), None
    write_rows(rows_path, rows)
    if kind:
        index_path = path.with_suffix('.index')
        write_index(index_path, kind, rows.codes, codec)
        index = File.at(index_path)
    return Segment(len(rows), len(rows.products.unique()), File.at(rows_path), index, kind)


def best(
    found: Sequence[Found], segments: Sequence[OpenSegment], k: int, *, by: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return products, images and similarities (n, k) of the best rows of all segments; see `Matches`."""
    numbers = np.concatenate([np.full(one.rows.shape, number) for number, one in enumerate(found)], axis=1)
    rows, values = (np.concatenate([getattr(one, name) for one in found], axis=1) for name in ('rows', 'values'))
    if by == 'image' and rows.shape[1] > k:
        top = np.argpartition(-values, k - 1, axis=1)[:, :k]
        numbers, rows, values = (np.take_along_axis(part, top, axis=1) for part in (numbers, rows, values))
    order = np.argsort(-values, axis=1, kind='stable')
    numbers, rows, values = (np.take_along_axis(part, order, axis=1) for part in (numbers, rows, values))
    products, images = _names(segments, numbers, rows)
    keep = _first_of_each(products, values) if by == 'product' else values > -np.inf  # (n, candidates)
    # The kept ones move to the front, in their order.
    front = np.argsort(~keep, axis=1, kind='stable')[:, :k]
    products, images, values, keep = (
        np.take_along_axis(part, front, axis=1) for part in (products, images, values, keep)
    )
    products[~keep], images[~keep], values[~keep] = '', '', -np.inf
    if (missing := k - products.shape[1]) > 0:
        products, images = (np.pad(part, ((0, 0), (0, missing)), constant_values='') for part in (products, images))
        values = np.pad(values, ((0, 0), (0, missing)), constant_values=-np.inf)
    return products, images, values


def _names(segments: Sequence[OpenSegment], numbers: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return products and images (n, c) of rows; '' where the row is -1."""
    products, images = np.full(rows.shape, '', object), np.full(rows.shape, '', object)
    for number, segment in enumerate(segments):
        of_segment = (numbers == number) & (rows >= 0)
        products[of_segment], images[of_segment] = (
            part.to_numpy(zero_copy_only=False) for part in segment.names(rows[of_segment])
        )
    return products, images


def _first_of_each(products: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return whether each candidate is the first of its product in its row of (n, c) candidates."""
    codes = pa.array(products.ravel(), pa.large_string()).dictionary_encode().indices.to_numpy().astype(np.int64)
    keys = codes.reshape(products.shape) + (np.arange(len(products)) * (int(codes.max(initial=0)) + 1))[:, None]
    first = np.zeros(keys.size, bool)
    first[np.unique(keys.ravel(), return_index=True)[1]] = True
    return first.reshape(keys.shape) & (values > -np.inf)
