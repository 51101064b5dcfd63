"""tools/posthoc.py's work: classifiers re-balanced and calibrated on kept features, and how they are measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from lib.builders.data import open_training_data, open_valid_split
from lib.builders.split import Split, some_of
from lib.commands.features import split_features
from lib.commands.loaded_model import LoadedModel
from lib.commands.posthoc_methods import METHODS, Outcome, Problem
from lib.commands.tau_norm import check_free, linear_classifier, write_rebalanced
from lib.errors import UserError
from lib.metrics.confidence import reliability
from lib.metrics.intervals import accuracy_interval
from lib.posthoc.linear_head import LinearHead, head_predictions
from lib.report.describe import describe_posthoc
from lib.runtime.files import write_json
from lib.runtime.log import LOGGER


def run_posthoc(trained: LoadedModel) -> tuple[list[str], list[Path]]:
    """Fit and measure POSTHOC.METHODS, write posthoc.json and what POSTHOC.SAVE asks for; return lines and files.

    Raises:
        UserError: no labelled valid split; a method that is not one; the result would overwrite an earlier one.
    """
    options = trained.cfg.POSTHOC
    names = _names(options.METHODS)
    if options.SAVE and options.SAVE not in METHODS:
        raise UserError(f'POSTHOC.SAVE is {options.SAVE!r}, but must be one of {", ".join(METHODS)}')
    folder = Path(trained.cfg.TAU_NORM.LOG_ROOT, trained.cfg.NAME)
    if options.SAVE:
        check_free(folder, trained)
        names = list(dict.fromkeys([*names, options.SAVE]))
    problem = _problem(trained, names)
    rows = np.flatnonzero(problem.valid.labels >= 0)
    before = head_predictions(problem.head, problem.valid, rows)
    outcomes = {'before': Outcome(before.right, before, {}, None, '')}
    for name in names:
        outcomes[name] = METHODS[name](problem)
        LOGGER.info('%s: %s', name, outcomes[name].measured)
    found = {name: _figures(outcome, before.labels, problem.head.num_classes) for name, outcome in outcomes.items()}
    files = [trained.folder / 'posthoc.json']
    write_json(files[0], {'fit_split': options.FIT_SPLIT, 'folds': options.FOLDS, 'methods': found})
    if options.SAVE:
        head = outcomes[options.SAVE].head
        if head is None:
            raise UserError(f'POSTHOC.SAVE {options.SAVE}: there is nothing to save, since {_why_not(options.SAVE)}')
        files += write_rebalanced(trained, folder, head.weight, head.bias)
    return describe_posthoc(found), files


def _why_not(name: str) -> str:
    if name == 'group_temperature':
        return 'temperatures by the predicted group are no linear classifier'
    return 'the untouched classifier was not beaten'


def _problem(trained: LoadedModel, names: Sequence[str]) -> Problem:
    options = trained.cfg.POSTHOC
    valid_split = open_valid_split(trained.cfg)
    if not (valid_split.labels >= 0).any():
        raise UserError(f'{valid_split.source}: its images have no labels, so nothing can be measured')
    valid = split_features(trained, valid_split, 'valid')
    train = None
    if options.FIT_SPLIT == 'train' or {'ncm', 'cosine'} & set(names):
        train = split_features(trained, _holdout(trained.cfg), 'train_part')
    return Problem(
        LinearHead(*linear_classifier(trained)),
        valid,
        train if options.FIT_SPLIT == 'train' else None,
        train,
        trained.train_counts,
        trained.cfg,
    )


def _holdout(cfg: CfgNode) -> Split:
    """Return at most POSTHOC.HOLDOUT training images a class, drawn by SEED."""
    train = open_training_data(cfg).train
    order = np.random.default_rng(cfg.SEED).permutation(len(train))
    order = order[np.argsort(train.labels[order], kind='stable')]
    labels = train.labels[order]
    place = np.arange(len(order)) - np.searchsorted(labels, labels)
    return some_of(train, np.sort(order[place < cfg.POSTHOC.HOLDOUT]))


def _names(text: str) -> list[str]:
    names = list(METHODS) if text == 'all' else [part.strip() for part in text.split(',') if part.strip()]
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise UserError(f"POSTHOC.METHODS is {text!r}, but must be 'all' or some of {', '.join(METHODS)}")
    return names


def _figures(outcome: Outcome, labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    right, total = (np.bincount(labels[rows], minlength=num_classes) for rows in (outcome.right, labels >= 0))
    low, high = accuracy_interval(right, total)
    seen = total > 0
    figures: dict[str, Any] = {
        'mean_class_error': 1 - float((right[seen] / total[seen]).mean()),
        'interval': [1 - high, 1 - low],
        'top1': float(outcome.right.mean()),
        'measured': outcome.measured,
        'parameters': outcome.parameters,
    }
    answers = outcome.answers
    if answers is not None:
        readable = answers.predicted >= 0
        figures['loss'] = float(np.nanmean(answers.losses.astype(np.float64)))
        figures['ece'] = reliability(answers.confidence[readable], answers.right[readable])['ece']
    return figures
