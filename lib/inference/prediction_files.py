"""Prediction files: one row per image, in input order, written in chunks of rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lib.runtime.csv_file import write_csv
from lib.runtime.files import replace_atomically

_ROWS_AT_ONCE = 10_000
UNKNOWN = 'unknown'  # name of a product that is none of the classes
NUM_NEAREST = 3  # classes named for each image, also if its product is unknown
Names: TypeAlias = Any  # pa.StringArray | pa.LargeStringArray | pa.ChunkedArray, which have no types


# The columns of predictions, by name; each from the ids, the classes and the probabilities of some rows. An image that
# could not be decoded has class -1, which is also the index of the empty name.
COLUMNS: dict[str, Callable[[list[str], list[int], list[float], list[str]], Iterable]] = {
    'id': lambda ids, classes, probabilities, names: ids,
    'predicted': lambda ids, classes, probabilities, names: classes,
    'name': lambda ids, classes, probabilities, names: [names[label] for label in classes],
    'probability': lambda ids, classes, probabilities, names: [
        f'{value:.6f}' if label >= 0 else '' for label, value in zip(classes, probabilities, strict=True)
    ],
}


def write_predictions(
    path: Path,
    names: Names,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    columns: Sequence[str] = tuple(COLUMNS),
) -> None:
    """Write one row per image with some of COLUMNS.

    Args:
        predicted: (n,) category_id, -1 for an image that could not be decoded; its name and probability are empty.
        probabilities: (n,) softmax of the predicted class.
    """
    named = [*class_names, '']

    def rows_of() -> Iterator[Iterable[tuple]]:
        for some, rows in _chunks(names):
            values = (some, predicted[rows].tolist(), probabilities[rows].tolist(), named)
            yield zip(*(COLUMNS[column](*values) for column in columns), strict=True)

    write_csv(path, columns, chain.from_iterable(rows_of()))


def write_top(
    path: Path, names: Names, topk: np.ndarray, probabilities: np.ndarray, top_k: int, class_names: Sequence[str]
) -> None:
    """Write id, rank, category_id, probability, name: the classes of each image, the most probable first.

    Args:
        topk, probabilities: (n, at least top_k). Images that could not be decoded have no rows.
    """

    def rows_of() -> Iterator[tuple]:
        for some, rows in _chunks(names):
            classes, values = topk[rows, :top_k].tolist(), probabilities[rows, :top_k].tolist()
            for image, labels, of_labels in zip(some, classes, values, strict=True):
                for rank, (label, probability) in enumerate(zip(labels, of_labels, strict=True), start=1):
                    if label >= 0:
                        yield image, rank, label, f'{probability:.6f}', class_names[label]

    write_csv(path, ('id', 'rank', 'category_id', 'probability', 'name'), rows_of())


def write_accepted(path: Path, names: Names, predicted: np.ndarray, confidence: np.ndarray, threshold: float) -> None:
    """Write `id,predicted,probability`: predicted is -1 where the probability is below the threshold."""

    def rows_of() -> Iterator[tuple]:
        for some, rows in _chunks(names):
            labels = np.where(confidence[rows] >= threshold, predicted[rows], -1).tolist()
            for image, label, probability in zip(some, labels, confidence[rows].tolist(), strict=True):
                yield image, label, f'{probability:.6f}'

    write_csv(path, ('id', 'predicted', 'probability'), rows_of())


def write_known(
    path: Path, names: Names, topk: np.ndarray, scores: np.ndarray, threshold: float, class_names: Sequence[str]
) -> None:
    """Write id, predicted, name, score and the nearest products; below the threshold, predicted is -1, name UNKNOWN.

    Args:
        topk: (n, k) classes of each image, the most probable first.
        scores: (n,) higher for known products; nan for an image that could not be decoded, which gets the name ''.
    """
    width = min(NUM_NEAREST, topk.shape[1])
    named = [*class_names, '']

    def rows_of() -> Iterator[tuple]:
        for some, rows in _chunks(names):
            for image, labels, score in zip(some, topk[rows, :width].tolist(), scores[rows].tolist(), strict=True):
                nearest = [named[label] for label in labels]
                if score >= threshold:
                    yield image, labels[0], nearest[0], f'{score:.6f}', *nearest
                else:
                    readable = labels[0] >= 0
                    yield image, -1, UNKNOWN if readable else '', f'{score:.6f}' if readable else '', *nearest

    nearest_columns = [f'nearest_{rank}' for rank in range(1, width + 1)]
    write_csv(path, ('id', 'predicted', 'name', 'score', *nearest_columns), rows_of())


def write_embeddings(path: Path, names: Names, features: np.ndarray) -> None:
    """Write features (n, num_features) float32: as .npy, in the order of the images, or as .parquet with ids."""
    write = {'.npy': _write_npy, '.parquet': _write_parquet}[path.suffix]
    with replace_atomically(path) as temporary:
        write(temporary, names, features)


def write_products(
    path: Path,
    products: np.ndarray,
    product_names: Sequence[str],
    topk: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Write product, predicted, probability, name, num_images: one row per product, predicted from all its photos.

    The probabilities of each readable photo's classes are summed per product; the largest sum wins, of equal sums the
    smaller class. The probability is the mean over the photos. A product without a readable photo has -1.

    Args:
        products: (n,) index of each photo's product into product_names.
        topk, probabilities: (n, k) most probable classes of each photo; others are not summed.
    """
    num_images = np.bincount(products, minlength=len(product_names))
    readable = np.flatnonzero(topk[:, 0] >= 0)
    num_readable = np.bincount(products[readable], minlength=len(product_names))
    width = topk.shape[1]
    of_product = np.repeat(products[readable], width).astype(np.int64)
    classes = np.asarray(topk[readable]).astype(np.int64).ravel()
    values = np.asarray(probabilities[readable]).astype(np.float64).ravel()
    keys, index = np.unique(of_product * len(class_names) + classes, return_inverse=True)
    sums = np.bincount(index, values, minlength=len(keys))
    owners, candidates = np.divmod(keys, len(class_names))
    # By product, then the largest sum, then the smallest class: the first of each product wins.
    order = np.lexsort((candidates, -sums, owners))
    first = order[np.unique(owners[order], return_index=True)[1]]
    winner, means = np.full(len(product_names), -1), np.zeros(len(product_names))
    winner[owners[first]] = candidates[first]
    means[owners[first]] = sums[first] / num_readable[owners[first]]
    rows = (
        (name, label, f'{mean:.6f}', class_names[label] if label >= 0 else '', count)
        for name, label, mean, count in zip(
            product_names, winner.tolist(), means.tolist(), num_images.tolist(), strict=True
        )
    )
    write_csv(path, ('product', 'predicted', 'probability', 'name', 'num_images'), rows)


def _chunks(names: Names) -> Iterator[tuple[list[str], slice]]:
    for start in range(0, len(names), _ROWS_AT_ONCE):
        some = names.slice(start, _ROWS_AT_ONCE).to_pylist()
        yield some, slice(start, start + len(some))


def _write_npy(path: Path, names: Names, features: np.ndarray) -> None:
    header = {'descr': np.dtype(np.float32).str, 'fortran_order': False, 'shape': features.shape}
    with open(path, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(features), _ROWS_AT_ONCE):
            file.write(np.ascontiguousarray(features[start : start + _ROWS_AT_ONCE], np.float32).data)


def _write_parquet(path: Path, names: Names, features: np.ndarray) -> None:
    schema = pa.schema([('id', pa.large_string()), ('embedding', pa.list_(pa.float32(), features.shape[1]))])
    with pq.ParquetWriter(path, schema) as writer:
        for some, rows in _chunks(names):
            values = pa.array(np.ascontiguousarray(features[rows], np.float32).ravel())
            embeddings = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
            writer.write_table(pa.table([pa.array(some, pa.large_string()), embeddings], schema))
