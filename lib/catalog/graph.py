"""Approximate search over codes: HNSW graphs and, for catalogs beyond the memory, IVF-PQ, both of faiss.

faiss is optional (requirements-search.txt), so it is imported when it is needed, and only here. Files hold the links or
lists alone; the codes stay in the rows, which are mapped.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lib.catalog.rows import Codec
from lib.errors import UserError
from lib.runtime.files import replace_atomically
from lib.runtime.log import progress_bar
from lib.runtime.workers import num_cores

KINDS = ('hnsw', 'ivfpq')
LINKS, BUILD_EFFORT = 16, 128  # M and efConstruction of Malkov and Yashunin
_BLOCK_ROWS = 16_384
_ROWS_PER_LIST = 64  # of training, faiss recommends 39 or more
_DIMENSIONS_PER_BYTE = 4  # of product quantization
_PROBED = 16  # effort per list that is searched


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


def write_graph(path: Path, kind: str, codes: np.ndarray, codec: Codec) -> None:
    """Build the index `kind` (one of KINDS) over codes (n, num_bytes), and write it to a file. It takes minutes."""
    faiss = import_faiss()
    index = _new_hnsw(faiss, codec) if kind == 'hnsw' else _trained_ivfpq(faiss, codes, codec)
    starts = range(0, len(codes), _BLOCK_ROWS)
    for start in progress_bar(starts, total=len(starts), label=f'index: {kind}', unit='block'):
        vectors = codec.decode(codes[start : start + _BLOCK_ROWS])
        index.add(vectors if kind == 'hnsw' else _unit(vectors))
    with replace_atomically(path) as temporary:
        faiss.write_index(index, str(temporary), faiss.IO_FLAG_SKIP_STORAGE if kind == 'hnsw' else 0)


def _new_hnsw(faiss: Any, codec: Codec) -> Any:
    index = faiss.IndexHNSW(_storage(faiss, codec), LINKS)
    index.hnsw.efConstruction = BUILD_EFFORT
    index.is_trained = True
    return index


def _trained_ivfpq(faiss: Any, codes: np.ndarray, codec: Codec) -> Any:
    num_lists = max(1, min(int(4 * len(codes) ** 0.5), len(codes) // _ROWS_PER_LIST))
    step = max(1, len(codes) // (_ROWS_PER_LIST * num_lists))
    sample = _unit(codec.decode(codes[::step]))
    num_parts = next(
        parts for parts in range(-(-codec.width // _DIMENSIONS_PER_BYTE), 0, -1) if codec.width % parts == 0
    )
    index = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(codec.width), codec.width, num_lists, num_parts, 8, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # no warnings
    index.train(sample)
    return index


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


class Graph:
    """An index of `write_graph`, mapped from its file."""

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
            flags = faiss.IO_FLAG_MMAP_IFC if kind == 'hnsw' else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
            self._index = faiss.read_index(str(path), flags)
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
            effort: candidates that the search keeps (efSearch of HNSW), at least k are.
            alive: bits of the rows that may be found, 8 per byte, the lowest first; None: all.
        """
        faiss = self._faiss
        selector = None if alive is None else faiss.IDSelectorBitmap(len(alive), faiss.swig_ptr(alive))
        if self._kind == 'hnsw':
            queries = queries * self._codec.length
            options = faiss.SearchParametersHNSW(efSearch=max(effort, k), sel=selector)
        else:
            num_probed = min(self._index.nlist, max(1, effort // _PROBED * 4))
            options = faiss.SearchParametersIVF(nprobe=num_probed, sel=selector)
        queries = np.ascontiguousarray(queries, np.float32)
        _, rows = self._index.search(queries, k, params=options)
        return rows
