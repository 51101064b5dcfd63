"""tau-normalization of a trained classifier (Kang et al., ICLR 2020), exact: every tau from one pass.

sweep = TauSweep(weight, bias, max_tau=2.0)
for features, labels in batches:
    sweep.update(features, labels)
images = sweep.finish()
chosen, curve = images.choose('mean_class_error')
if chosen.tau is not None:
    weight, bias = normalize_classifier(weight, chosen.tau)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.metrics.accuracy import count_per_class, metrics_from_counts
from lib.posthoc.tau_curve import Curve, TauRange, choose, standard_error, sweep, weighted_accuracy
from lib.posthoc.tau_intervals import adjustment_intervals, log_norms, log_priors, tau_intervals

# The bias that keeps a class without a norm from winning: below any logit, and far enough from float32's
# end (-3.4e38) that temperature scaling or a sum of logits does not overflow.
NEVER = -1e30

FLAT_NOTE = (
    'all class norms are equal, so tau changes nothing and the curve is flat: post-hoc logit adjustment '
    '(subtract tau * log prior from the logits) is what can re-balance this classifier'
)


def normalize_weight(weight: Tensor, tau: float) -> Tensor:
    """Return the rescaled classifier weight, rows w_j / n_j^tau (Kang et al., 2020, eq. 5); zero rows stay zero.

    Args: weight (num_classes, num_features). Returns a new tensor of the same dtype and device; scaled in
    float64.
    """
    logs = log_norms(weight)
    scale = torch.where(logs.isfinite(), (-tau * logs).exp(), 0.0)
    return (weight.detach().cpu().double() * scale[:, None]).to(weight.dtype).to(weight.device)


def normalize_classifier(weight: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the tau-normalized linear classifier that a checkpoint is saved with.

    The bias is zero, except for classes whose weight is all zeros. Those score 0, which would win wherever all
    others are negative, though such a class was never trained; they get a bias of -1e30, so that the
    saved model ranks exactly as the sweep did.

    Returns: weight (num_classes, num_features), bias (num_classes,), dtype and device of the weight given.
    """
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    bias[(weight.detach() == 0).all(1)] = NEVER
    return normalize_weight(weight, tau), bias


@dataclass(frozen=True)
class ImageIntervals:
    """Interval of tau and prediction of each labeled image, in input order: enough for every tau and metric.

    before_correct: whether the untouched classifier, bias included, is correct (ties are wrong).
    """

    low: np.ndarray  # float64 (n,); correct at tau exactly when low < tau < high
    high: np.ndarray  # float64 (n,)
    before_correct: np.ndarray  # bool (n,)
    predicted: np.ndarray  # int64 (n,), by the untouched classifier; -1 where the image is not readable
    labels: np.ndarray  # int64 (n,)
    num_classes: int
    max_tau: float
    all_equal: bool  # all norms or priors are equal, so the curve is flat by construction

    def correct_at(self, tau: float) -> np.ndarray:
        """Return which images are correct at tau, bool (n,)."""
        return (self.low < tau) & (tau < self.high)

    def curve(self, metric: str) -> Curve:
        """Return 'mean_class_error' or 'top1' for every tau in [0, max_tau]."""
        return sweep(self.low, self.high, self.labels, self.num_classes, metric, self.max_tau)

    def choose(self, metric: str) -> tuple[TauRange, Curve]:
        """Choose the tau to save the model with (None: leave it untouched); return it with the curve."""
        curve = self.curve(metric)
        at_optimum = self.correct_at(curve.middle(curve.best_piece()))
        error = standard_error(at_optimum, self.labels, self.num_classes, metric)
        before = weighted_accuracy(self.before_correct, self.labels, self.num_classes, metric)
        return choose(curve, before, error), curve

    def metrics(self, correct: np.ndarray, train_counts: np.ndarray) -> dict[str, float]:
        """Compute top1, mean_class_error, many, medium, few of `before_correct` or `correct_at(tau)`."""
        return metrics_from_counts(*count_per_class(self.labels, correct, self.num_classes), train_counts)


