"""The images of tools/enroll.py: those to enroll, the validation split, and the classes to remove."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.builders.data import open_named_images
from lib.builders.split import DatasetSplit
from lib.commands.enrolled_model import LabeledImages, kept_classes, labels_of
from lib.commands.loaded_model import LoadedModel, split_features
from lib.commands.predict_inputs import open_test_images, open_unlabeled
from lib.config.defaults import KEYS
from lib.dataset.annotations import ClassNames
from lib.dataset.features import Features
from lib.dataset.folder import sample_indices
from lib.dataset.image_format import hint_of
from lib.dataset.images import FileImages
from lib.errors import UserError, is_unicode, shown
from lib.formats.sources import SourceErrors, read_csv
from lib.inference.prediction_files import UNKNOWN
from lib.posthoc.candidate_scores import score_features
from lib.runtime.files import write_json
from lib.runtime.log import LOGGER
from lib.runtime.read_file import read_text, reason_of
from lib.runtime.text import count_of, name_warnings, names_digest, rounded_code_warnings


@dataclass(frozen=True)
class GivenImages:
    """Images of ENROLL.IMAGES: the shots that are enrolled, and the others, held out to measure.

    Attributes:
        split: all images, with labels of the given classes.
        names: names of the given classes.
        features: features of these images.
        new: names (and parents) of the classes that are new to the model.
        new_labels: (n,) int64 number in `new`; -1: an image of a known class.
        known_labels: (n,) int64 class of the model; -1: an image of a new class.
        shots, held_out: rows of readable images.
    """

    split: DatasetSplit
    names: list[str]
    features: Features
    new: ClassNames
    new_labels: np.ndarray
    known_labels: np.ndarray
    shots: np.ndarray
    held_out: np.ndarray

    def of_new(self, rows: np.ndarray) -> LabeledImages | None:
        """Return those of the rows that are images of new classes; None if no class is new."""
        return self._of(self.new_labels, rows)

    def of_known(self, rows: np.ndarray) -> LabeledImages | None:
        """Return those of the rows that are images of known classes; None if no class is known."""
        return self._of(self.known_labels, rows)

    def _of(self, labels: np.ndarray, rows: np.ndarray) -> LabeledImages | None:
        return LabeledImages(self.features.values, labels, rows[labels[rows] >= 0]) if (labels >= 0).any() else None


@dataclass(frozen=True)
class OldImages:
    """The valid split.

    Attributes:
        images: the readable ones of classes that stay. Labels are those of the model without retired classes; -1: an
            image of a retired class.
        before: (n,) bool: the image is classified correctly by the model as it was.
    """

    split: DatasetSplit
    images: LabeledImages
    before: np.ndarray


def retired_classes(trained: LoadedModel) -> list[int]:
    """Return the labels of the classes of ENROLL.RETIRE, ascending."""
    return labels_of(trained, given_names(trained.cfg.ENROLL.RETIRE, 'ENROLL.RETIRE'), 'ENROLL.RETIRE')


def given_names(given: Sequence[str], option: str) -> list[str]:
    """Return the names that an option lists, or that are in its .txt file, one per line."""
    if len(given) != 1 or not given[0].endswith('.txt'):
        return list(given)
    try:
        lines = read_text(given[0], encoding='utf-8-sig').splitlines()
    except OSError as error:
        raise UserError(f'{option} {given[0]}: {reason_of(error)}') from None
    except UnicodeDecodeError:
        raise UserError(f'{option} {given[0]}: is not UTF-8') from None
    return [line.strip() for line in lines if line.strip()]


def given_images(trained: LoadedModel, base: LoadedModel) -> GivenImages | None:
    """Open ENROLL.IMAGES, and choose the shots; `base`: the model without retired classes."""
    source, per_class = trained.cfg.ENROLL.IMAGES, trained.cfg.ENROLL.PER_CLASS
    if not source:
        return None
    if not Path(source).exists():
        raise UserError(f'ENROLL.IMAGES {source}: no such folder or file')
    with trained.group.main_first():
        split, classes = open_named_images(source, nested=trained.cfg.DATASET.NESTED_CLASSES)
    label_of = {name: label for label, name in reversed(list(enumerate(base.class_names)))}
    known_labels = np.array([label_of.get(name, -1) for name in classes.names], np.int64)
    numbers = np.flatnonzero(known_labels < 0).tolist()
    new = ClassNames(
        [classes.names[number] for number in numbers],
        [classes.parents[number] for number in numbers] if classes.parents else [],
    )
    new_labels = np.full(len(known_labels), -1)
    new_labels[numbers] = np.arange(len(numbers))
    for warning in [*name_warnings(new.names, known=base.class_names), *rounded_code_warnings(new.names)]:
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
        LOGGER.warning('%s: %s cannot be decoded%s', source, count_of(int((~readable).sum()), 'image'), hint)
    labels = np.asarray(split.labels)
    return GivenImages(
        split, classes.names, features, new, new_labels[labels], known_labels[labels], shot_rows, held_rows
    )


def old_images(trained: LoadedModel, retired: list[int], *, is_needed: bool) -> OldImages | None:
    """Return the labeled valid split; None where there is none and the loss of old classes is not limited.

    Args:
        is_needed: rows are chosen, so there is a loss to limit.
    """
    try:
        valid = trained.valid
        if not valid.labeled or valid.num_classes != trained.checkpoint.num_classes:
            raise UserError(
                f'{valid.source} has {valid.num_classes} classes{"" if valid.labeled else " and images without label"}'
                f', but {trained.path} has {trained.checkpoint.num_classes} classes'
            )
    except UserError as error:
        max_loss = trained.cfg.ENROLL.MAX_LOSS
        if max_loss == KEYS['ENROLL.MAX_LOSS'].high or not is_needed:
            LOGGER.warning('the loss of old classes is neither limited nor measured: %s', error)
            return None
        raise UserError(
            f'enrolling needs the validation split of the old classes, to limit their loss: {error}; '
            '--ENROLL_MAX_LOSS 1 sets no limit'
        ) from None
    features = split_features(trained, valid, 'valid')
    kept = kept_classes(trained, retired)
    label_of = np.full(valid.num_classes, -1)
    label_of[kept] = np.arange(len(kept))
    labels = label_of[features.labels]
    rows = np.flatnonzero(features.readable & (labels >= 0))
    if not len(rows):
        raise UserError(f'{valid.source}: has no readable image of a class that stays')
    before = score_features(trained.engine, features.values, features.labels).correct[rows]
    return OldImages(valid, LabeledImages(features.values, labels, rows), before)


def unknown_photos(trained: LoadedModel) -> tuple[DatasetSplit, np.ndarray]:
    """Open the photos of ENROLL.PROPOSE; return them, and which may show unknown products, (n,) bool.

    Of the photos of a prediction, these are the ones that test.py has rejected.

    Raises:
        UserError: there are no photos, or they are not files.
    """
    cfg, given = trained.cfg, trained.cfg.ENROLL.PROPOSE
    if given.endswith('.csv'):
        photos, _ = open_test_images(cfg, trained.class_names, trained.group)
        errors = SourceErrors()
        rows = read_csv(Path(given), ('id', 'name'), errors)
        where, header = next(rows)
        if not {'id', 'name', 'score'} <= set(header):
            raise UserError(f'ENROLL.PROPOSE {where}: is no predictions_SOURCE.open_set.csv of test.py')
        image, name = header.index('id'), header.index('name')
        rejected = {fields[image] for _, fields in rows if fields[name] == UNKNOWN}
        errors.raise_if_any()
        is_unknown = np.array([text in rejected for text in photos.names.to_pylist()], bool)
        if not is_unknown.any():
            raise UserError(
                f'ENROLL.PROPOSE {given}: rejects none of the photos of {photos.source}; give the same --TEST_IMAGES'
            )
    else:
        photos = open_unlabeled(cfg, 'ENROLL.PROPOSE', given, trained.checkpoint.num_classes)
        is_unknown = np.ones(len(photos), bool)
    if not isinstance(photos.images, FileImages):
        raise UserError(f'ENROLL.PROPOSE {photos.source}: photos must be files, so that decisions.json can name them')
    return photos, is_unknown


def write_valid(path: Path, names: list[str], old: OldImages, given: GivenImages | None) -> bool:
    """Write the annotations of valid images and of held-out ones; return False if some are not files."""
    parts = [(old.split.images, old.images.labels, np.flatnonzero(old.images.labels >= 0))]
    if given is not None:
        num_base = len(names) - len(given.new.names)
        labels = np.where(given.new_labels >= 0, num_base + given.new_labels, given.known_labels)
        parts.append((given.split.images, labels, given.held_out))
    entries, num_left_out = [], 0
    for images, labels, rows in parts:
        if not isinstance(images, FileImages):
            return False
        for row in rows.tolist():
            file = os.path.abspath(images.path(row))
            if is_unicode(file):
                entries.append({'category_id': int(labels[row]), 'fpath': file})
            else:
                num_left_out += 1
    if num_left_out:
        LOGGER.warning('%s: without %s whose name is not UTF-8', path, count_of(num_left_out, 'image'))
    write_json(path, {'annotations': entries, 'num_classes': len(names), 'classes_digest': names_digest(names)})
    return True
