"""tools/search.py: retrieval metrics, and the nearest images of test images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from lib.builders.data import has_test_split, open_test_split, open_training_data, open_valid_split
from lib.builders.split import DatasetSplit
from lib.commands.index import search_index
from lib.commands.loaded_model import LoadedModel, split_features
from lib.errors import UserError, shown
from lib.inference.neighbors import Neighbors, Search, nearest, neighbor_blocks, vote
from lib.inference.reranking import reranked_search
from lib.inference.retrieval import Retrieval, retrieval_metrics
from lib.inference.run import classify_features
from lib.inference.whitening import Whitening, fit_whitening
from lib.metrics.accuracy import compute_metrics
from lib.metrics.predictions import Predictions, predictions_from_classes
from lib.report.describe import describe_metrics, describe_retrieval
from lib.runtime.csv_file import write_csv
from lib.runtime.text import count_of

_QUERIES_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class _Images:
    """Features of images that could be decoded, with their labels and names."""

    features: np.ndarray
    labels: np.ndarray
    names: pa.StringArray | pa.LargeStringArray


@dataclass(frozen=True)
class _Finder:
    """The gallery and how it is searched.

    Attributes:
        excludes_self: the queries are the gallery, and no query is its own neighbor.
        search: `neighbor_blocks`, whose blocks the ranks share, or one that is improved afterwards.
        whitening: that of the gallery; features of queries are whitened, too.
    """

    gallery: _Images
    metric: str
    excludes_self: bool
    device: torch.device
    search: Search
    whitening: Whitening | None = None

    def whitened(self, whitening: Whitening) -> '_Finder':
        gallery = replace(self.gallery, features=whitening(self.gallery.features, device=self.device))
        return replace(self, gallery=gallery, whitening=whitening)

    def reranked(self, method: str) -> '_Finder':
        return replace(
            self, search=reranked_search(method, self.gallery.features, device=self.device, search=self.search)
        )

    def nearest(self, features: np.ndarray, k: int) -> Neighbors:
        return nearest(
            self._prepared(features),
            self.gallery.features,
            k,
            metric=self.metric,
            exclude_self=self.excludes_self,
            device=self.device,
            search=self.search,
        )

    def retrieval(self, queries: _Images) -> Retrieval:
        return retrieval_metrics(
            self._prepared(queries.features),
            queries.labels,
            self.gallery.features,
            self.gallery.labels,
            metric=self.metric,
            exclude_self=self.excludes_self,
            device=self.device,
            search=self.search,
        )

    def _prepared(self, features: np.ndarray) -> np.ndarray:
        return features if self.whitening is None else self.whitening(features, device=self.device)


def search(trained: LoadedModel) -> Iterator[str]:
    """Yield the lines to print: metrics of the valid split against the gallery; then write SEARCH.CSV if asked for.

    Ranks share images and queries; the main rank writes.

    Raises:
        UserError: no labeled valid split; splits and model have different classes; an invalid test split for the CSV.
    """
    options = trained.cfg.SEARCH
    if options.INDEX:
        yield from search_index(trained)
        return
    with trained.group.main_first():
        valid, train = _splits(trained)
    features = split_features(trained, valid, 'valid')
    readable = features.readable
    queries = _Images(features.values[readable], features.labels[readable], valid.names.filter(pa.array(readable)))
    training = None if train is None else _training_images(trained, *train)
    finder, results = _finder(trained, queries, training, valid.heic_hint)
    found = finder.nearest(queries.features, options.K)
    votes = vote(
        found, finder.gallery.labels, weights=options.VOTE, temperature=options.TEMPERATURE, metric=options.METRIC
    )
    predicted = np.full(len(valid), -1)
    predicted[readable] = votes.predicted
    by_neighbors = predictions_from_classes(features.labels, predicted)
    rows = {
        'classifier': _metrics(trained, classify_features(trained.engine, features)),
        f'{found.rows.shape[1]} nearest': _metrics(trained, by_neighbors),
    }
    source = f'{valid.source}, each without itself' if train is None or finder.excludes_self else train[0].source
    images = count_of(len(valid), 'image')
    yield f'{images} of {valid.source} among {len(finder.gallery.labels):,} of {source}'
    yield from describe_metrics(rows)
    yield from describe_retrieval(results)
    if options.CSV:
        yield from _neighbors_of_test_images(trained, finder, Path(options.CSV))


def _finder(
    trained: LoadedModel, queries: _Images, training: _Images | None, hint: str
) -> tuple[_Finder, dict[str, Retrieval]]:
    """Return the search that SEARCH asks for, and retrieval metrics before and after each of its steps.

    Args:
        training: the training images; None if they are not needed.
        hint: at the end of the message about images that cannot be decoded.
    """
    options, device = trained.cfg.SEARCH, _device(trained)
    excludes_self = options.GALLERY == 'valid'
    gallery = queries if excludes_self or training is None else training
    if len(gallery.labels) - excludes_self < 1:
        number = '1 image' if len(gallery.labels) else 'no image that can be decoded'
        needed = 'at least 2 are' if excludes_self else 'at least 1 is'
        raise UserError(f'SEARCH.GALLERY {options.GALLERY}: {number} to search, but {needed} needed{hint}')
    finder = _Finder(gallery, options.METRIC, excludes_self, device, partial(neighbor_blocks, group=trained.group))
    results = {'features': finder.retrieval(queries)}
    if options.WHITEN and training is not None:
        try:
            finder = finder.whitened(fit_whitening(training.features, training.labels, device=device))
        except ValueError as error:
            raise UserError(f'SEARCH.WHITEN: {shown(error)}') from None
        results['whitened'] = finder.retrieval(queries)
    if options.RERANK:
        finder = finder.reranked(options.RERANK)
        results[options.RERANK] = finder.retrieval(queries)
    return finder, results


def _neighbors_of_test_images(trained: LoadedModel, finder: _Finder, path: Path) -> Iterator[str]:
    """Write SEARCH.CSV if there is a test split, and yield a line about it."""
    try:
        test = open_test_split(trained.cfg, trained.class_names)
    except UserError:
        if has_test_split(trained.cfg):
            raise
        yield f'{path} is not written: there is no test split'
        yield '  --DATASET_TEST_ROOT FOLDER lists the neighbors of the images in a folder'
        return
    _write_neighbors(trained, test, finder, path)
    yield f'wrote {path}'


def _splits(trained: LoadedModel) -> tuple[DatasetSplit, tuple[DatasetSplit, np.ndarray] | None]:
    """Return the valid split, and the training split with its rows if it is searched or fitted to."""
    cfg = trained.cfg
    valid: DatasetSplit | None
    train: tuple[DatasetSplit, np.ndarray] | None = None
    if cfg.SEARCH.GALLERY == 'valid' and not cfg.SEARCH.WHITEN:
        valid = open_valid_split(cfg, trained.class_names)
    else:
        data = open_training_data(cfg).in_class_order(trained.class_names)
        valid, train = data.valid, (data.train, data.index().rows)
    if valid is None or not valid.labeled:
        raise UserError('there is no labeled validation split: give --DATASET_VALID_JSON FILE')
    return valid, train


def _training_images(trained: LoadedModel, train: DatasetSplit, rows: np.ndarray) -> _Images:
    features = split_features(trained, train, 'train')
    rows = rows[features.readable[rows]]
    if len(rows) == len(features):
        return _Images(features.values, features.labels, train.names)
    return _Images(features.values[rows], features.labels[rows], train.names.take(pa.array(rows)))


def _metrics(trained: LoadedModel, predictions: Predictions) -> dict[str, float]:
    return trained.supported_metrics(compute_metrics(predictions, trained.train_counts))


def _write_neighbors(trained: LoadedModel, test: DatasetSplit, finder: _Finder, path: Path) -> None:
    """Write the K nearest images of every decodable test image; `neighbour` is the column name of the file format.

    The main rank writes what all of them find.
    """
    options, gallery = trained.cfg.SEARCH, finder.gallery
    value = {'cosine': 'cosine', 'euclidean': 'distance'}[options.METRIC]
    features = split_features(trained, test, 'test')
    finder = replace(finder, excludes_self=False)

    def found_of() -> Iterator[tuple[np.ndarray, Neighbors]]:
        readable = np.flatnonzero(features.readable)
        for rows in np.split(readable, range(_QUERIES_AT_ONCE, len(readable), _QUERIES_AT_ONCE)):
            yield rows, finder.nearest(features.values[rows], options.K)

    def rows_of() -> Iterator[tuple]:
        for rows, found in found_of():
            for row, others, values in zip(rows.tolist(), found.rows.tolist(), found.values.tolist(), strict=True):
                image = test.names[row].as_py()
                for rank, (other, number) in enumerate(zip(others, values, strict=True), start=1):
                    label = int(gallery.labels[other])
                    name = gallery.names[other].as_py()
                    yield image, rank, name, label, trained.class_names[label], f'{number:.6f}'

    if not trained.group.is_main:
        for _ in found_of():
            pass
        return
    write_csv(path, ('id', 'rank', 'neighbour', 'category_id', 'name', value), rows_of())


def _device(trained: LoadedModel) -> torch.device:
    """Return the device that searches; MPS can neither compute in float64 nor sort integers."""
    return torch.device('cpu') if trained.device.main.type == 'mps' else trained.device.main
