"""tau-normalisation of a trained classifier (Kang et al., ICLR 2020), exact: every tau from one pass.

sweep = TauSweep(weight, bias, max_tau=2.0)
for features, labels in batches:
    sweep.update(features, labels)
images = sweep.finish()
choice, curve = images.choose('mean_class_error')
if choice.tau is not None:
    weight, bias = normalize_classifier(weight, choice.tau)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.evaluation.accuracy import class_accuracy_metrics
from lib.evaluation.intervals import log_norms, tau_intervals
from lib.evaluation.sweep import Choice, Curve, accuracy, choose, standard_error, sweep
from lib.runtime.ranks import ALONE, Ranks

# The bias that keeps a class without a norm from winning: below any logit, and far enough from float32's
# end (-3.4e38) that temperature scaling or a sum of logits does not overflow.
NEVER = -1e30

FLAT_NOTE = (
    'all class norms are equal, so tau changes nothing and the curve is flat: post-hoc logit adjustment '
    '(subtract tau * log prior from the logits) is what can re-balance this classifier'
)


def normalize_weight(weight: Tensor, tau: float) -> Tensor:
    """Rescaled classifier weight, rows w_j / n_j^tau (Kang et al., 2020, eq. 5); zero rows stay zero.

    Args: weight (num_classes, num_features). Returns a new tensor of the same dtype and device; scaled in
    float64.
    """
    logs = log_norms(weight)
    scale = torch.where(logs.isfinite(), (-tau * logs).exp(), 0.0)
    return (weight.detach().cpu().double() * scale[:, None]).to(weight.dtype).to(weight.device)


def normalize_classifier(weight: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the tau-normalised linear classifier that a checkpoint is saved with.

    The bias is zero, but for classes whose weight is all zeros. Those score 0, which would win wherever all
    others are negative, though such a class has learned nothing; they get a bias of -1e30, so that the
    saved model ranks exactly as the sweep did.

    Returns: weight (num_classes, num_features), bias (num_classes,), dtype and device of the weight given.
    """
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    bias[(weight.detach() == 0).all(1)] = NEVER
    return normalize_weight(weight, tau), bias


@dataclass(frozen=True)
class ImageIntervals:
    """What one pass learns about each labelled image, in the order seen: enough for every tau and metric.

    before_right says whether the untouched classifier, bias included, is right (ties are wrong).
    """

    low: np.ndarray  # float64 (n,); right at tau exactly when low < tau < high
    high: np.ndarray  # float64 (n,)
    before_right: np.ndarray  # bool (n,)
    labels: np.ndarray  # int64 (n,)
    num_classes: int
    max_tau: float
    equal_norms: bool  # the curve is flat by construction

    def right_at(self, tau: float) -> np.ndarray:
        """Which images are right at tau: bool (n,)."""
        return (self.low < tau) & (tau < self.high)

    def curve(self, metric: str) -> Curve:
        """'mean_class_error' or 'top1' for every tau in [0, max_tau]."""
        return sweep(self.low, self.high, self.labels, self.num_classes, metric, self.max_tau)

    def choose(self, metric: str) -> tuple[Choice, Curve]:
        """The tau to save the model with (None: keep it untouched), and the curve that it was chosen on."""
        curve = self.curve(metric)
        at_optimum = self.right_at(curve.middle(curve.best_piece()))
        error = standard_error(at_optimum, self.labels, self.num_classes, metric)
        before = accuracy(self.before_right, self.labels, self.num_classes, metric)
        return choose(curve, before, error), curve

    def metrics(self, right: np.ndarray, train_counts: np.ndarray) -> dict[str, float]:
        """top1, mean_class_error, many, medium, few of right answers (`before_right`, `right_at(tau)`)."""
        counts = [np.bincount(part, minlength=self.num_classes) for part in (self.labels[right], self.labels)]
        return class_accuracy_metrics(*counts, train_counts)


