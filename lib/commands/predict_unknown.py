"""TEST.REJECT_UNKNOWN: distinguish photos of unknown products from those of known ones; the threshold and its file."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lib.builders.data import open_named_images
from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel, split_features, training_sample
from lib.errors import UserError, shown
from lib.inference.sinks import stored_predictions
from lib.metrics.open_set import open_set_metrics
from lib.posthoc.open_set import (
    LOGIT_SCORES,
    NUM_FOLDS,
    KnownScore,
    LogitScore,
    Prototypes,
    PrototypeScore,
    RejectionThreshold,
    conformal_threshold,
    fit_prototypes,
)
from lib.runtime.checksums import check_safetensors, with_checksums
from lib.runtime.column_store import ColumnStore
from lib.runtime.files import remove, write_bytes, write_json
from lib.runtime.json_file import read_json
from lib.runtime.shared_memory import to_shared_memory
from lib.runtime.text import count_of

_JSON, _TENSORS = '.open_set.json', '.open_set.safetensors'
_LARGEST = float(np.finfo(np.float32).max)  # JSON has no infinity
_NO_TRAINING_IMAGES = 'without training images, --TEST_UNKNOWN_SCORE max_logit'


@dataclass(frozen=True)
class CalibrationImages:
    """Images that can be decoded and whose product is known, with their scores.

    Attributes:
        source: for messages.
        classes: (n,) int64 of the model, or of unknown products.
        scores: (n,) float32.
        left_out: (n,) float32 scores without the class.
        correct: (n,) bool.
    """

    source: str
    classes: np.ndarray
    scores: np.ndarray
    left_out: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class Rejection:
    """The choice of a threshold, with what is known about it.

    Attributes:
        source: source of the images of unknown products, for messages.
        is_left_out: they are the validation images, each judged without its class.
        knows_classes: features or scores depend on training with the class that is left out.
        metrics: result of open_set_metrics, on the validation images and those of unknown products.
        known_accepted: fraction of the validation images that is accepted.
        known_error: error of the accepted ones; None without any.
    """

    score: KnownScore
    threshold: RejectionThreshold
    source: str
    is_left_out: bool
    knows_classes: bool
    metrics: dict[str, float]
    known_accepted: float
    known_error: float | None

    @property
    def guaranteed(self) -> float | None:
        """The rate that is guaranteed; None where the model was trained on the classes that are left out."""
        return None if self.is_left_out and self.knows_classes else self.threshold.guaranteed

    def is_unknown(self, scores: np.ndarray) -> np.ndarray:
        """Return which images with these scores (n,) are of unknown products, (n,) bool; nan: neither."""
        return ~self.threshold.accepts(scores) & ~np.isnan(scores)

    def lines(self, is_unknown: np.ndarray) -> list[str]:
        """Return the lines to log about the threshold and the test images; `is_unknown`: (n,) bool."""
        threshold = self.threshold
        images, classes = count_of(threshold.num_images, 'image'), count_of(threshold.num_classes, 'class', 'classes')
        chosen = f'{images} of {classes}{", each left out in turn" if self.is_left_out else ""}'
        lines = [f'unknown products: score below {threshold.value:.4g}, from {chosen}']
        if self.guaranteed is None:
            lines.append(f'unknown products accepted: more than {threshold.max_rate:.1%}, since the model was trained')
            lines.append('  on the classes that are left out; photos of others: --TEST_UNKNOWN_ROOT FOLDER')
        else:
            lines.append(f'unknown products accepted: at most {self.guaranteed:.1%} on average')
            if self.guaranteed > threshold.max_rate:
                lines.append(f'  {threshold.max_rate:.1%} would need {threshold.num_needed} unknown classes')
        metrics = ', '.join(f'{name.upper()} {self.metrics[name]:.1%}' for name in ('auroc', 'fpr95', 'oscr'))
        error = '' if self.known_error is None else f', error {self.known_error:.1%}'
        if not self.known_accepted:
            lines.append('  no validation image is accepted as known; a higher --TEST_REJECT_UNKNOWN accepts some')
        lines.append(f'valid split: {self.known_accepted:.1%} accepted as known{error}; {metrics}')
        lines.append(f'test images: {is_unknown.sum():,} of {len(is_unknown):,} are of unknown products')
        return lines


def build_score(trained: LoadedModel) -> KnownScore:
    """Return the score of TEST.UNKNOWN_SCORE; the prototypes are those of at most POSTHOC.HOLDOUT images per class.

    Raises:
        UserError: the prototypes need training images, and there are none.
    """
    name = trained.cfg.TEST.UNKNOWN_SCORE
    if name in LOGIT_SCORES:
        return LogitScore(name)
    try:
        with trained.group.main_first():
            sample = training_sample(trained)
    except UserError as error:
        raise UserError(f'TEST.UNKNOWN_SCORE {name}: {error}; {_NO_TRAINING_IMAGES}') from None
    features = split_features(trained, sample, 'train_part')
    if not (features.readable & (features.labels >= 0)).any():
        raise UserError(f'TEST.UNKNOWN_SCORE {name}: no image of {sample.source} can be decoded; {_NO_TRAINING_IMAGES}')
    return fit_prototypes(
        features,
        sample.num_classes,
        device=trained.device.main,
        about={'prototypes': sample.digest()},
        num_folds=0 if trained.cfg.TEST.UNKNOWN_ROOT else NUM_FOLDS,
    )


def open_unknown(trained: LoadedModel) -> tuple[DatasetSplit, np.ndarray]:
    """Open TEST.UNKNOWN_ROOT: images without labels, and the number of each image's product, (n,) int64.

    Raises:
        UserError: no such images, or the model knows one of the products.
    """
    source = trained.cfg.TEST.UNKNOWN_ROOT
    try:
        split, classes = open_named_images(source, nested=trained.cfg.DATASET.NESTED_CLASSES)
    except UserError as error:
        raise UserError(f'TEST.UNKNOWN_ROOT: {error}') from None
    known = next((name for name in classes.names if name in set(trained.class_names)), None)
    if known is not None:
        raise UserError(
            f'TEST.UNKNOWN_ROOT {source}: the model knows the product {shown(known)}; give photos of others only'
        )
    products = np.asarray(split.labels, np.int64)
    labels = to_shared_memory(np.full(len(split), -1, np.int32))
    return replace(split, labels=labels, num_classes=trained.checkpoint.num_classes, by_class=None), products


def calibration_images(split: DatasetSplit, classes: np.ndarray, store: ColumnStore) -> CalibrationImages:
    """Return the images of a predicted split that can be decoded and have a class (n,), not -1."""
    predictions = stored_predictions(store, np.asarray(classes))
    rows = np.flatnonzero((predictions.predicted >= 0) & (classes >= 0))
    scores = np.asarray(store.columns['scores'])[rows]
    return CalibrationImages(
        split.source, np.asarray(classes)[rows], scores[:, 0], scores[:, 1], predictions.correct[rows]
    )


def choose_rejection(
    score: KnownScore,
    max_rate: float,
    known: CalibrationImages,
    unknown: CalibrationImages | None,
    *,
    knows_classes: bool,
) -> Rejection:
    """Choose the threshold of a score for a false-acceptance rate.

    Args:
        known: images of the validation split.
        unknown: images of unknown products; None: the validation images, each without its class.
        knows_classes: the features were trained on the classes.

    Raises:
        UserError: no image of known or of unknown products.
    """
    if not len(known.classes):
        raise UserError(
            f'TEST.REJECT_UNKNOWN needs labeled validation images that can be decoded, but {known.source} has none: '
            '--DATASET_VALID_JSON FILE'
        )
    scores, classes, source = known.left_out, known.classes, known.source
    if unknown is not None:
        scores, classes, source = unknown.scores, unknown.classes, unknown.source
        if not len(classes):
            raise UserError(f'TEST.UNKNOWN_ROOT {source}: none of its images can be decoded')
    if not np.isfinite(scores).any():
        raise UserError(
            'TEST.REJECT_UNKNOWN leaves each class out in turn, but the model has only one: give photos of unknown '
            'products, --TEST_UNKNOWN_ROOT FOLDER'
        )
    threshold = conformal_threshold(scores, classes, max_rate)
    accepted = threshold.accepts(known.scores)
    return Rejection(
        score=score,
        threshold=threshold,
        source=source,
        is_left_out=unknown is None,
        knows_classes=knows_classes or isinstance(score, LogitScore),
        metrics=open_set_metrics(known.scores, known.correct, scores),
        known_accepted=float(accepted.mean()),
        known_error=float(1 - known.correct[accepted].mean()) if accepted.any() else None,
    )


def write_rejection(stem: Path, rejection: Rejection, model: str | None) -> list[Path]:
    """Write STEM.open_set.json, and beside it the tensors of a score by prototypes; return the files.

    Args:
        stem: path of the predictions without suffix.
        model: version of the model, for the programs that use the threshold; None: of no single model.
    """
    threshold = rejection.threshold
    content = {
        'model': model,
        'score': rejection.score.key['score'],
        'wanted_rate': threshold.max_rate,
        'guaranteed_rate': rejection.guaranteed,
        'threshold': float(np.clip(threshold.value, -_LARGEST, _LARGEST)),
        'unknown': rejection.source,
        'is_left_out': rejection.is_left_out,
        'num_classes': threshold.num_classes,
        'num_images': threshold.num_images,
        'known_accepted': rejection.known_accepted,
        'known_error': rejection.known_error,
        **rejection.metrics,
    }
    files = [stem.with_name(stem.name + ending) for ending in (_JSON, _TENSORS)]
    write_json(files[0], content)
    if not isinstance(rejection.score, PrototypeScore):
        remove(files[1])  # of an earlier prediction
        return files[:1]
    tensors = rejection.score.prototypes.tensors()
    write_bytes(files[1], save(tensors, metadata=with_checksums({}, tensors)))
    return files


class RejectionFile(msgspec.Struct):
    """The content of a file of `write_rejection`."""

    model: str | None
    score: str
    wanted_rate: float
    guaranteed_rate: float | None
    threshold: float
    is_left_out: bool
    num_classes: int
    num_images: int
    known_accepted: float
    auroc: float
    fpr95: float
    oscr: float
    accuracy: float


def latest_rejection(folder: Path, version: str) -> tuple[Path, RejectionFile] | None:
    """Return the newest file of `write_rejection` for a version of a model, and its content; None: there is none.

    Raises:
        UserError: a file is damaged.
    """
    files = sorted(folder.glob(f'*{_JSON}'), key=os.path.getmtime)
    found = [(file, content) for file in files if (content := read_json(file, RejectionFile)).model == version]
    return found[-1] if found else None


def read_rejection(trained: LoadedModel, version: str) -> tuple[KnownScore, float] | None:
    """Return the score and the threshold that test.py has chosen last for a version of the model; None: none.

    Raises:
        UserError: one of its files is damaged.
    """
    found = latest_rejection(trained.folder, version)
    if found is None:
        return None
    file, content = found
    if content.score in LOGIT_SCORES:
        return LogitScore(content.score), content.threshold
    path = file.with_name(file.name.removesuffix(_JSON) + _TENSORS)
    try:
        with safe_open(path, framework='pt') as opened:
            check_safetensors(opened)
            tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
        sizes = {'num_features': trained.engine.num_features, 'num_classes': trained.engine.num_classes}
        prototypes = Prototypes.from_tensors(tensors, **sizes)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f'{path}: {shown(error)}; predict again with --TEST_REJECT_UNKNOWN, or remove {file}') from None
    prototypes = replace(prototypes, means=prototypes.means.to(trained.device.main))
    return PrototypeScore(prototypes), content.threshold
