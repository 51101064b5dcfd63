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

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.metrics.accuracy import metrics_from_counts
from lib.posthoc.tau_curve import Curve, TauRange, accuracy, choose, standard_error, sweep
from lib.posthoc.tau_intervals import adjustment_intervals, log_norms, log_priors, tau_intervals

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
    predicted: np.ndarray  # int64 (n,), by the untouched classifier; -1 where the image is not readable
    labels: np.ndarray  # int64 (n,)
    num_classes: int
    max_tau: float
    all_equal: bool  # norms or priors are, so that the curve is flat by construction

    def right_at(self, tau: float) -> np.ndarray:
        """Which images are right at tau: bool (n,)."""
        return (self.low < tau) & (tau < self.high)

    def curve(self, metric: str) -> Curve:
        """'mean_class_error' or 'top1' for every tau in [0, max_tau]."""
        return sweep(self.low, self.high, self.labels, self.num_classes, metric, self.max_tau)

    def choose(self, metric: str) -> tuple[TauRange, Curve]:
        """The tau to save the model with (None: keep it untouched), and the curve that it was chosen on."""
        curve = self.curve(metric)
        at_optimum = self.right_at(curve.middle(curve.best_piece()))
        error = standard_error(at_optimum, self.labels, self.num_classes, metric)
        before = accuracy(self.before_right, self.labels, self.num_classes, metric)
        return choose(curve, before, error), curve

    def metrics(self, right: np.ndarray, train_counts: np.ndarray) -> dict[str, float]:
        """top1, mean_class_error, many, medium, few of right answers (`before_right`, `right_at(tau)`)."""
        counts = [np.bincount(part, minlength=self.num_classes) for part in (self.labels[right], self.labels)]
        return metrics_from_counts(*counts, train_counts)


class Sweep:
    """Collects every image's interval of tau, batch by batch, at about the cost of a plain evaluation.

    Keeps a copy of the weight with the classes in order of what is scaled by tau, in which the search is fastest.

    Args:
        weight: float32 (num_classes, num_features), of the untouched classifier; its device does the work.
        bias: (num_classes,), None for a classifier without.
        logs: float64 (num_classes,), logarithms of what tau is the power of.
        max_tau: taus are searched in [0, max_tau].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, logs: Tensor, *, max_tau: float) -> None:
        order = logs.argsort(stable=True)
        self.max_tau, self.num_classes = max_tau, len(weight)
        proper = logs[logs.isfinite()]
        self.all_equal = len(proper) < 2 or bool(proper.min() == proper.max())
        self._logs = logs[order]
        self._place = order.argsort().to(weight.device)  # where a class went
        self._class_at = order.to(weight.device)
        self._weight = weight.detach()[self._class_at].float()
        self._bias = None if bias is None else bias.detach()[self._class_at].float()
        self._parts: list[tuple[np.ndarray, ...]] = []

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self._weight.device

    def _look(self, scores: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ends of the intervals and the logits with bias, of scores without, which may change."""
        raise NotImplementedError

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
        low, high, logits = self._look(scores, places)
        low, high, best = low.cpu().numpy(), high.cpu().numpy(), logits.max(1)
        before = _strictly_first(logits, places, best.values).cpu().numpy()
        predicted = self._class_at[best.indices].cpu().numpy()
        if readable is not None:
            wrong = ~readable.cpu()[known].numpy()
            low[wrong], high[wrong], before[wrong], predicted[wrong] = np.inf, -np.inf, False, -1
        self._parts.append((low, high, before, predicted, labels.numpy()))

    def finish(self, group: ProcessGroup = SINGLE_PROCESS) -> ImageIntervals:
        """All images seen so far, by all ranks. Raises ValueError when none had a label."""
        parts = [part for own in group.all_gather_objects(self._parts) for part in own]
        if not parts:
            raise ValueError('tau needs at least one labelled image')
        arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
        return ImageIntervals(*arrays, self.num_classes, self.max_tau, self.all_equal)


class TauSweep(Sweep):
    """The sweep of tau-normalisation: scores without bias, over the classes' norms to the power tau."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, max_tau: float) -> None:
        super().__init__(weight, bias, log_norms(weight), max_tau=max_tau)

    def _look(self, scores: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = tau_intervals(scores, places, self._logs, self.max_tau)
        return low, high, scores if self._bias is None else scores.add_(self._bias)


class AdjustmentSweep(Sweep):
    """The sweep of post-hoc logit adjustment (Menon et al., ICLR 2021, eq. 9): z_j - tau ln prior_j, bias kept.

    Args:
        class_counts: (num_classes,) training images, which make the prior; a class without any never wins.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, class_counts: Tensor, *, max_tau: float) -> None:
        super().__init__(weight, bias, log_priors(class_counts), max_tau=max_tau)

    def _look(self, scores: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = scores if self._bias is None else scores.add_(self._bias)
        low, high = adjustment_intervals(logits, places, self._logs, self.max_tau)
        return low, high, logits


def _strictly_first(logits: Tensor, labels: Tensor, best: Tensor) -> Tensor:
    """Whether each label's logit is above all others: bool (batch,). `best`: (batch,) the largest of each row."""
    own = logits.gather(1, labels[:, None])[:, 0]
    first = (own == best) & (own < torch.inf)
    rows = first.nonzero()[:, 0]
    first[rows] = (logits[rows] == best[rows, None]).sum(1) == 1
    return first


def tau_report(
    choice: TauRange, curve: Curve, before: dict[str, float], after: dict[str, float], note: str = ''
) -> dict:
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
