"""ENROLL in the config -> a checkpoint that knows more classes than the one it was made from, without training.

What enrolling writes: an ordinary checkpoint, a validation split of old and new classes, the figures.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib.builders.data import open_named_images, open_valid_split
from lib.builders.split import Split
from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import without_scale
from lib.commands.features import split_features
from lib.commands.loaded_model import LoadedModel
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node, as_text, as_values
from lib.dataset.annotations import ClassNames
from lib.dataset.folder import sample_indices
from lib.dataset.images import FileImages
from lib.errors import UserError
from lib.posthoc.candidate_scores import ScoredFeatures, mean_class_accuracy, score_features
from lib.posthoc.imprint import Imprint, cross_fit_imprint, imprint
from lib.runtime.files import lock_folder, write_json
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import TrainingSet, versions
from lib.trainer.run_folder import RunFolder, set_aside

MODEL, VALID_JSON = 'best_model.pth', 'converted_val.json'


def write_enrolled(
    trained: LoadedModel,
    folder: Path,
    state: dict[str, torch.Tensor],
    classes: ClassNames,
    counts: np.ndarray,
    figures: dict,
    measured: tuple[Split, Split, np.ndarray] | None,
) -> list[Path]:
    """Write the folder and return its files, the model first; an old folder of that name is renamed.

    Args:
        state: of the model, with rows for the new classes.
        classes, counts: names (and parents) of the new classes, and (k,) images that each was enrolled from.
        figures: content of enroll.json.
        measured: the valid split of the old classes, and of the new images which rows measure. Where all are files,
            they become the valid split of the new model.
    """
    if folder.exists() and any(folder.iterdir()):
        LOGGER.info('what was there is kept as %s', set_aside(folder))
    training_set = _training_set(trained, classes, counts)
    with lock_folder(folder, key='ENROLL.OUT'):
        files = [folder / MODEL, folder / 'enroll.json', folder / 'classes.json']
        values = as_values(trained.cfg)
        if measured is not None and _write_valid(folder / VALID_JSON, trained.checkpoint.num_classes, *measured):
            values |= {'DATASET.VALID_JSON': str(folder / VALID_JSON)}
            files.append(folder / VALID_JSON)
        config = as_text(as_node(values | {'ENROLL.IMAGES': '', 'ENROLL.OUT': '', 'OVERWRITE': False}))
        run = RunFolder(folder)
        run.write_about(config, {'device': trained.device.describe(training=False), **versions()})
        names = {'names': training_set.class_names, 'parents': training_set.class_parents}
        write_json(folder / 'classes.json', names)
        write_json(folder / 'enroll.json', figures)
        changes = {'state_dict': state, 'config': config, 'training_set': training_set}
        # There is no going on with training from it.
        changes |= dict.fromkeys(('optimizer', 'training_state', 'scaler', 'history', 'bad_images', 'rng', 'versions'))
        write_checkpoint(folder / MODEL, replace(trained.checkpoint, **changes))
    return files


def _training_set(trained: LoadedModel, classes: ClassNames, counts: np.ndarray) -> TrainingSet:
    known = trained.checkpoint.training_set
    if known is None:
        LOGGER.warning(
            '%s does not know how many images its classes had: many, medium and few mean nothing for the new model',
            trained.checkpoint.path,
        )
    names = [*trained.class_names, *classes.names]
    parents = list(known.class_parents) if known else []
    if parents or classes.parents:
        num_old = len(trained.class_names)
        parents = (parents or [[] for _ in range(num_old)]) + (classes.parents or [[] for _ in classes.names])
    text = f'{known.digest if known else ""} {classes.names} {counts.tolist()}'
    all_counts = np.concatenate([trained.train_counts, counts]).astype(np.int64)
    return TrainingSet(hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest(), all_counts, names, parents)


def _write_valid(path: Path, num_old: int, old: Split, new: Split, new_rows: np.ndarray) -> bool:
    """Write the annotations of old valid images and of new ones; False where some are no files."""
    if not (isinstance(old.images, FileImages) and isinstance(new.images, FileImages)):
        return False
    entries = []
    for split, rows, first in ((old, range(len(old)), 0), (new, new_rows.tolist(), num_old)):
        labels = np.asarray(split.labels).tolist()
        entries += [
            {'category_id': first + labels[row], 'fpath': os.path.abspath(split.images.name(row))} for row in rows
        ]
    write_json(path, {'annotations': entries, 'num_classes': num_old + new.num_classes})
    return True


FOLDS = 5


@dataclass(frozen=True)
class Enrolled:
    """The content of enroll.json, and the files written, the model first."""

    figures: dict
    files: list[Path]


@dataclass(frozen=True)
class _NewImages:
    """Images of new classes: the rows that are enrolled, and the others, which measure. Both can be decoded."""

    split: Split
    classes: ClassNames
    shots: ScoredFeatures
    held: ScoredFeatures
    held_rows: np.ndarray


def enroll(trained: LoadedModel) -> Enrolled:
    """Add the classes of ENROLL.IMAGES to the model, write it into ENROLL.OUT, and measure old and new classes.

    Raises:
        UserError: no images, or classes that are known already; no valid split to choose by; ENROLL.OUT is used.
    """
    cfg = trained.cfg
    folder = Path(cfg.ENROLL.OUT or Path(cfg.LOG_ROOT, f'{cfg.NAME}_enrolled'))
    _check_free(trained, folder)
    new = _new_images(trained)
    valid = _valid_split(trained)
    old = None
    if valid is not None:
        kept = split_features(trained, valid, 'valid')
        old = score_features(trained.model, kept.values, kept.labels).at(np.flatnonzero(kept.readable))
    how = {'norm': _median_norm(trained), 'cosine_scale': _cosine_scale(trained), 'max_loss': cfg.ENROLL.MAX_LOSS}
    chosen = imprint(new.shots, old, **how)
    figures = _figures(trained, new, old, chosen, how)
    files = write_enrolled(
        trained, folder, _state(trained, chosen), new.classes, np.bincount(new.shots.labels), figures,
        None if valid is None else (valid, new.split, new.held_rows),
    )  # fmt: skip
    return Enrolled(figures, files)


def _check_free(trained: LoadedModel, folder: Path) -> None:
    if not trained.cfg.ENROLL.IMAGES:
        raise UserError(
            'ENROLL.IMAGES is not given: --ENROLL_IMAGES FOLDER with a sub-folder a new class, or an annotation JSON'
        )
    if trained.checkpoint.path.resolve().parent == folder.resolve():
        raise UserError(f'ENROLL.OUT {folder} holds RESUME_MODEL {trained.checkpoint.path}: give another folder')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not trained.cfg.OVERWRITE:
        raise UserError(f'{folder} is there already: --OVERWRITE True renames it aside, or give another --ENROLL_OUT')


def _new_images(trained: LoadedModel) -> _NewImages:
    source, per_class = trained.cfg.ENROLL.IMAGES, trained.cfg.ENROLL.PER_CLASS
    if not Path(source).exists():
        raise UserError(f'ENROLL.IMAGES {source}: no such folder or file')
    split, classes = open_named_images(source)
    known = set(trained.class_names)
    both = [name for name in classes.names if name in known]
    if both:
        hint = '' if Path(source).is_dir() else ' (names come from classes.json beside it)'
        raise UserError(
            f'ENROLL.IMAGES {source}: the model knows {both[0]!r} already ({len(both)} of {len(classes.names)} '
            f'classes){hint}; leave them out, or fine-tune on their images'
        )
    kept = split_features(trained, split, 'new_classes', has_its_classes=False)
    features, readable = kept.values, kept.readable
    index, shots = split.index(), []
    for label, name in enumerate(classes.names):
        rows = index.rows_of(label)
        rows = rows[readable[rows]]
        if not len(rows):
            raise UserError(f'ENROLL.IMAGES {source}: not one image of {name!r} can be decoded')
        shots.append(rows[sample_indices(len(rows), name, per_class or len(rows), trained.cfg.SEED)])
    shot_rows = np.concatenate(shots)
    held_rows = np.setdiff1d(np.flatnonzero(readable), shot_rows)
    if not readable.all():
        LOGGER.warning('%s: %d images cannot be decoded and take no part', source, int((~readable).sum()))
    seen = score_features(trained.model, features, np.asarray(split.labels), new=True)
    return _NewImages(split, classes, seen.at(shot_rows), seen.at(held_rows), held_rows)


def _valid_split(trained: LoadedModel) -> Split | None:
    """Return the labelled valid split; None where there is none and old classes may lose anything."""
    try:
        valid = open_valid_split(trained.cfg)
        if not valid.labelled or valid.num_classes != trained.checkpoint.num_classes:
            raise UserError(
                f'{valid.source} has {valid.num_classes} classes{"" if valid.labelled else " and images without label"}'
                f', but {trained.checkpoint.path} knows {trained.checkpoint.num_classes}'
            )
    except UserError as error:
        max_loss = trained.cfg.ENROLL.MAX_LOSS
        if max_loss == KEYS['ENROLL.MAX_LOSS'].high:
            LOGGER.warning('old classes are neither spared nor measured: %s', error)
            return None
        raise UserError(
            f'enrolling is weighed against the old classes on their validation split: {error}; '
            '--ENROLL_MAX_LOSS 1 does without'
        ) from None
    return valid


def _cosine_scale(trained: LoadedModel) -> float | None:
    classifier = trained.model.classifier
    return classifier.scale if isinstance(classifier, CosineClassifier) else None


def _median_norm(trained: LoadedModel) -> float:
    """Return the median length of the old rows, with the scales of their classes worked in."""
    state = {key: value.detach().cpu() for key, value in trained.model.classifier.state_dict().items()}
    norm = float(without_scale(state)['weight'].norm(dim=1).median())
    return norm or 1.0  # rows of nothing but zeros


def _state(trained: LoadedModel, chosen: Imprint) -> dict[str, torch.Tensor]:
    """Return the state of the model with the new rows behind the old ones."""
    state = dict(trained.checkpoint.state_dict)
    rows = {'weight': torch.from_numpy(chosen.weight), 'bias': torch.from_numpy(chosen.bias)}
    rows['scale'] = torch.ones(len(chosen.weight))
    for name, value in rows.items():
        key = f'classifier.{name}'
        if key in state:
            state[key] = torch.cat([state[key], value.to(state[key])])
    return state


def _figures(trained: LoadedModel, new: _NewImages, old: ScoredFeatures | None, chosen: Imprint, how: dict) -> dict:
    """Return the content of enroll.json. What was chosen by images is not measured on them."""
    figures = {
        'num_classes': trained.checkpoint.num_classes + len(new.classes.names),
        'scale': chosen.scale,
        'shift': chosen.shift,
        'centring': chosen.centring,
        'old': {},
        'new': {'num_shots': len(new.shots), 'num_measured': len(new.held)},
        'classes': {},
    }
    if old is not None:
        after = cross_fit_imprint(new.shots, old, folds=FOLDS, **how)
        figures['old'] = {
            'before': mean_class_accuracy(old.labels, old.right),
            'after': mean_class_accuracy(old.labels, after),
            'num_measured': len(old),
            'folds': FOLDS,
        }
    if len(new.held):
        right = chosen.wins(new.held, how['cosine_scale']) == new.held.labels
        figures['new'] |= {'before': 0.0, 'after': mean_class_accuracy(new.held.labels, right)}
    shots, total, hits = (
        np.bincount(labels, weights, len(new.classes.names)).astype(int).tolist()
        for labels, weights in (
            (new.shots.labels, None),
            (new.held.labels, None),
            (new.held.labels, right if len(new.held) else None),
        )
    )
    for name, *counts in zip(new.classes.names, shots, total, hits, strict=True):
        figures['classes'][name] = dict(zip(('shots', 'measured', 'right'), counts, strict=True))
    return figures
