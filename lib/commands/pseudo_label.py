"""tools/pseudo_label.py: confident predictions on unlabeled photos become training images, each with a weight."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.builders.data import open_training_data
from lib.builders.features import locked_store
from lib.builders.split import DatasetSplit
from lib.builders.training_data import TrainingData
from lib.commands.loaded_model import LoadedModel
from lib.commands.next_steps import Step, script, step_lines
from lib.commands.predict import open_predictor
from lib.commands.predict_inputs import open_unlabeled
from lib.commands.predict_parts import partial_store
from lib.config.defaults import Config
from lib.config.yaml_text import as_node, as_values
from lib.dataset.annotations import read_classes
from lib.dataset.images import FileImages
from lib.errors import UserError, is_unicode, shown
from lib.formats.converted import ConvertedSplit
from lib.formats.pseudo import (
    PseudoEntries,
    TrainingEntries,
    are_copies,
    holds_pseudo_labels,
    read_training_entries,
    write_pseudo_labeled,
)
from lib.formats.write import join_path, path_prefix
from lib.inference.sinks import stored_predictions
from lib.metrics.accuracy import shot_groups
from lib.metrics.confidence import (
    CalibrationCurve,
    Threshold,
    calibration_curve,
    choose_threshold,
    first_per_class,
    risk_coverage,
    risk_in_mix,
    smallest_bound,
    upper_bound,
)
from lib.metrics.predictions import Predictions
from lib.runtime.files import remove
from lib.runtime.log import LOGGER
from lib.runtime.text import count_of


@dataclass(frozen=True)
class _Chosen:
    """Photos that become training images.

    Attributes:
        rows: rows of the photos, ascending.
        labels, weights: (k,) int64 classes of the model, float64 in (0, 1].
        counts: reason -> photos that were left out for it.
    """

    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    counts: dict[str, int]


def pseudo_label(trained: LoadedModel) -> list[str]:
    """Write PSEUDO.OUT on the main rank; return the lines of its log, which are empty on the others.

    Raises:
        UserError: no photos, no labeled valid split, no threshold that holds PSEUDO.ERROR, or PSEUDO.OUT is in use.
    """
    cfg, group = trained.cfg, trained.group
    with group.main_first():
        none = {f'DATASET.{name}': '' for name in ('CORRECTIONS', 'VALID_CORRECTIONS', 'QUARANTINE')}
        data = open_training_data(as_node({**as_values(cfg), **none}))  # corrections apply to the written file again
        photos = open_unlabeled(cfg, 'PSEUDO.IMAGES', cfg.PSEUDO.IMAGES, trained.checkpoint.num_classes)
    out = Path(cfg.PSEUDO.OUT or trained.folder / 'with_pseudo.json')
    label_of = _labels_in(data, trained)
    annotated = Path(data.train.source)
    in_folders = None if annotated.is_file() else TrainingEntries(_as_split(data.train), {}, np.arange(len(data.train)))
    train = in_folders or read_training_entries(annotated)
    _check_out(out, data, overwrite=cfg.OVERWRITE)
    if num_shared := data.shares_images():
        LOGGER.warning('%d validation images are training images: errors are underestimated', num_shared)
    stem = trained.stem.with_name(f'{trained.stem.name}.pseudo')
    with locked_store(partial_store(stem), group):
        predictor = open_predictor(trained, photos, stem)
        trained.check_classes(valid := trained.valid)
        stored = predictor.fill(valid, partial_store(stem, 'valid'), 'valid')
        measured = stored_predictions(stored, valid.labels).labeled()
        threshold = _threshold(cfg, measured, valid.source)
        calibration = calibration_curve(measured.confidence, measured.correct)
        store = predictor.fill(photos, partial_store(stem), 'photos')
        if not group.is_main:
            return []
        predictions = stored_predictions(store, photos.labels)
        counts = np.bincount(data.train.labels[train.rows], minlength=data.train.num_classes)[label_of]
        limit = cfg.PSEUDO.PER_CLASS or max(1, int(np.median(counts[counts > 0])) if counts.any() else 1)
        chosen = _choose(predictions, threshold, calibration, photos, _known_paths(data, train), limit)
        lines = _describe(counts, measured, threshold, predictions, chosen, limit)
        if len(chosen.rows):
            written = _write(out, data, train, photos, chosen, label_of)
            lines += [f'wrote {path}' for path in written]
            lines += step_lines([Step('train with the pseudo-labels', _training(trained, out, written))])
        for name in ('', 'valid', 'weights'):
            remove(partial_store(stem, name))
    return lines


def _labels_in(data: TrainingData, trained: LoadedModel) -> np.ndarray:
    """Return the label in the training data of each class of the model, (num_classes,) int64."""
    if not isinstance(data.train.images, FileImages):
        raise UserError(
            f'{data.train.source}: pseudo-labels are added to an annotation JSON or to class folders, not to packed or '
            "array data: --DATASET_SHARDS '' --DATASET_ROOT FOLDER"
        )
    labels = {name: label for label, name in enumerate(data.class_names)}
    if trained.checkpoint.training_set is None and len(labels) == trained.checkpoint.num_classes:
        return np.arange(len(labels))  # the checkpoint has no names
    if sorted(labels) != sorted(trained.class_names):
        strange = next((name for name in trained.class_names if name not in labels), data.class_names[0])
        raise UserError(
            f'{data.train.source} has other classes than {trained.path}, such as {shown(strange)}: give the training '
            'data of the model, --DATASET_ROOT or --DATASET_TRAIN_JSON'
        )
    return np.array([labels[name] for name in trained.class_names])


def _as_split(split: DatasetSplit) -> ConvertedSplit:
    """Return images of class folders as they are written, without those whose names JSON cannot hold."""
    assert isinstance(split.images, FileImages)
    paths = list(split.images.paths)
    rows = [row for row, path in enumerate(paths) if is_unicode(path)]
    if len(rows) < len(paths):
        LOGGER.warning('%s: %s left out, since their names are not UTF-8', split.source,
                       count_of(len(paths) - len(rows), 'image'))  # fmt: skip
    return ConvertedSplit([paths[row] for row in rows], split.labels[rows])


def _check_out(out: Path, data: TrainingData, *, overwrite: bool) -> None:
    """Raise UserError if PSEUDO.OUT would replace other data, or its folder holds the classes of other data."""
    annotated = {os.path.realpath(split.source) for split in (data.train, data.valid) if split is not None}
    if out.is_dir():
        raise UserError(f'PSEUDO.OUT {out} is a folder: give the JSON file to write')
    is_own = out.exists() and holds_pseudo_labels(out)
    if out.exists() and not is_own and (not overwrite or os.path.realpath(out) in annotated):
        advice = 'give another --PSEUDO_OUT' + ('' if overwrite else ', or replace it with --OVERWRITE True')
        raise UserError(f'PSEUDO.OUT {out} exists, and holds no pseudo-labels: {advice}')
    known = read_classes(out.with_name('classes.json'), data.train.num_classes, str(out))
    if known is not None and known.names != data.class_names:
        raise UserError(
            f'PSEUDO.OUT {out}: classes.json beside it has other class names than {data.train.source}; give a file in '
            'another folder'
        )


def _threshold(cfg: Config, measured: Predictions, source: str) -> Threshold:
    if not len(measured):
        raise UserError(f'{source}: has no labeled image, but the threshold is chosen on labeled ones')
    curve = risk_coverage(measured.confidence, measured.correct)
    threshold = choose_threshold(curve, cfg.PSEUDO.ERROR)
    if not threshold.coverage:
        best = smallest_bound(curve)
        larger = np.ceil(best * 100 + 1e-9) / 100
        option = f'--PSEUDO_ERROR {larger:g}, ' if larger <= 0.9 else ''  # the largest value of the option
        raise UserError(
            f'PSEUDO.ERROR {cfg.PSEUDO.ERROR:g}: no threshold holds this error with 95 % confidence on the '
            f'{count_of(len(measured), "image")} of {source}; the smallest that one holds is {best:.3f}: '
            f'{option}a better model, or more validation images'
        )
    return threshold


def _choose(
    predictions: Predictions,
    threshold: Threshold,
    calibration: CalibrationCurve,
    photos: DatasetSplit,
    known: Iterator[str],
    limit: int,
) -> _Chosen:
    """Choose the most confident photos of each class, of those that are accepted and no copies."""
    images = photos.images
    assert isinstance(images, FileImages)
    predicted, confidence = predictions.predicted, predictions.confidence
    weights = calibration(confidence)
    readable = predicted >= 0
    accepted = readable & (confidence >= threshold.value) & (weights > 0)
    rows = np.flatnonzero(accepted)
    # The most confident first, so of two copies of a photo that one stays; for equal ones the order of the photos.
    rows = rows[np.argsort(-confidence[rows], kind='stable')]
    is_text = np.array([is_unicode(str(images.paths[row])) for row in rows.tolist()], bool)
    is_copy = are_copies([images.path(row) for row in rows.tolist()], known)
    rows = rows[is_text & ~is_copy]
    kept = np.sort(rows[first_per_class(predicted[rows], limit)])
    counts = {
        'cannot be read': int((~readable).sum()),
        'below the threshold': int((readable & ~accepted).sum()),
        'copies of training or validation images, or of each other': int((is_copy & is_text).sum()),
        'have a path that is not UTF-8': int((~is_text).sum()),
        f'over the limit of {limit} per class': len(rows) - len(kept),
    }
    return _Chosen(kept, predicted[kept], weights[kept], counts)


def _known_paths(data: TrainingData, train: TrainingEntries) -> Iterator[str]:
    """Yield the paths of labeled training images and of validation images."""
    images = data.train.images
    assert isinstance(images, FileImages)
    yield from (images.path(row) for row in train.rows.tolist())
    if data.valid is not None and isinstance(data.valid.images, FileImages):
        yield from map(data.valid.images.path, range(len(data.valid)))


def _write(
    out: Path,
    data: TrainingData,
    train: TrainingEntries,
    photos: DatasetSplit,
    chosen: _Chosen,
    label_of: np.ndarray,
) -> list[Path]:
    """Write PSEUDO.OUT, classes.json beside it unless it is there, and the valid split of class folders."""
    assert isinstance(data.train.images, FileImages)
    assert isinstance(photos.images, FileImages)
    prefix = path_prefix(Path(photos.images.root), Path(data.train.images.root))
    paths = [join_path(prefix, str(photos.images.paths[row])) for row in chosen.rows.tolist()]
    pseudo = PseudoEntries(paths, label_of[chosen.labels], chosen.weights)
    valid = None
    if data.valid is not None and isinstance(train.entries, ConvertedSplit):
        valid = _as_split(data.valid)  # a fraction of the class folders, which the next run does not split again
    return write_pseudo_labeled(out, train, pseudo, data.train.num_classes, data.classes, valid)


def _describe(
    class_counts: np.ndarray,
    measured: Predictions,
    threshold: Threshold,
    predictions: Predictions,
    chosen: _Chosen,
    limit: int,
) -> list[str]:
    """Return the counts of photos, the measured error, and a table of many-, medium- and few-shot classes."""
    accepted = measured.at(np.flatnonzero(measured.confidence >= threshold.value))
    num_wrong, number = int((~accepted.correct).sum()), len(accepted)
    low, high = 1 - upper_bound(number - num_wrong, number, 0.975), upper_bound(num_wrong, number, 0.975)
    lines = [
        f'{count_of(len(predictions), "photo")}, {count_of(len(chosen.rows), "pseudo-label")}',
        *(f'  {count:,} {reason}' for reason, count in chosen.counts.items() if count),
        f'threshold {threshold.value:.3f}: {num_wrong:,} of {number:,} validation images above it are wrong,',
        f'  {num_wrong / number:.1%} ({low:.1%} to {high:.1%}); at most {threshold.bound:.1%} with 95 % confidence,',
        '  if the photos are like the validation images',
    ]
    if not len(chosen.rows):
        return [*lines, 'no pseudo-label, so nothing is written']
    error = risk_in_mix(accepted, chosen.labels)
    lines.append(f'{error:.1%} wrong in the mix of classes that the limit of {limit} per class leaves')
    lines.append(f'weights {chosen.weights.min():.2f} to {chosen.weights.max():.2f}, mean {chosen.weights.mean():.2f}')
    counts = np.bincount(chosen.labels, minlength=len(class_counts))
    groups = shot_groups(class_counts)
    rows = {
        'classes': [int(group.sum()) for group in groups.values()],
        'training images': [int(class_counts[group].sum()) for group in groups.values()],
        'pseudo-labels': [int(counts[group].sum()) for group in groups.values()],
        'classes with one': [int((counts[group] > 0).sum()) for group in groups.values()],
    }
    lines.append(' ' * 16 + ''.join(f'  {name:>9}' for name in groups))
    return lines + [f'{name:<16}' + ''.join(f'  {count:>9,}' for count in cells) for name, cells in rows.items()]


def _training(trained: LoadedModel, out: Path, written: list[Path]) -> list[str]:
    """Return the command that trains on the written file, into another run folder."""
    cfg, config = trained.cfg, trained.folder / 'config.yaml'
    words = ['--config', str(config)] if config.exists() else ['--DATASET_ROOT', cfg.DATASET.ROOT]
    words += ['--NAME', f'{cfg.NAME}_pseudo', '--DATASET_TRAIN_JSON', str(out)]
    valid = [path for path in written if path not in (out, out.with_name('classes.json'))]
    return [*script('main.py'), *words, *(f for path in valid[:1] for f in ('--DATASET_VALID_JSON', str(path)))]
