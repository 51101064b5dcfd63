"""SEARCH in the config -> how well features find images of the same class, and the nearest images of new ones."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from lib.builders.data import open_test_split, open_training_data, open_valid_split
from lib.builders.split import Split, without_quarantined
from lib.commands.features import split_features
from lib.commands.loaded_model import LoadedModel
from lib.errors import UserError
from lib.inference.neighbors import nearest, neighbor_blocks, vote
from lib.inference.retrieval import retrieval_metrics
from lib.metrics.accuracy import ClassCounts, metrics_from_counts
from lib.report.describe import describe_metrics, describe_retrieval
from lib.runtime.files import replace_atomically

_BATCH = 512  # features that are classified at a time


@dataclass(frozen=True)
class _Images:
    """Features of images that could be decoded, their labels and what they are called."""

    features: np.ndarray
    labels: np.ndarray
    names: pa.Array


def search(trained: LoadedModel) -> list[str]:
    """Measure the valid split against the gallery, write SEARCH.CSV if asked for, and return what to print.

    Raises:
        UserError: no labelled valid split; splits and model disagree on the classes; no test images for the CSV.
    """
    options, device = trained.cfg.SEARCH, _device(trained)
    by_itself = options.GALLERY == 'valid'
    valid, train = _splits(trained)
    kept = split_features(trained, valid, 'valid')
    features, labels, readable = kept.values, kept.labels, kept.readable
    queries = _Images(features[readable], labels[readable], valid.names.filter(pa.array(readable)))
    gallery = queries if by_itself else _gallery(trained, *train)
    if len(gallery.labels) - by_itself < 1:
        raise UserError(f'SEARCH.GALLERY {options.GALLERY}: not one image to find can be decoded')
    found = nearest(queries.features, gallery.features, options.K, metric=options.METRIC, same=by_itself, device=device)
    votes = vote(found, gallery.labels, weights=options.VOTE, temperature=options.TEMPERATURE, metric=options.METRIC)
    predicted = np.full(len(valid), -1)
    predicted[readable] = votes.predicted
    retrieval = retrieval_metrics(
        queries.features,
        queries.labels,
        gallery.features,
        gallery.labels,
        metric=options.METRIC,
        same=by_itself,
        device=device,
    )
    rows = {
        'classifier': _classifier_metrics(trained, features, labels, readable),
        f'{found.rows.shape[1]} nearest': _metrics(trained, predicted, labels),
    }
    lines = [
        f'{len(valid)} images of {valid.source} among {len(gallery.labels)} of '
        f'{valid.source + ", each without itself" if by_itself else train[0].source}',
        *describe_metrics(rows),
        *describe_retrieval(retrieval),
    ]
    if options.CSV:
        _write_neighbours(trained, gallery, Path(options.CSV))
        lines.append(f'wrote {options.CSV}')
    return lines


def _splits(trained: LoadedModel) -> tuple[Split, tuple[Split, np.ndarray] | None]:
    """Return the valid split, and with SEARCH.GALLERY train the training split with its rows that take part."""
    cfg = trained.cfg
    if cfg.SEARCH.GALLERY == 'valid':
        valid, train = open_valid_split(cfg), None
    else:
        data = without_quarantined(open_training_data(cfg), cfg.DATASET.QUARANTINE)
        valid, train = data.valid, (data.train, data.index().rows)
    if valid is None or not valid.labelled:
        raise UserError('there is no labelled validation split: give --DATASET_VALID_JSON FILE')
    return valid, train


def _gallery(trained: LoadedModel, train: Split, rows: np.ndarray) -> _Images:
    kept = split_features(trained, train, 'train')
    features, labels, readable = kept.values, kept.labels, kept.readable
    rows = rows[readable[rows]]
    if len(rows) == len(labels):
        return _Images(features, labels, train.names)
    return _Images(features[rows], labels[rows], train.names.take(pa.array(rows)))


@torch.inference_mode()
def _classifier_metrics(
    trained: LoadedModel, features: np.ndarray, labels: np.ndarray, readable: np.ndarray
) -> dict[str, float]:
    device = trained.device.main
    counts = ClassCounts(trained.checkpoint.num_classes, device)
    for start in range(0, len(labels), _BATCH):
        part = slice(start, start + _BATCH)
        some, known, decoded = (torch.from_numpy(np.array(of[part])).to(device) for of in (features, labels, readable))
        counts.update(trained.model.classify(some), known.long(), decoded)
    return trained.known(counts.metrics(trained.train_counts))


def _metrics(trained: LoadedModel, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    num_classes = trained.checkpoint.num_classes
    total = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    return trained.known(metrics_from_counts(right, total, trained.train_counts))


def _write_neighbours(trained: LoadedModel, gallery: _Images, path: Path) -> None:
    """Write id, rank, neighbour, category_id, name and cosine or distance: K rows a test image that can be decoded."""
    options = trained.cfg.SEARCH
    value = {'cosine': 'cosine', 'euclidean': 'distance'}[options.METRIC]
    test = open_test_split(trained.cfg, trained.class_names)
    kept = split_features(trained, test, 'test')
    features, readable = kept.values, kept.readable
    blocks = neighbor_blocks(
        features,
        gallery.features,
        options.K,
        metric=options.METRIC,
        rows=np.flatnonzero(readable),
        device=_device(trained),
    )
    with replace_atomically(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(('id', 'rank', 'neighbour', 'category_id', 'name', value))
        for rows, found in blocks:
            for row, others, values in zip(rows.tolist(), found.rows.tolist(), found.values.tolist(), strict=True):
                image = test.names[row].as_py()
                for rank, (other, number) in enumerate(zip(others, values, strict=True), start=1):
                    label = int(gallery.labels[other])
                    name = gallery.names[other].as_py()
                    writer.writerow((image, rank, name, label, trained.class_names[label], f'{number:.6f}'))


def _device(trained: LoadedModel) -> torch.device:
    """Return the device that searches: neither float64 nor sorting whole numbers is MPS's."""
    return torch.device('cpu') if trained.device.main.type == 'mps' else trained.device.main
