"""POSTHOC.METHODS in the config -> classifiers fitted on stored features, measured on other images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lib.config.defaults import Config
from lib.dataset.features import Features
from lib.errors import UserError
from lib.inference.run import logit_batch_size
from lib.metrics.predictions import Predictions, join_predictions
from lib.posthoc.calibration import fit_prior, fit_temperature, fit_temperatures, shot_group_of
from lib.posthoc.class_means import feature_means, nearest_mean
from lib.posthoc.crossfit import cross_fit_tau, stratified_folds
from lib.posthoc.linear_head import GroupScaledHead, LinearHead, fit_scales, head_predictions
from lib.posthoc.tau_intervals import log_priors
from lib.posthoc.tau_sweep import AdjustmentSweep, ImageIntervals, Sweep, TauSweep, normalize_classifier

_ON_TRAIN = 'fitted on training images (optimistic), measured on valid ones'


@dataclass(frozen=True)
class Problem:
    """The inputs of every method.

    Attributes:
        head: the untouched classifier.
        valid: features on which methods are measured.
        fit: features on which they are fitted with POSTHOC.FIT_SPLIT train; None with valid.
        train: features of some training images, for prototypes; None if no method needs them.
        train_counts: (num_classes,) original training counts.
    """

    head: LinearHead
    valid: Features
    fit: Features | None
    train: Features | None
    train_counts: np.ndarray
    cfg: Config


@dataclass(frozen=True)
class Outcome:
    """The result of a method on images that it was not fitted on, and its classifier fitted on all of them.

    Attributes:
        correct: (n,) bool, of the labeled valid images.
        predictions: for these images; None where only `correct` is known.
        parameters: fitted values, one per fold where there are folds.
        head: None if there is no gain, or if the result is not a linear classifier.
        measured: short description of the images that it was fitted and measured on.
    """

    correct: np.ndarray
    predictions: Predictions | None
    parameters: dict[str, Any]
    head: LinearHead | None
    measured: str


Fit = Callable[[Problem, Features, np.ndarray], tuple[LinearHead, dict[str, float]]]


def _by_folds(fit: Fit) -> Callable[[Problem], Outcome]:
    """Return the method that `fit` defines, evaluated on the split of POSTHOC.FIT_SPLIT."""

    def run(problem: Problem) -> Outcome:
        valid, rows = problem.valid, np.flatnonzero(problem.valid.labels >= 0)
        if problem.fit is not None:
            head, parameters = fit(problem, problem.fit, np.arange(len(problem.fit)))
            predictions = head_predictions(head, valid, rows)
            return Outcome(predictions.correct, predictions, dict(parameters), _saveable(head), _ON_TRAIN)
        # Unreadable images are spread separately, so that no fold has only these.
        strata = np.where(valid.readable[rows], valid.labels[rows], problem.head.num_classes)
        folds = stratified_folds(strata, problem.cfg.POSTHOC.FOLDS, seed=problem.cfg.SEED)
        parts, order, per_fold = [], [], []
        for fold in range(problem.cfg.POSTHOC.FOLDS):
            head, parameters = fit(problem, valid, rows[folds != fold])
            parts.append(head_predictions(head, valid, rows[folds == fold]))
            order.append(np.flatnonzero(folds == fold))
            per_fold.append(parameters)
        input_order = np.argsort(np.concatenate(order))
        predictions = join_predictions(parts).at(input_order)
        head, _ = fit(problem, valid, rows)
        lists = {name: [one[name] for one in per_fold] for name in per_fold[0]}
        return Outcome(predictions.correct, predictions, lists, _saveable(head), _folds_text(problem))

    return run


def _by_sweep(
    create: Callable[[Problem], Sweep], use: Callable[[Problem, float], LinearHead]
) -> Callable[[Problem], Outcome]:
    """Return the method whose parameter an exact sweep finds."""

    def run(problem: Problem) -> Outcome:
        metric = problem.cfg.TAU_NORM.SELECT_BY
        images = _swept(create(problem), problem.valid)
        if problem.fit is not None:
            chosen, _ = _swept(create(problem), problem.fit).choose(metric)
            correct = images.before_correct if chosen.tau is None else images.correct_at(chosen.tau)
            taus, measured = [chosen.tau], _ON_TRAIN
        else:
            folds = stratified_folds(images.labels, problem.cfg.POSTHOC.FOLDS, seed=problem.cfg.SEED)
            result = cross_fit_tau(images, metric, folds)
            chosen, _ = images.choose(metric)
            correct, taus, measured = result.correct, result.taus, _folds_text(problem)
        head = None if chosen.tau is None else use(problem, chosen.tau)
        predictions = None
        if head is not None and problem.fit is not None:
            predictions = head_predictions(head, problem.valid).labeled()
        return Outcome(correct, predictions, {'tau': taus}, head, measured)

    return run


def _swept(sweep: Sweep, features: Features) -> ImageIntervals:
    for batch in features.batches(logit_batch_size(sweep.num_classes), sweep.device):
        sweep.update(*batch)
    return sweep.finish()


def _prototypes(cosine: bool) -> Callable[[Problem], Outcome]:
    def run(problem: Problem) -> Outcome:
        assert problem.train is not None  # opened for these methods
        means, counts = feature_means(problem.train, problem.head.num_classes, unit_length=cosine)
        if cosine:
            weight = torch.nn.functional.normalize(means, dim=1).float()
            head = LinearHead(weight, torch.zeros(len(weight))).shifted(torch.where(counts > 0, 0.0, -torch.inf))
        else:
            head = LinearHead(*nearest_mean(means, counts))
        device = problem.head.weight.device
        head = LinearHead(head.weight.to(device), head.bias.to(device))
        predictions = head_predictions(head, problem.valid, np.flatnonzero(problem.valid.labels >= 0))
        measured = 'prototypes of training images, measured on valid ones'
        return Outcome(predictions.correct, predictions, {'images': int(counts.sum())}, head, measured)

    return run


def _shifted_prior(problem: Problem) -> Outcome:
    rows, log_prior = np.flatnonzero(problem.valid.labels >= 0), log_priors(_counts(problem))
    prior = fit_prior(problem.head, problem.valid, rows, log_prior)
    head = problem.head.shifted((prior - log_prior).where(log_prior.isfinite(), -torch.inf))
    predictions = head_predictions(head, problem.valid, rows)
    known = log_prior.isfinite()
    distance = float((prior[known].exp() - log_prior[known].exp()).abs().sum() / 2)
    measured = 'class priors estimated from the valid images without their labels'
    return Outcome(predictions.correct, predictions, {'moved': distance}, head, measured)


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
            'the checkpoint has no counts of training images per class, which logit_adjustment and prior_shift need: '
            'leave them out of POSTHOC.METHODS'
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
