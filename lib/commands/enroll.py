"""tools/enroll.py: add classes to a trained model from a few images, without training.

The result is an ordinary checkpoint, a validation split of old and new classes, and their metrics.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.data import open_named_images
from lib.builders.split import DatasetSplit
from lib.commands.enrolled_model import enrolled_checkpoint, row_geometry
from lib.commands.loaded_model import LoadedModel, split_features
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node, as_text, as_values
from lib.dataset.annotations import ClassNames
from lib.dataset.folder import sample_indices
from lib.dataset.image_format import hint_of
from lib.dataset.images import FileImages
from lib.errors import UserError, is_unicode, shown
from lib.metrics.accuracy import count_per_class, mean_class_accuracy
from lib.posthoc.candidate_scores import ScoredFeatures, score_features
from lib.posthoc.imprint import Imprint, cross_fit_imprint, imprint
from lib.runtime.files import remove, write_json
from lib.runtime.folders import fresh_folder, holds_others
from lib.runtime.log import LOGGER
from lib.runtime.text import name_warnings, names_digest, rounded_code_warnings
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint, versions
from lib.trainer.run_folder import RunFolder

FOLDS = 5
MODEL, VALID_JSON = 'best_model.pth', 'converted_val.json'
# All files of a result; the model is written last.
_FILES = (MODEL, VALID_JSON, 'enroll.json', 'classes.json', 'config.yaml', 'environment.txt')


@dataclass(frozen=True)
class EnrollResult:
    """The content of enroll.json, and the written files, the model first."""

    metrics: dict[str, Any]
    files: list[Path]


@dataclass(frozen=True)
class _NewImages:
    """Images of new classes that can be decoded: the shots that are enrolled, and the others, held out to measure."""

    split: DatasetSplit
    classes: ClassNames
    shots: ScoredFeatures
    held_out: ScoredFeatures
    held_rows: np.ndarray


def enroll(trained: LoadedModel) -> EnrollResult:
    """Add the classes of ENROLL.IMAGES to the model, write it into ENROLL.OUT, and measure old and new classes.

    Raises:
        UserError: no images, or classes that the model has already; no valid split; ENROLL.OUT is in use.
    """
    cfg = trained.cfg
    folder = Path(cfg.ENROLL.OUT or Path(cfg.LOG_ROOT, f'{cfg.NAME}_enrolled'))
    _check_free(trained, folder)
    new = _new_images(trained)
    valid = _valid_split(trained)
    old = None
    if valid is not None:
        features = split_features(trained, valid, 'valid')
        scored = score_features(trained.engine, features.values, features.labels)
        old = scored.at(np.flatnonzero(features.readable))
    chosen = imprint(new.shots, old, **row_geometry(trained)._asdict(), max_loss=cfg.ENROLL.MAX_LOSS)
    metrics = _metrics(trained, new, old, chosen)
    files = _write(
        trained, folder, enrolled_checkpoint(trained, chosen, new.classes, np.bincount(new.shots.labels)), metrics,
        None if valid is None else (valid, new.split, new.held_rows),
    )  # fmt: skip
    return EnrollResult(metrics, files)


def _check_free(trained: LoadedModel, folder: Path) -> None:
    if not trained.cfg.ENROLL.IMAGES:
        raise UserError(
            'ENROLL.IMAGES is empty: --ENROLL_IMAGES FOLDER with a sub-folder per new class, or an annotation JSON'
        )
    if trained.path.resolve().parent == folder.resolve():
        raise UserError(f'ENROLL.OUT {folder} holds RESUME_MODEL {trained.path}: give another folder')
    if folder.exists() and (not folder.is_dir() or holds_others(folder, _FILES, MODEL)) and not trained.cfg.OVERWRITE:
        raise UserError(f'{folder} exists already: --OVERWRITE True renames it, or give another --ENROLL_OUT')


def _new_images(trained: LoadedModel) -> _NewImages:
    source, per_class = trained.cfg.ENROLL.IMAGES, trained.cfg.ENROLL.PER_CLASS
    if not Path(source).exists():
        raise UserError(f'ENROLL.IMAGES {source}: no such folder or file')
    known = set(trained.class_names)
    split, classes = open_named_images(source, nested=trained.cfg.DATASET.NESTED_CLASSES, known=known)
    duplicates = [name for name in classes.names if name in known]
    if duplicates:
        whence = '' if Path(source).is_dir() else ' (names come from classes.json beside it)'
        raise UserError(
            f'ENROLL.IMAGES {source}: the model has the class {shown(duplicates[0])} already '
            f'({len(duplicates)} of {len(classes.names)} classes){whence}; leave them out, or fine-tune on their images'
        )
    for warning in [*name_warnings(classes.names, known=trained.class_names), *rounded_code_warnings(classes.names)]:
        LOGGER.warning('%s: %s', source, warning)
    features = split_features(trained, split, 'new_classes', same_classes=False)
    readable = features.readable
    index, shots, hint = split.index(), [], hint_of(reason for _, reason in features.bad)
    for label, name in enumerate(classes.names):
        rows = index.rows_of(label)
        rows = rows[readable[rows]]
        if not len(rows):
            raise UserError(f'ENROLL.IMAGES {source}: no image of {shown(name)} can be decoded{hint}')
        shots.append(rows[sample_indices(len(rows), name, per_class or len(rows), trained.cfg.SEED)])
    shot_rows = np.concatenate(shots)
    held_rows = np.setdiff1d(np.flatnonzero(readable), shot_rows)
    if not readable.all():
        num_bad = int((~readable).sum())
        LOGGER.warning('%s: %s cannot be decoded%s', source, '1 image' if num_bad == 1 else f'{num_bad} images', hint)
    scored = score_features(trained.engine, features.values, np.asarray(split.labels), are_new=True)
    return _NewImages(split, classes, scored.at(shot_rows), scored.at(held_rows), held_rows)


def _valid_split(trained: LoadedModel) -> DatasetSplit | None:
    """Return the labeled valid split; None where there is none and ENROLL.MAX_LOSS is 1."""
    try:
        valid = trained.valid
        if not valid.labeled or valid.num_classes != trained.checkpoint.num_classes:
            raise UserError(
                f'{valid.source} has {valid.num_classes} classes{"" if valid.labeled else " and images without label"}'
                f', but {trained.path} has {trained.checkpoint.num_classes} classes'
            )
    except UserError as error:
        max_loss = trained.cfg.ENROLL.MAX_LOSS
        if max_loss == KEYS['ENROLL.MAX_LOSS'].high:
            LOGGER.warning('the loss of old classes is neither limited nor measured: %s', error)
            return None
        raise UserError(
            f'enrolling needs the validation split of the old classes, to limit their loss: {error}; '
            '--ENROLL_MAX_LOSS 1 sets no limit'
        ) from None
    return valid


def _metrics(trained: LoadedModel, new: _NewImages, old: ScoredFeatures | None, chosen: Imprint) -> dict[str, Any]:
    """Return the content of enroll.json; the images that a parameter was chosen by do not measure it."""
    geometry, num_classes = row_geometry(trained), len(new.classes.names)
    of_old: dict[str, Any] = {}
    if old is not None:
        max_loss = trained.cfg.ENROLL.MAX_LOSS
        after = cross_fit_imprint(new.shots, old, **geometry._asdict(), max_loss=max_loss, folds=FOLDS)
        of_old = {
            'before': mean_class_accuracy(old.labels, old.correct),
            'after': mean_class_accuracy(old.labels, after),
            'num_measured': len(old),
            'folds': FOLDS,
        }
    of_new: dict[str, Any] = {'num_shots': len(new.shots), 'num_measured': len(new.held_out)}
    correct = np.zeros(0, bool)
    if len(new.held_out):
        correct = chosen.wins(new.held_out, geometry.cosine_scale) == new.held_out.labels
        of_new |= {'before': 0.0, 'after': mean_class_accuracy(new.held_out.labels, correct)}
    num_shots = np.bincount(new.shots.labels, minlength=num_classes)
    num_correct, num_measured = count_per_class(new.held_out.labels, correct, num_classes)
    return {
        'num_classes': trained.checkpoint.num_classes + num_classes,
        'scale': chosen.scale,
        'shift': chosen.shift,
        'centring': chosen.centering,
        'old': of_old,
        'new': of_new,
        'classes': {
            name: {'shots': shots, 'measured': measured, 'right': right}
            for name, shots, measured, right in zip(
                new.classes.names, num_shots.tolist(), num_measured.tolist(), num_correct.tolist(), strict=True
            )
        },
    }


def _write(
    trained: LoadedModel,
    folder: Path,
    checkpoint: Checkpoint,
    metrics: dict[str, Any],
    measured: tuple[DatasetSplit, DatasetSplit, np.ndarray] | None,
) -> list[Path]:
    """Write the folder and return its files, the model first; an old folder of that name is renamed.

    Args:
        checkpoint: with the new classes.
        metrics: content of enroll.json.
        measured: the valid split of the old classes, the split of the new images, and its held-out rows. If all images
            are files, they become the valid split of the new model.
    """

    def is_old() -> bool:
        _check_free(trained, folder)  # again: another process may have written a result meanwhile
        return holds_others(folder, _FILES, MODEL)

    training_set = checkpoint.training_set
    assert training_set is not None
    with fresh_folder(folder, 'ENROLL.OUT', is_old):
        files = [folder / MODEL, folder / 'enroll.json', folder / 'classes.json']
        values = as_values(trained.cfg)
        remove(folder / VALID_JSON)  # of a command that was stopped
        if measured is not None and _write_valid(folder / VALID_JSON, training_set.class_names, *measured):
            values |= {'DATASET.VALID_JSON': str(folder / VALID_JSON)}
            files.append(folder / VALID_JSON)
        config = as_text(as_node(values | {'ENROLL.IMAGES': '', 'ENROLL.OUT': '', 'OVERWRITE': False}))
        run = RunFolder(folder)
        run.write_environment(config, {'device': trained.device.describe(training=False), **versions()})
        run.write_classes(training_set.class_names, training_set.class_parents)
        write_json(folder / 'enroll.json', metrics)
        write_checkpoint(folder / MODEL, replace(checkpoint, config=config))
    return files


def _write_valid(path: Path, names: list[str], old: DatasetSplit, new: DatasetSplit, new_rows: np.ndarray) -> bool:
    """Write the annotations of old valid images and of new ones; return False if some are not files."""
    if not (isinstance(old.images, FileImages) and isinstance(new.images, FileImages)):
        return False
    entries, num_left_out, num_old = [], 0, len(names) - new.num_classes
    sources = (old.images, old.labels, range(len(old)), 0), (new.images, new.labels, new_rows.tolist(), num_old)
    for images, labels, rows, first in sources:
        for row in rows:
            file = os.path.abspath(images.path(row))
            if is_unicode(file):
                entries.append({'category_id': first + int(labels[row]), 'fpath': file})
            else:
                num_left_out += 1
    if num_left_out:
        LOGGER.warning('%s: without %d images whose file names are not UTF-8', path, num_left_out)
    write_json(path, {'annotations': entries, 'num_classes': len(names), 'classes_digest': names_digest(names)})
    return True
