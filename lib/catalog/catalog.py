"""A catalog of products on the disk: photos as codes, searched by features, changed without rebuilding.

Rows are written in segments that never change. Adding writes a further one; removing marks rows of older ones. Then the
manifest, which names the files, is replaced: a process that is killed at any time leaves the catalog before or after
its change, and one that searches meanwhile keeps what it has opened. Large segments have an index for approximate
search, small ones are searched exactly, and are merged as the catalog grows.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from lib.catalog.manifest import (
    File,
    Manifest,
    Segment,
    has_catalog,
    part_name,
    read_manifest,
    remove_unused,
    write_manifest,
)
from lib.catalog.rows import Codec, Names, Rows, int8_scale, joined, names_column
from lib.catalog.segment import EFFORT, Generation, OpenSegment, best, open_generation, write_segment
from lib.errors import UserError, shown
from lib.inference.whitening import Whitening
from lib.runtime.files import wait_for_lock, write_bytes
from lib.runtime.text import nfc_list

INDEX_ROWS = 20_000  # fewer are searched exactly in the same time
MAX_INDEXES = 8
_BLOCK_ROWS = 65_536


class Matches(NamedTuple):
    """The products most similar to each query, the best first.

    Attributes:
        products: (n, k) str objects; '' where there are fewer.
        images: (n, k) str objects: the most similar photo of each.
        values: (n, k) float32 cosine similarities; -inf where there are fewer.
    """

    products: np.ndarray
    images: np.ndarray
    values: np.ndarray


class Catalog:
    """An open catalog: what it contained when it was opened, refreshed, or changed through this object.

    Threads may search it while another one changes it.
    """

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Open the catalog; see `open_catalog`."""
        self.folder, self._verify = folder, verify
        self._open = open_generation(folder, {}, verify=verify)

    @property
    def manifest(self) -> Manifest:
        """Settings and segments."""
        return self._open.manifest

    @property
    def num_images(self) -> int:
        """Photos that can be found."""
        return sum(segment.num_left for segment in self.manifest.segments)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.manifest.files)

    def refresh(self) -> None:
        """Open what other processes have changed since."""
        if read_manifest(self.folder) != self.manifest:
            self._reopen()

    def search(
        self, features: np.ndarray, k: int, *, by: str = 'product', effort: int = EFFORT, exact: bool = False
    ) -> Matches:
        """Return the k products, or photos, most similar to each query, by cosine similarity to the stored codes.

        Args:
            features: (n, num_features) of queries, as the model computes them.
            by: 'product': each product once, by its most similar photo; 'image': photos.
            effort: candidates per segment in approximate search; more find more of the true neighbors, slower.
            exact: compare each query with every photo.

        Raises:
            ValueError: another width.
        """
        opened = self._open
        queries = opened.vectors(features)
        if not len(queries) or not opened.segments:
            return _no_matches(len(queries), k)
        num_rows = sum(segment.entry.num_left for segment in opened.segments)
        num_products = max(1, sum(segment.entry.num_products for segment in opened.segments))
        wanted = k if by == 'image' else k * (1 + math.ceil(num_rows / num_products))
        while True:
            found = [segment.search(queries, wanted, effort, exact=exact) for segment in opened.segments]
            matches = Matches(*best(found, opened.segments, k, by=by))
            if wanted >= num_rows or not (matches.values[:, -1] == -np.inf).any():
                return matches
            wanted = min(4 * wanted, num_rows)  # all candidates of some query were of fewer products

    def products(self) -> list[str]:
        """Return the names of all products, sorted."""
        return sorted(self.product_column().to_pylist())

    def product_column(self) -> pa.LargeStringArray:
        """Return the names of all products, each once, in any order."""
        parts = [segment.left().products.unique() for segment in self._open.segments]
        return pa.concat_arrays(parts).unique() if parts else pa.array([], pa.large_string())

    def images_of(self, product: str) -> list[str]:
        """Return the names of the photos of a product, sorted; none if it is unknown."""
        (name,) = nfc_list([product])
        return sorted(image for segment in self._open.segments for image in segment.images_of(name))

    def add(self, features: np.ndarray, products: Names, images: Names) -> int:
        """Add photos of new or known products; one that is there under this product and name is replaced.

        Args:
            features: (n, num_features) float32, maybe memory-mapped.
            products, images: (n,) names, of the product and of the photo.

        Returns:
            The number of photos that were replaced.

        Raises:
            UserError: a name is empty, too long or contains NUL, or a photo is named twice.
            OSError: the disk is full, ...
        """
        if not len(features) == len(products) == len(images):
            raise ValueError(f'{len(features)} features of {len(images)} images and {len(products)} products')
        if not len(features):
            return 0
        with self._changed() as opened:
            manifest = _with_scale(opened, features)
            codes = _encoded(features, opened, manifest.codec)
            new = joined([Rows(names_column(products, 'product'), names_column(images, 'image'), codes)])
            if len(new.pairs().unique()) < len(new):
                raise UserError('a product has two images of one name; images need different names')
            removed = [segment.rows_with(new) for segment in opened.segments]
            self._replace(manifest, opened.segments, removed, new)
            return sum(map(len, removed))

    def remove(self, products: Iterable[str]) -> int:
        """Remove products with all their photos, and return the number of photos; unknown products have none."""
        names = pa.array(nfc_list([*products]), pa.large_string())
        with self._changed() as opened:
            removed = [segment.rows_of(names) for segment in opened.segments]
            if any(map(len, removed)):
                self._replace(opened.manifest, opened.segments, removed, None)
            return sum(map(len, removed))

    def merge(self) -> None:
        """Merge indexes if there are more than MAX_INDEXES, and rewrite those of which most rows are removed.

        `add` merges small segments only, so that it is fast; this may take minutes.
        """
        with self._changed() as opened:
            indexed = sorted(
                (one for one in opened.segments if one.entry.index is not None), key=lambda one: one.entry.num_left
            )
            merged = indexed[: len(indexed) // 2 + 1] if len(indexed) > MAX_INDEXES else []
            merged += [one for one in indexed if one not in merged and 2 * one.entry.num_left < one.entry.num_rows]
            if merged:
                kept = tuple(one for one in opened.segments if one not in merged)
                self._write(opened.manifest, [one.entry for one in kept], [one.left() for one in merged])

    @contextmanager
    def _changed(self) -> Iterator[Generation]:
        """Lock the catalog, yield its newest state, and open the one that the block has written."""
        with wait_for_lock(self.folder):
            self.refresh()
            remove_unused(self.folder, self.manifest)
            yield self._open
            self._reopen()

    def _reopen(self) -> None:
        known = {segment.entry.rows.name: segment for segment in self._open.segments}
        self._open = open_generation(self.folder, known, verify=self._verify)

    def _replace(
        self, manifest: Manifest, segments: Sequence[OpenSegment], removed: Sequence[np.ndarray], new: Rows | None
    ) -> None:
        """Write a manifest without the removed rows of each segment, and with new ones; small segments are merged."""
        kept, merged = [], [] if new is None else [new]
        for segment, rows in zip(segments, removed, strict=True):
            num_left = segment.entry.num_left - len(rows)
            small = segment.entry.index is None and num_left <= INDEX_ROWS
            if small and (new is not None or len(rows)):
                merged += [segment.left(without=rows)] * (num_left > 0)
            elif num_left:
                entry = segment.entry
                if len(rows):
                    bits = segment.left_bits(without=rows)
                    path = self.folder / f'{part_name(entry.rows.name.encode(), bits)}.left'
                    write_bytes(path, bits)
                    left = File.at(path)
                    entry = msgspec.structs.replace(entry, left=left, num_removed=entry.num_rows - num_left)
                kept.append(entry)
        self._write(manifest, kept, merged)

    def _write(self, manifest: Manifest, kept: Sequence[Segment], merged: Sequence[Rows]) -> None:
        """Write a manifest of segments and of one with the merged rows."""
        segments = [*kept]
        if merged:
            rows = joined([*merged]) if len(merged) > 1 else merged[0]
            is_indexed = manifest.kind != 'exact' and len(rows) > INDEX_ROWS
            kind = manifest.index_kind if is_indexed else ''
            segments.append(write_segment(self.folder, rows, manifest.codec, kind))
        write_manifest(self.folder, msgspec.structs.replace(manifest, segments=tuple(segments)))


def create_catalog(
    folder: Path,
    version: str,
    num_features: int,
    *,
    kind: str = 'auto',
    codes: str = 'float16',
    whitening: Whitening | None = None,
) -> Catalog:
    """Create an empty catalog.

    Args:
        version: version of the features; only features of the same version are comparable.
        num_features: number of features of the model.
        kind: index of segments with more than INDEX_ROWS rows: exact: none; ivfpq: lists of even shorter codes;
            hnsw: a graph, not for binary codes; auto: ivfpq.
        codes: float16, int8 or binary.
        whitening: whitening of the features, which may have fewer dimensions afterwards; None: they are only scaled.

    Raises:
        UserError: the folder contains a catalog.
    """
    with wait_for_lock(folder):
        if has_catalog(folder):
            raise UserError(f'{folder} contains a catalog; give another folder')
        file = None
        if whitening is not None:
            values = np.vstack([whitening.mean, whitening.projection]).astype('<f4')
            path = folder / f'{part_name(values)}.whitening'
            write_bytes(path, values.tobytes())
            file = File.at(path)
        width = num_features if whitening is None else whitening.dimensions
        write_manifest(folder, Manifest(version, num_features, width, codes, kind, whitening=file))
    return Catalog(folder, verify=True)


def open_catalog(folder: Path, version: str = '', *, verify: bool = True) -> Catalog:
    """Open a catalog.

    Args:
        version: version of the features that are searched for; '': not compared.
        verify: compare all files with their checksums. Without, it takes milliseconds at any size, and only names and
            sizes of files are compared: for a catalog that this machine has verified before.

    Raises:
        UserError: no catalog, a damaged one, or of features of another version.
    """
    catalog = Catalog(folder, verify=verify)
    if version and catalog.manifest.version != version:
        raise UserError(
            f'{folder} was built with another model or preprocessing (features {shown(catalog.manifest.version)}, not '
            f'{version}); give the model that built it, or build another catalog'
        )
    return catalog


def _with_scale(opened: Generation, features: np.ndarray) -> Manifest:
    """Return the manifest with the scale of int8 codes, which the first photos determine."""
    if opened.manifest.codes != 'int8' or opened.segments:
        return opened.manifest
    sample = opened.vectors(features[:: max(1, len(features) // 10_000)])
    return msgspec.structs.replace(opened.manifest, scale=int8_scale(sample))


def _encoded(features: np.ndarray, opened: Generation, codec: Codec) -> np.ndarray:
    codes = np.empty((len(features), codec.num_bytes), np.uint8)
    for start in range(0, len(features), _BLOCK_ROWS):
        some = slice(start, start + _BLOCK_ROWS)
        codes[some] = codec.encode(opened.vectors(features[some]))
    return codes


def _no_matches(num_queries: int, k: int) -> Matches:
    names = np.full((num_queries, k), '', object)
    return Matches(names, names.copy(), np.full((num_queries, k), -np.inf, np.float32))
