"""tools/posthoc.py: re-balance and calibrate classifiers on stored features, and measure them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel, split_features, training_sample
from lib.commands.posthoc_methods import METHODS, Outcome, Problem
from lib.commands.tau_norm import check_free, linear_classifier, write_rebalanced
from lib.dataset.features import Features
from lib.errors import UserError, shown
from lib.metrics.accuracy import count_per_class, mean_over_classes
from lib.metrics.confidence import reliability
from lib.metrics.intervals import accuracy_interval
from lib.posthoc.linear_head import LinearHead, head_predictions
from lib.report.describe import describe_posthoc
from lib.runtime.files import write_json
from lib.runtime.log import LOGGER


def run_posthoc(trained: LoadedModel) -> tuple[list[str], list[Path]]:
    """Fit and measure POSTHOC.METHODS, write posthoc.json and the model POSTHOC.SAVE; return log lines and files.

    Ranks share the passes over images; the main rank does the rest, and the others return nothing.

    Raises:
        UserError: no labeled valid split; an unknown method; the result would overwrite an earlier one.
    """
    options = trained.cfg.POSTHOC
    names = _names(options.METHODS)
    if options.SAVE and options.SAVE not in METHODS:
        raise UserError(f'POSTHOC.SAVE is {shown(options.SAVE)}, but must be one of {", ".join(METHODS)}')
    folder = Path(trained.cfg.TAU_NORM.LOG_ROOT, trained.cfg.NAME)
    if options.SAVE:
        check_free(folder, trained)
        names = list(dict.fromkeys([*names, options.SAVE]))
    problem = _problem(trained, names)
    if not trained.group.is_main:
        return [], []
    rows = np.flatnonzero(problem.valid.labels >= 0)
    before = head_predictions(problem.head, problem.valid, rows)
    outcomes = {'before': Outcome(before.correct, before, {}, None, '')}
    for name in names:
        outcomes[name] = METHODS[name](problem)
        LOGGER.info('%s: %s', name, outcomes[name].measured)
    metrics = {name: _metrics(outcome, before.labels, problem.head.num_classes) for name, outcome in outcomes.items()}
    files = [trained.folder / 'posthoc.json']
    write_json(files[0], {'fit_split': options.FIT_SPLIT, 'folds': options.FOLDS, 'methods': metrics})
    if options.SAVE:
        head = outcomes[options.SAVE].head
        if head is None:
            raise UserError(f'POSTHOC.SAVE {options.SAVE}: nothing to save, since {_why_not(options.SAVE)}')
        files += write_rebalanced(trained, folder, head.weight, head.bias)
    return describe_posthoc(metrics), files


def _why_not(name: str) -> str:
    if name == 'group_temperature':
        return 'temperatures by the predicted group are not a linear classifier'
    return 'the untouched classifier was not beaten'


def _problem(trained: LoadedModel, names: Sequence[str]) -> Problem:
    options = trained.cfg.POSTHOC
    with trained.group.main_first():
        valid_split = trained.valid
    if not (valid_split.labels >= 0).any():
        raise UserError(f'{valid_split.source}: its images have no labels, so no metric can be computed')
    valid = split_features(trained, valid_split, 'valid')
    _check_images(valid, valid_split, options.FOLDS if options.FIT_SPLIT == 'valid' else 1)
    train = None
    if options.FIT_SPLIT == 'train' or {'ncm', 'cosine'} & set(names):
        with trained.group.main_first():
            holdout = training_sample(trained)
        train = split_features(trained, holdout, 'train_part')
        _check_images(train, holdout, 1)
    return Problem(
        LinearHead(*linear_classifier(trained)),
        valid,
        train if options.FIT_SPLIT == 'train' else None,
        train,
        trained.train_counts,
        trained.cfg,
    )


def _check_images(features: Features, split: DatasetSplit, num_folds: int) -> None:
    """Raise UserError if no image, or fewer images than folds, have a label and can be decoded."""
    number = int(((features.labels >= 0) & features.readable).sum())
    if number == 0:
        raise UserError(f'{split.source}: none of its labeled images can be decoded{split.heic_hint}')
    if number < num_folds:
        images = '1 labeled image that can be decoded' if number == 1 else f'{number} labeled images'
        hint = '--POSTHOC_FIT_SPLIT train' if number == 1 else f'--POSTHOC_FOLDS {number}'
        raise UserError(f'POSTHOC.FOLDS is {num_folds}, but {split.source} has only {images}: {hint}')


def _names(given: Sequence[str]) -> list[str]:
    names = list(METHODS) if given == ('all',) else list(given)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        text = shown(','.join(given))
        raise UserError(f"POSTHOC.METHODS is {text}, but must be 'all' or some of {', '.join(METHODS)}")
    return names


def _metrics(outcome: Outcome, labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    correct, total = count_per_class(labels, outcome.correct, num_classes)
    low, high = accuracy_interval(correct, total)
    metrics: dict[str, Any] = {
        'mean_class_error': 1 - mean_over_classes(correct, total),
        'interval': [1 - high, 1 - low],
        'top1': float(outcome.correct.mean()),
        'measured': outcome.measured,
        'parameters': outcome.parameters,
    }
    predictions = outcome.predictions
    if predictions is not None:
        readable = predictions.predicted >= 0
        metrics['loss'] = float(np.nanmean(predictions.losses.astype(np.float64)))
        metrics['ece'] = reliability(predictions.confidence[readable], predictions.correct[readable])['ece']
    return metrics
