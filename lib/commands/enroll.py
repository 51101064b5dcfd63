"""ENROLL in the config -> a checkpoint that knows more classes than the one it was made from, without training."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.builders.data import open_named_images, open_valid_split
from lib.builders.split import Split
from lib.classifier.cosine import Cosine
from lib.classifier.lws import without_scale
from lib.commands.enroll_files import write_enrolled
from lib.commands.features import split_features
from lib.commands.loaded_model import Trained
from lib.config.defaults import KEYS
from lib.dataset.annotations import ClassNames
from lib.dataset.hold_out import chosen_few
from lib.errors import UserError
from lib.posthoc.candidate_scores import Seen, mean_class_accuracy, seen_by
from lib.posthoc.imprint import Imprint, cross_fitted, imprint
from lib.runtime.log import LOGGER

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
    shots: Seen
    held: Seen
    held_rows: np.ndarray


def enroll(trained: Trained) -> Enrolled:
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
        old = seen_by(trained.model, kept.values, kept.labels).at(np.flatnonzero(kept.readable))
    how = {'norm': _median_norm(trained), 'cosine_scale': _cosine_scale(trained), 'max_loss': cfg.ENROLL.MAX_LOSS}
    chosen = imprint(new.shots, old, **how)
    figures = _figures(trained, new, old, chosen, how)
    files = write_enrolled(
        trained, folder, _state(trained, chosen), new.classes, np.bincount(new.shots.labels), figures,
        None if valid is None else (valid, new.split, new.held_rows),
    )  # fmt: skip
    return Enrolled(figures, files)


def _check_free(trained: Trained, folder: Path) -> None:
    if not trained.cfg.ENROLL.IMAGES:
        raise UserError(
            'ENROLL.IMAGES is not given: --ENROLL_IMAGES FOLDER with a sub-folder a new class, or an annotation JSON'
        )
    if trained.checkpoint.path.resolve().parent == folder.resolve():
        raise UserError(f'ENROLL.OUT {folder} holds RESUME_MODEL {trained.checkpoint.path}: give another folder')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not trained.cfg.OVERWRITE:
        raise UserError(f'{folder} is there already: --OVERWRITE True renames it aside, or give another --ENROLL_OUT')


def _new_images(trained: Trained) -> _NewImages:
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
        shots.append(rows[chosen_few(len(rows), name, per_class or len(rows), trained.cfg.SEED)])
    shot_rows = np.concatenate(shots)
    held_rows = np.setdiff1d(np.flatnonzero(readable), shot_rows)
    if not readable.all():
        LOGGER.warning('%s: %d images cannot be decoded and take no part', source, int((~readable).sum()))
    seen = seen_by(trained.model, features, np.asarray(split.labels), new=True)
    return _NewImages(split, classes, seen.at(shot_rows), seen.at(held_rows), held_rows)


def _valid_split(trained: Trained) -> Split | None:
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


def _cosine_scale(trained: Trained) -> float | None:
    classifier = trained.model.classifier
    return classifier.scale if isinstance(classifier, Cosine) else None


def _median_norm(trained: Trained) -> float:
    """Return the median length of the old rows, with the scales of their classes worked in."""
    state = {key: value.detach().cpu() for key, value in trained.model.classifier.state_dict().items()}
    norm = float(without_scale(state)['weight'].norm(dim=1).median())
    return norm or 1.0  # rows of nothing but zeros


def _state(trained: Trained, chosen: Imprint) -> dict[str, torch.Tensor]:
    """Return the state of the model with the new rows behind the old ones."""
    state = dict(trained.checkpoint.state_dict)
    rows = {'weight': torch.from_numpy(chosen.weight), 'bias': torch.from_numpy(chosen.bias)}
    rows['scale'] = torch.ones(len(chosen.weight))
    for name, value in rows.items():
        key = f'classifier.{name}'
        if key in state:
            state[key] = torch.cat([state[key], value.to(state[key])])
    return state


def _figures(trained: Trained, new: _NewImages, old: Seen | None, chosen: Imprint, how: dict) -> dict:
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
        after = cross_fitted(new.shots, old, folds=FOLDS, **how)
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