class Sweep:
    """Collects every image's interval of tau, batch by batch, at about the cost of a plain evaluation.

    Holds a copy of the weight with the classes ordered by `logs`, in which the search is fastest.

    Args:
        weight: float32 (num_classes, num_features), of the untouched classifier; its device does the work.
        bias: (num_classes,), None for a classifier without.
        logs: float64 (num_classes,), logarithms of the norms or priors that are raised to the power tau.
        max_tau: taus are searched in [0, max_tau].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, logs: Tensor, *, max_tau: float) -> None:
        order = logs.argsort(stable=True)
        self.max_tau, self.num_classes = max_tau, len(weight)
        proper = logs[logs.isfinite()]
        self.all_equal = len(proper) < 2 or bool(proper.min() == proper.max())
        self._logs = logs[order]
        self._position = order.argsort().to(weight.device)  # of each class in this order
        self._class_at = order.to(weight.device)
        self._weight = weight.detach()[self._class_at].float()
        self._bias = None if bias is None else bias.detach()[self._class_at].float()
        self._parts: list[tuple[np.ndarray, ...]] = []

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self._weight.device

    def _intervals(self, scores: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ends of the intervals and the logits with bias, from scores without, which may be changed."""
        raise NotImplementedError

    @torch.inference_mode()
    def update(self, features: Tensor, labels: Tensor, readable: Tensor | None = None) -> None:
        """Add a batch. Its scores take num_classes * 4 bytes per image meanwhile.

        Args:
            features: (batch, num_features), converted to float32 on the weight's device.
            labels: int64 (batch,); images labeled -1 are left out.
            readable: bool (batch,); an unreadable image counts as wrong, before and at every tau.
        """
        device = self._weight.device
        known = (labels >= 0).cpu()
        labels = labels.cpu()[known]
        if not len(labels):
            return
        with torch.autocast(device.type, enabled=False):
            features = features[known.to(features.device)].to(device, torch.float32)
            scores = features @ self._weight.T  # (batch, num_classes)
        positions = self._position[labels.to(device)]
        low_end, high_end, logits = self._intervals(scores, positions)
        low, high, best = low_end.cpu().numpy(), high_end.cpu().numpy(), logits.max(1)
        before = _strictly_first(logits, positions, best.values).cpu().numpy()
        predicted = self._class_at[best.indices].cpu().numpy()
        if readable is not None:
            wrong = ~readable.cpu()[known].numpy()
            low[wrong], high[wrong], before[wrong], predicted[wrong] = np.inf, -np.inf, False, -1
        self._parts.append((low, high, before, predicted, labels.numpy()))

    def finish(self, group: ProcessGroup = SINGLE_PROCESS) -> ImageIntervals:
        """Return the intervals of all images of all ranks. Raises ValueError when none had a label."""
        parts = [part for own in group.all_gather_objects(self._parts) for part in own]
        if not parts:
            raise ValueError('tau needs at least one labeled image')
        low, high, before, predicted, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        return ImageIntervals(low, high, before, predicted, labels, self.num_classes, self.max_tau, self.all_equal)


class TauSweep(Sweep):
    """The sweep of tau-normalization: scores without bias, over the classes' norms to the power tau."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, max_tau: float) -> None:
        super().__init__(weight, bias, log_norms(weight), max_tau=max_tau)

    def _intervals(self, scores: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = tau_intervals(scores, positions, self._logs, self.max_tau)
        return low, high, scores if self._bias is None else scores.add_(self._bias)


class AdjustmentSweep(Sweep):
    """The sweep of post-hoc logit adjustment (Menon et al., ICLR 2021, eq. 9): z_j - tau ln prior_j, with bias.

    Args:
        class_counts: (num_classes,) training images, proportional to the prior; a class without any never wins.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, class_counts: Tensor, *, max_tau: float) -> None:
        super().__init__(weight, bias, log_priors(class_counts), max_tau=max_tau)

    def _intervals(self, scores: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = scores if self._bias is None else scores.add_(self._bias)
        low, high = adjustment_intervals(logits, positions, self._logs, self.max_tau)
        return low, high, logits


def _strictly_first(logits: Tensor, labels: Tensor, best: Tensor) -> Tensor:
    """Return whether each label's logit is above all others, bool (batch,); best: (batch,) the largest of each row."""
    own = logits.gather(1, labels[:, None])[:, 0]
    first = (own == best) & (own < torch.inf)
    rows = first.nonzero()[:, 0]
    first[rows] = (logits[rows] == best[rows, None]).sum(1) == 1
    return first


def tau_report(
    chosen: TauRange, curve: Curve, before: dict[str, float], after: dict[str, float], note: str = ''
) -> dict:
    """Return the content of tau.json as JSON values.

    {"chosen": tau, or null where the untouched checkpoint was not beaten and is saved,
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
        'chosen': chosen.tau,
        'optimum': chosen.optimum,
        'optimum_value': chosen.value,
        'metric': curve.metric,
        'standard_error': chosen.standard_error,
        'stretch': list(chosen.ends),
        'before': before,
        'after': after,
        'max_tau': curve.max_tau,
        'curve': curve.as_dict(),
        'note': note,
    }
