"""tools/search.py: retrieval metrics, and the nearest images of test images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from lib.builders.data import has_test_split, open_test_split, open_training_data, open_valid_split
from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel, split_features
from lib.errors import UserError
from lib.inference.neighbors import nearest, neighbor_blocks, vote
from lib.inference.retrieval import retrieval_metrics
from lib.inference.run import classify_features
from lib.metrics.accuracy import compute_metrics
from lib.metrics.predictions import Predictions, predictions_from_classes
from lib.report.describe import describe_metrics, describe_retrieval
from lib.runtime.csv_file import write_rows
from lib.runtime.files import replace_atomically


@dataclass(frozen=True)
class _Images:
    """Features of images that could be decoded, with their labels and names."""

    features: np.ndarray
    labels: np.ndarray
    names: pa.StringArray | pa.LargeStringArray


def search(trained: LoadedModel) -> Iterator[str]:
    """Yield the lines to print: metrics of the valid split against the gallery; then write SEARCH.CSV if asked for.

    Raises:
        UserError: no labeled valid split; splits and model have different classes; an invalid test split for the CSV.
    """
    options, device = trained.cfg.SEARCH, _device(trained)
    valid, train = _splits(trained)
    features = split_features(trained, valid, 'valid')
    readable = features.readable
    queries = _Images(features.values[readable], features.labels[readable], valid.names.filter(pa.array(readable)))
    gallery = queries if train is None else _gallery(trained, *train)
    is_gallery = train is None
    if len(gallery.labels) - is_gallery < 1:
        number = '1 image' if len(gallery.labels) else 'no image that can be decoded'
        needed = 'at least 2 are' if is_gallery else 'at least 1 is'
        raise UserError(f'SEARCH.GALLERY {options.GALLERY}: {number} to search, but {needed} needed{valid.heic_hint}')
    found = nearest(
        queries.features, gallery.features, options.K, metric=options.METRIC, same=is_gallery, device=device
    )
    votes = vote(found, gallery.labels, weights=options.VOTE, temperature=options.TEMPERATURE, metric=options.METRIC)
    predicted = np.full(len(valid), -1)
    predicted[readable] = votes.predicted
    retrieval = retrieval_metrics(
        queries.features,
        queries.labels,
        gallery.features,
        gallery.labels,
        metric=options.METRIC,
        same=is_gallery,
        device=device,
    )
    by_neighbors = predictions_from_classes(features.labels, predicted)
    rows = {
        'classifier': _metrics(trained, classify_features(trained.engine, features)),
        f'{found.rows.shape[1]} nearest': _metrics(trained, by_neighbors),
    }
    source = f'{valid.source}, each without itself' if train is None else train[0].source
    images = '1 image' if len(valid) == 1 else f'{len(valid)} images'
    yield f'{images} of {valid.source} among {len(gallery.labels)} of {source}'
    yield from describe_metrics(rows)
    yield from describe_retrieval(retrieval)
    if options.CSV:
        yield from _neighbors_of_test_images(trained, gallery, Path(options.CSV))


def _neighbors_of_test_images(trained: LoadedModel, gallery: _Images, path: Path) -> Iterator[str]:
    """Write SEARCH.CSV if there is a test split, and yield a line about it."""
    try:
        test = open_test_split(trained.cfg, trained.class_names)
    except UserError:
        if has_test_split(trained.cfg):
            raise
        yield f'{path} is not written: there is no test split'
        yield '  --DATASET_TEST_ROOT FOLDER lists the neighbors of the images in a folder'
        return
    _write_neighbors(trained, test, gallery, path)
    yield f'wrote {path}'


def _splits(trained: LoadedModel) -> tuple[DatasetSplit, tuple[DatasetSplit, np.ndarray] | None]:
    """Return the valid split, and with SEARCH.GALLERY train the training split with the rows that are searched."""
    cfg = trained.cfg
    valid: DatasetSplit | None
    train: tuple[DatasetSplit, np.ndarray] | None = None
    if cfg.SEARCH.GALLERY == 'valid':
        valid = open_valid_split(cfg, trained.class_names)
    else:
        data = open_training_data(cfg).in_class_order(trained.class_names)
        valid, train = data.valid, (data.train, data.index().rows)
    if valid is None or not valid.labeled:
        raise UserError('there is no labeled validation split: give --DATASET_VALID_JSON FILE')
    return valid, train


def _gallery(trained: LoadedModel, train: DatasetSplit, rows: np.ndarray) -> _Images:
    features = split_features(trained, train, 'train')
    rows = rows[features.readable[rows]]
    if len(rows) == len(features):
        return _Images(features.values, features.labels, train.names)
    return _Images(features.values[rows], features.labels[rows], train.names.take(pa.array(rows)))


def _metrics(trained: LoadedModel, predictions: Predictions) -> dict[str, float]:
    return trained.supported_metrics(compute_metrics(predictions, trained.train_counts))


def _write_neighbors(trained: LoadedModel, test: DatasetSplit, gallery: _Images, path: Path) -> None:
    """Write the K nearest images of every decodable test image; `neighbour` is the column name of the file format."""
    options = trained.cfg.SEARCH
    value = {'cosine': 'cosine', 'euclidean': 'distance'}[options.METRIC]
    features = split_features(trained, test, 'test')
    blocks = neighbor_blocks(
        features.values,
        gallery.features,
        options.K,
        metric=options.METRIC,
        rows=np.flatnonzero(features.readable),
        device=_device(trained),
    )

    def rows_of() -> Iterator[tuple]:
        for rows, found in blocks:
            for row, others, values in zip(rows.tolist(), found.rows.tolist(), found.values.tolist(), strict=True):
                image = test.names[row].as_py()
                for rank, (other, number) in enumerate(zip(others, values, strict=True), start=1):
                    label = int(gallery.labels[other])
                    name = gallery.names[other].as_py()
                    yield image, rank, name, label, trained.class_names[label], f'{number:.6f}'

    with replace_atomically(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='') as file:
        write_rows(file, ('id', 'rank', 'neighbour', 'category_id', 'name', value), rows_of())


def _device(trained: LoadedModel) -> torch.device:
    """Return the device that searches; MPS can neither compute in float64 nor sort integers."""
    return torch.device('cpu') if trained.device.main.type == 'mps' else trained.device.main