class TauSweep:
    """Collects every image's interval of tau, batch by batch, at about the cost of a plain evaluation.

    Keeps a copy of the weight with the classes in order of their norms, in which the search is fastest.

    Args:
        weight: float32 (num_classes, num_features), of the untouched classifier; its device does the work.
        bias: (num_classes,), None for a classifier without.
        max_tau: taus are searched in [0, max_tau].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, max_tau: float) -> None:
        logs = log_norms(weight)
        order = logs.argsort(stable=True)
        self.max_tau, self.num_classes = max_tau, len(weight)
        proper = logs[logs.isfinite()]
        self.equal_norms = len(proper) < 2 or bool(proper.min() == proper.max())
        self._log_norms = logs[order]
        self._place = order.argsort().to(weight.device)  # where a class went
        order = order.to(weight.device)
        self._weight = weight.detach()[order].float()
        self._bias = None if bias is None else bias.detach()[order].float()
        self._parts: list[tuple[np.ndarray, ...]] = []

    @torch.inference_mode()
    def update(self, features: Tensor, labels: Tensor, readable: Tensor | None = None) -> None:
        """Add a batch. Its scores take num_classes * 4 bytes an image while this runs.

        Args:
            features: (batch, num_features), taken to float32 and the weight's device.
            labels: int64 (batch,); images labelled -1 are passed over.
            readable: bool (batch,); an image that is not readable counts as wrong, before and at every tau.
        """
        device = self._weight.device
        known = (labels >= 0).cpu()
        labels = labels.cpu()[known]
        if not len(labels):
            return
        with torch.autocast(device.type, enabled=False):
            features = features[known.to(features.device)].to(device, torch.float32)
            scores = features @ self._weight.T  # (batch, num_classes)
        places = self._place[labels.to(device)]
        ends = tau_intervals(scores, places, self._log_norms, self.max_tau)
        low, high = (end.cpu().numpy() for end in ends)
        if self._bias is None:
            before = (low < 0) & (high > 0)
        else:
            before = _strictly_first(scores.add_(self._bias), places).cpu().numpy()
        if readable is not None:
            wrong = ~readable.cpu()[known].numpy()
            low[wrong], high[wrong], before[wrong] = np.inf, -np.inf, False
        self._parts.append((low, high, before, labels.numpy()))

    def finish(self, ranks: Ranks = ALONE) -> ImageIntervals:
        """All images seen so far, by all ranks. Raises ValueError when none had a label."""
        parts = [part for own in ranks.gather(self._parts) for part in own]
        if not parts:
            raise ValueError('tau needs at least one labelled image')
        arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
        return ImageIntervals(*arrays, self.num_classes, self.max_tau, self.equal_norms)


def _strictly_first(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each label's logit is above all others: bool (batch,). Overwrites the logits of the labels."""
    own = logits.gather(1, labels[:, None])
    rivals = logits.scatter_(1, labels[:, None], -torch.inf).amax(1)
    return (rivals < own[:, 0]) & (own[:, 0] < torch.inf)


def tau_report(choice: Choice, curve: Curve, before: dict[str, float], after: dict[str, float], note: str = '') -> dict:
    """The content of tau.json: plain JSON values.

    {"chosen": tau, or null where the untouched checkpoint was not beaten and is kept,
     "optimum": middle of the best plateau,
     "optimum_value": the metric there,
     "metric": "mean_class_error" (an error) or "top1" (an accuracy),
     "standard_error": of the metric at the optimum,
     "stretch": [low, high], the taus whose middle was chosen,
     "before": {"top1": ..., "mean_class_error": ..., "many": ..., "medium": ..., "few": ...},
     "after": the same of the saved model,
     "max_tau": end of the searched range,
     "curve": {"tau": [breaks, ascending], "value": [the metric on each open piece, one more than breaks]},
     "note": text}

    Draw the curve as steps over the edges [0, *tau, max_tau]; at a break itself tied images count as wrong.
    """
    return {
        'chosen': choice.tau,
        'optimum': choice.optimum,
        'optimum_value': choice.value,
        'metric': curve.metric,
        'standard_error': choice.standard_error,
        'stretch': list(choice.stretch),
        'before': before,
        'after': after,
        'max_tau': curve.max_tau,
        'curve': curve.as_dict(),
        'note': note,
    }
