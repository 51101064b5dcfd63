"""POSTHOC.METHODS in the config -> classifiers fitted on kept features, measured on images they did not see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from lib.errors import UserError
from lib.inference.features import Features, logit_batch_size
from lib.metrics.predictions import Predictions, join_predictions
from lib.posthoc.class_means import feature_means, nearest_mean
from lib.posthoc.crossfit import cross_fit_tau, stratified_folds
from lib.posthoc.linear_head import (
    GroupScaledHead,
    LinearHead,
    fit_prior,
    fit_scales,
    fit_temperature,
    fit_temperatures,
    head_predictions,
    shot_group_of,
)
from lib.posthoc.tau_intervals import log_priors
from lib.posthoc.tau_sweep import AdjustmentSweep, ImageIntervals, Sweep, TauSweep, normalize_classifier

_ON_TRAIN = 'fitted on training images (which the model knows: optimistic), measured on all valid ones'


@dataclass(frozen=True)
class Problem:
    """What methods start from.

    Attributes:
        head: the untouched classifier.
        valid: features on which methods are measured.
        fit: features on which they are fitted where POSTHOC.FIT_SPLIT is train; None where it is valid.
        train: a part of the training images' features, for prototypes; None where no method needs them.
        train_counts: (num_classes,) original training counts.
    """

    head: LinearHead
    valid: Features
    fit: Features | None
    train: Features | None
    train_counts: np.ndarray
    cfg: CfgNode


@dataclass(frozen=True)
class Outcome:
    """What a method does to images that it was not fitted on, and the classifier that it makes of all it may see.

    Attributes:
        right: (n,) bool, of the labelled valid images.
        answers: to them; None where only right and wrong are known.
        parameters: what was fitted, in a few words or numbers, fold by fold where there are folds.
        head: None where nothing was gained, or what was fitted is no linear classifier.
        measured: how, in a few words.
    """

    right: np.ndarray
    answers: Predictions | None
    parameters: dict[str, Any]
    head: LinearHead | None
    measured: str


Fit = Callable[[Problem, Features, np.ndarray], tuple[LinearHead, dict[str, float]]]


def _by_folds(fit: Fit) -> Callable[[Problem], Outcome]:
    """Return the method that `fit` is, measured as POSTHOC.FIT_SPLIT says."""

    def run(problem: Problem) -> Outcome:
        valid, rows = problem.valid, np.flatnonzero(problem.valid.labels >= 0)
        if problem.fit is not None:
            head, said = fit(problem, problem.fit, np.arange(len(problem.fit)))
            answers = head_predictions(head, valid, rows)
            return Outcome(answers.right, answers, said, _saveable(head), _ON_TRAIN)
        folds = stratified_folds(valid.labels[rows], problem.cfg.POSTHOC.FOLDS, seed=problem.cfg.SEED)
        parts, order, said = [], [], []
        for fold in range(problem.cfg.POSTHOC.FOLDS):
            head, parameters = fit(problem, valid, rows[folds != fold])
            parts.append(head_predictions(head, valid, rows[folds == fold]))
            order.append(np.flatnonzero(folds == fold))
            said.append(parameters)
        back = np.argsort(np.concatenate(order))
        answers = join_predictions(parts).at(back)
        head, _ = fit(problem, valid, rows)
        parameters = {key: [one[key] for one in said] for key in said[0]}
        return Outcome(answers.right, answers, parameters, _saveable(head), _folds_text(problem))

    return run


def _by_sweep(
    create: Callable[[Problem], Sweep], use: Callable[[Problem, float], LinearHead]
) -> Callable[[Problem], Outcome]:
    """Return the method whose parameter an exact sweep finds."""

    def run(problem: Problem) -> Outcome:
        metric = problem.cfg.TAU_NORM.SELECT_BY
        images = _swept(create(problem), problem.valid)
        if problem.fit is not None:
            choice, _ = _swept(create(problem), problem.fit).choose(metric)
            right, taus = images.before_right if choice.tau is None else images.right_at(choice.tau), [choice.tau]
            measured = _ON_TRAIN
        else:
            folds = stratified_folds(images.labels, problem.cfg.POSTHOC.FOLDS, seed=problem.cfg.SEED)
            found = cross_fit_tau(images, metric, folds)
            choice, _ = images.choose(metric)
            right, taus, measured = found.right, found.taus, _folds_text(problem)
        head = None if choice.tau is None else use(problem, choice.tau)
        answers = head_predictions(head, problem.valid) if head is not None and problem.fit is not None else None
        answers = answers.labelled() if answers else None
        return Outcome(right, answers, {'tau': taus}, head, measured)

    return run


def _swept(sweep: Sweep, features: Features) -> ImageIntervals:
    for batch in features.batches(logit_batch_size(sweep.num_classes), sweep.device):
        sweep.update(*batch)
    return sweep.finish()


def _prototypes(cosine: bool) -> Callable[[Problem], Outcome]:
    def run(problem: Problem) -> Outcome:
        means, counts = feature_means(problem.train, problem.head.num_classes, unit_length=cosine)
        if cosine:
            weight = torch.nn.functional.normalize(means, dim=1).float()
            head = LinearHead(weight, torch.zeros(len(weight))).shifted(torch.where(counts > 0, 0.0, -torch.inf))
        else:
            head = LinearHead(*nearest_mean(means, counts))
        device = problem.head.weight.device
        head = LinearHead(head.weight.to(device), head.bias.to(device))
        answers = head_predictions(head, problem.valid, np.flatnonzero(problem.valid.labels >= 0))
        said = {'images': int(counts.sum())}
        return Outcome(answers.right, answers, said, head, 'prototypes of training images, measured on valid ones')

    return run


def _shifted_prior(problem: Problem) -> Outcome:
    rows, log_prior = np.flatnonzero(problem.valid.labels >= 0), log_priors(_counts(problem))
    shares = fit_prior(problem.head, problem.valid, rows, log_prior)
    head = problem.head.shifted((shares - log_prior).where(log_prior.isfinite(), -torch.inf))
    answers = head_predictions(head, problem.valid, rows)
    known = log_prior.isfinite()
    distance = float((shares[known].exp() - log_prior[known].exp()).abs().sum() / 2)
    measured = 'class shares learnt from the valid images without their labels'
    return Outcome(answers.right, answers, {'moved': distance}, head, measured)


def _scales(problem: Problem, features: Features, rows: np.ndarray) -> tuple[LinearHead, dict[str, float]]:
    scales = fit_scales(problem.head, features, rows, seed=problem.cfg.SEED)
    return problem.head.scaled(scales), {'smallest': float(scales.min()), 'largest': float(scales.max())}


def _temperature(problem: Problem, features: Features, rows: np.ndarray) -> tuple[LinearHead, dict[str, float]]:
    temperature = fit_temperature(problem.head, features, rows)
    return problem.head.scaled(1 / temperature), {'T': temperature}


def _group_temperatures(problem: Problem, features: Features, rows: np.ndarray) -> tuple[LinearHead, dict[str, float]]:
    group_of = shot_group_of(problem.train_counts)
    temperatures = fit_temperatures(problem.head, features, rows, group_of)
    head, device = problem.head, problem.head.weight.device
    inverse = torch.tensor([1 / value for value in temperatures], device=device)
    scaled = GroupScaledHead(head.weight, head.bias, inverse=inverse, group_of=torch.from_numpy(group_of).to(device))
    return scaled, {f'T {name}': value for name, value in zip(('many', 'medium', 'few'), temperatures, strict=True)}


def _counts(problem: Problem) -> torch.Tensor:
    if not problem.train_counts.any():
        raise UserError(
            'the checkpoint does not know how many training images each class had, which logit_adjustment and '
            'prior_shift need: leave them out of POSTHOC.METHODS'
        )
    return torch.from_numpy(problem.train_counts)


METHODS: dict[str, Callable[[Problem], Outcome]] = {
    'tau_norm': _by_sweep(
        lambda problem: TauSweep(problem.head.weight, problem.head.bias, max_tau=problem.cfg.TAU_NORM.MAX_TAU),
        lambda problem, tau: LinearHead(*normalize_classifier(problem.head.weight, tau)),
    ),
    'logit_adjustment': _by_sweep(
        lambda problem: AdjustmentSweep(
            problem.head.weight, problem.head.bias, _counts(problem), max_tau=problem.cfg.TAU_NORM.MAX_TAU
        ),
        lambda problem, tau: problem.head.shifted(-tau * log_priors(_counts(problem))),
    ),
    'lws': _by_folds(_scales),
    'ncm': _prototypes(cosine=False),
    'cosine': _prototypes(cosine=True),
    'prior_shift': _shifted_prior,
    'temperature': _by_folds(_temperature),
    'group_temperature': _by_folds(_group_temperatures),
}


def _folds_text(problem: Problem) -> str:
    return f'cross-fitted in {problem.cfg.POSTHOC.FOLDS} folds of the valid split'


def _saveable(head: LinearHead) -> LinearHead | None:
    return None if isinstance(head, GroupScaledHead) else head
