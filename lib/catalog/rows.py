"""Rows of a catalog: product, photo and code of each, in memory-mapped Arrow columns, and indexes that search them.

A file holds one uncompressed record batch, sorted by product: product, image (its name) and codes, which other programs
can read. Lists (IVF-PQ) and graphs (HNSW) are those of faiss, which is optional (requirements-search.txt): it is
imported when it is needed, and only here. The file of a graph holds the links alone; it is searched with the mapped
codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lib.errors import UserError, shown
from lib.inference.neighbors import unit_length
from lib.runtime.files import replace_atomically
from lib.runtime.log import progress_bar
from lib.runtime.workers import num_cores

Names: TypeAlias = 'Sequence[str] | pa.LargeStringArray'
CODES = ('float16', 'int8', 'binary')
_ZERO = 128  # the byte of an int8 code that stands for 0, as faiss stores them
_MAX_NAME_BYTES = 4096
_QUANTILE = 0.9999  # of the absolute values that int8 represents; larger ones are clipped
KINDS = ('ivfpq', 'hnsw')
LINKS, BUILD_EFFORT = 16, 128  # M and efConstruction of Malkov and Yashunin
_BLOCK_ROWS = 16_384
_ROWS_PER_LIST = 64
_TRAINING_ROWS, _TRAINING_ROUNDS = 32, 6  # of k-means; rows per list
_CODE_ROWS, _CODE_ROUNDS = 64, 10  # per codeword of product quantization
_DIMENSIONS_PER_BYTE = 4  # of product quantization
_LISTS, _ROWS = 1 / 24, 12  # lists and rows that are searched per candidate, at least


@dataclass(frozen=True)
class Codec:
    """How unit vectors are stored.

    Attributes:
        name: one of CODES. int8: multiples of 1 / scale; binary: signs.
        width: values per vector.
        scale: scale of int8 codes.
    """

    name: str
    width: int
    scale: float = 1.0

    @property
    def num_bytes(self) -> int:
        """Bytes per code."""
        return {'float16': 2 * self.width, 'int8': self.width, 'binary': -(-self.width // 8)}[self.name]

    @property
    def length(self) -> float:
        """Length of a decoded unit vector, about."""
        return {'float16': 1.0, 'int8': self.scale, 'binary': self.width**0.5}[self.name]

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Return the codes (n, num_bytes) uint8 of unit vectors (n, width) float32."""
        if self.name == 'float16':
            return vectors.astype('<f2').view(np.uint8)
        if self.name == 'binary':
            return np.packbits(vectors > 0, axis=1, bitorder='little')
        return (np.clip(np.rint(vectors * self.scale), -127, 127) + _ZERO).astype(np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the vectors (..., width) float32 of codes (..., num_bytes), times `length`."""
        if self.name == 'binary':
            bits = np.unpackbits(codes, axis=-1, count=self.width, bitorder='little')
            return bits.astype(np.float32) * 2 - 1
        # Read-only memory is copied, since torch warns of it.
        values = torch.from_numpy(np.require(codes, requirements=['C', 'W']))
        if self.name == 'float16':
            return values.view(torch.float16).float().numpy()  # NumPy takes five times as long
        return values.float().sub_(_ZERO).numpy()


def int8_scale(vectors: np.ndarray) -> float:
    """Return the scale of int8 codes for vectors such as these."""
    sample = np.abs(vectors[:: max(1, len(vectors) // 10_000)])
    return float(127 / max(np.quantile(sample, _QUANTILE), 1e-6)) if sample.size else 127.0


@dataclass(frozen=True)
class Rows:
    """Rows in the order of their products.

    Attributes:
        products, images: (n,) Arrow strings.
        codes: (n, num_bytes) uint8, maybe memory-mapped.
    """

    products: pa.LargeStringArray
    images: pa.LargeStringArray
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.products)

    def take(self, rows: np.ndarray) -> 'Rows':
        """Return some rows."""
        indices = pa.array(rows)
        return Rows(self.products.take(indices), self.images.take(indices), self.codes[rows])

    def content(self) -> list[np.ndarray]:
        """Return all values, as bytes."""
        buffers = [buffer for names in (self.products, self.images) for buffer in names.buffers() if buffer is not None]
        return [*(np.frombuffer(buffer, np.uint8) for buffer in buffers), self.codes]

    def of(self, products: pa.LargeStringArray) -> np.ndarray:
        """Return the rows of some products, ascending."""
        return np.flatnonzero(pc.is_in(self.products, value_set=products).to_numpy(zero_copy_only=False))

    def same_images(self, others: 'Rows') -> np.ndarray:
        """Return the rows with product and image of one of the `others`."""
        rows = self.of(others.products.unique())
        pairs, new = self.take(rows).pairs(), others.pairs()
        return rows[pc.is_in(pairs, value_set=new).to_numpy(zero_copy_only=False)]

    def pairs(self) -> pa.LargeStringArray:
        """Return product and image as one text; no name contains the NUL between them."""
        return pc.binary_join_element_wise(self.products, self.images, pa.scalar('\0', pa.large_string()))


def names_column(names: Names, what: str) -> pa.LargeStringArray:
    """Return names as a column; `what`: product or image. Products are compared in NFC. Raises: UserError."""
    texts = names if isinstance(names, pa.Array) else pa.array(names, pa.large_string())
    lengths = pc.binary_length(texts)
    is_bad = pc.or_(pc.or_(pc.equal(lengths, 0), pc.greater(lengths, _MAX_NAME_BYTES)), pc.match_substring(texts, '\0'))
    if texts.null_count or pc.any(is_bad).as_py():
        name = texts.filter(is_bad)[0].as_py() if not texts.null_count else ''
        raise UserError(f'the {what} name {shown(name)} is empty, too long, or contains NUL')
    return pc.utf8_normalize(texts, 'NFC') if what == 'product' else texts


def joined(parts: list[Rows]) -> Rows:
    """Return all rows of some parts, sorted by product and image."""
    products, images = (pa.concat_arrays([getattr(part, name) for part in parts]) for name in ('products', 'images'))
    table = pa.table({'product': products, 'image': images})
    order = pc.sort_indices(table, [('product', 'ascending'), ('image', 'ascending')])
    codes = np.concatenate([part.codes for part in parts])
    return Rows(products.take(order), images.take(order), codes[order.to_numpy()])


def write_rows(path: Path, rows: Rows) -> None:
    """Write the rows to a file."""
    width = rows.codes.shape[1]
    buffer = pa.py_buffer(np.ascontiguousarray(rows.codes))
    codes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, buffer])
    batch = pa.record_batch({'product': rows.products, 'image': rows.images, 'codes': codes})
    with replace_atomically(path) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        writer.write_batch(batch)


def map_rows(path: Path, num_rows: int, num_bytes: int, *, verify: bool) -> Rows:
    """Map a file of `write_rows`.

    Args:
        verify: check all texts and offsets, too.

    Raises:
        OSError, ValueError: it cannot be read, or has other columns or another size.
    """
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches != 1:
                raise ValueError(f'it has {reader.num_record_batches} record batches, not 1')
            batch = reader.get_batch(0)
        batch.validate(full=verify)
    except pa.ArrowException as error:  # some of which are no ValueErrors
        raise ValueError(' '.join(str(error).split())) from None
    expected = pa.schema(
        [('product', pa.large_string()), ('image', pa.large_string()), ('codes', pa.binary(num_bytes))]
    )
    if batch.schema.remove_metadata() != expected or batch.num_rows != num_rows:
        raise ValueError('it has other columns, or another number of rows')
    if any(column.null_count or column.offset for column in batch.columns):
        raise ValueError('values are missing')
    values = np.frombuffer(batch['codes'].buffers()[1], np.uint8, num_rows * num_bytes)
    return Rows(batch['product'], batch['image'], values.reshape(num_rows, num_bytes))


def import_faiss() -> Any:
    """Return the module faiss. Raises: UserError: it is not installed."""
    if find_spec('faiss') is None:
        raise UserError(
            'a catalog of this size is searched with faiss: pip install -r requirements-search.txt; or build one that '
            'is searched exactly: --INDEX_KIND exact'
        )
    import faiss

    faiss.omp_set_num_threads(num_cores())
    return faiss


def _storage(faiss: Any, codec: Codec) -> Any:
    kind = {'int8': 'QT_8bit_direct_signed', 'float16': 'QT_fp16'}[codec.name]
    return faiss.IndexScalarQuantizer(codec.width, getattr(faiss.ScalarQuantizer, kind), faiss.METRIC_INNER_PRODUCT)


def write_index(path: Path, kind: str, codes: np.ndarray, codec: Codec) -> None:
    """Build the index `kind` (one of KINDS) over codes (n, num_bytes), and write it to a file. It takes minutes."""
    faiss = import_faiss()
    index = _new_hnsw(faiss, codec) if kind == 'hnsw' else _trained_ivfpq(faiss, codes, codec)
    starts = range(0, len(codes), _BLOCK_ROWS)
    for start in progress_bar(starts, total=len(starts), label=f'index: {kind}', unit='block'):
        vectors = codec.decode(codes[start : start + _BLOCK_ROWS])
        index.add(vectors if kind == 'hnsw' else unit_length(vectors))
    with replace_atomically(path) as temporary:
        faiss.write_index(index, str(temporary), faiss.IO_FLAG_SKIP_STORAGE if kind == 'hnsw' else 0)


def _new_hnsw(faiss: Any, codec: Codec) -> Any:
    index = faiss.IndexHNSW(_storage(faiss, codec), LINKS)
    index.hnsw.efConstruction = BUILD_EFFORT
    index.is_trained = True
    return index


def _trained_ivfpq(faiss: Any, codes: np.ndarray, codec: Codec) -> Any:
    num_lists = max(1, min(int(4 * len(codes) ** 0.5), len(codes) // _ROWS_PER_LIST))
    step = max(1, len(codes) // (_TRAINING_ROWS * num_lists))
    sample = unit_length(codec.decode(codes[::step]))
    num_parts = next(
        parts for parts in range(-(-codec.width // _DIMENSIONS_PER_BYTE), 0, -1) if codec.width % parts == 0
    )
    index = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(codec.width), codec.width, num_lists, num_parts, 8, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # no warnings
    index.cp.niter, index.pq.cp.niter, index.pq.cp.max_points_per_centroid = _TRAINING_ROUNDS, _CODE_ROUNDS, _CODE_ROWS
    index.train(sample)
    return index


class Index:
    """An index of `write_index`, mapped from its file."""

    def __init__(self, path: Path, kind: str, codes: np.ndarray, codec: Codec) -> None:
        """Map the file.

        Args:
            codes: over which it was built; mapped, and searched without a copy.

        Raises:
            ValueError: it is of other codes.
        """
        self._faiss, self._kind, self._codes, self._codec = import_faiss(), kind, codes, codec
        faiss = self._faiss
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)  # other flags start threads per search
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[-1]) from None
        if (self._index.ntotal, self._index.d) != (len(codes), codec.width):
            raise ValueError('it belongs to other rows')
        if kind == 'hnsw':
            self._storage = _storage(faiss, codec)
            owner = self._index.hnsw.neighbors.owner  # faiss requires one; this object keeps the codes alive
            pointer = faiss.swig_ptr(codes.reshape(-1))
            self._storage.codes = faiss.MaybeOwnedVectorUInt8.create_view(pointer, codes.size, owner)
            self._storage.ntotal = len(codes)
            self._index.storage, self._index.own_fields = self._storage, False

    def search(self, queries: np.ndarray, k: int, effort: int, alive: np.ndarray | None) -> np.ndarray:
        """Return the rows (n, k) int64 of candidates per query, -1 where there are fewer.

        Args:
            queries: (n, width) float32 unit vectors.
            effort: candidates that HNSW keeps (efSearch), at least k; IVF-PQ compares _ROWS times as many.
            alive: bits of the rows that may be found, 8 per byte, the lowest first; None: all.
        """
        faiss = self._faiss
        selector = None if alive is None else faiss.IDSelectorBitmap(len(alive), faiss.swig_ptr(alive))
        if self._kind == 'hnsw':
            queries = queries * self._codec.length
            options = faiss.SearchParametersHNSW(efSearch=effort, sel=selector)
        else:
            lists_per_row = self._index.nlist / len(self._codes)
            num_lists = math.ceil(effort * max(_LISTS, _ROWS * lists_per_row))
            options = faiss.SearchParametersIVF(nprobe=min(num_lists, self._index.nlist), sel=selector)
        queries = np.ascontiguousarray(queries, np.float32)
        _, rows = self._index.search(queries, k, params=options)
        return rows
