"""Selection of the best model: the latest epoch that is not worse than the best one by more than one standard error.

With few validation images many epochs are equally good, and the best of many noisy values is mostly noise: of 60 epochs
with 33 images, often one at a high learning rate. So the best epoch is only the reference, and the standard error is
that of the difference on the same images. The best of N equally good epochs is ahead of another one by chance:

    difference - standard error x E_N / sqrt(2) <= standard error,   E_N = E[maximum of N standard normal values]

The second term is this lead, since the variance of a difference is twice that of one epoch. Without it the last of 60
equally good epochs would be selected in 20 % of the runs only, with it in more than 90 %.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import NormalDist

import numpy as np

from lib.metrics.paired import mean_weights, paired_difference
from lib.metrics.predictions import Predictions
from lib.runtime.json_file import Count
from lib.runtime.log import LOGGER

LAST = 'last'  # metric of a selector without validation images
# Relative error of sums in another order; one image more or less than in the best epoch is exactly one standard error.
_ROUNDING = 1e-9
_NAMES = {'mean_class_error': 'mean class error', 'top1': 'top-1 accuracy', 'loss': 'loss'}


@dataclass(frozen=True)
class Selection:
    """The best and the selected epoch so far, as checkpoints hold them.

    Attributes:
        metric, valid_digest: metric and validation images that the other attributes refer to.
        best_epoch, best_result: epoch with the best metric, the latest of equal ones; None before a validation.
        best_scores: (n,) scores of the validation images in that epoch, see ModelSelector.
        num_epochs: epochs that were compared.
        selected_epoch, selected_result: epoch in best_model.pth, and its metric; None before an epoch.
        difference, standard_error, expected: by how much the selected epoch is worse than the best one, the standard
            error of that, and its expectation for equally good epochs.
    """

    metric: str = ''
    valid_digest: str = ''
    best_epoch: Count | None = None
    best_result: float | None = None
    best_scores: np.ndarray | None = field(default=None, compare=False, repr=False)
    num_epochs: Count = 0
    selected_epoch: Count | None = None
    selected_result: float | None = None
    difference: float = 0.0
    standard_error: float = 0.0
    expected: float = 0.0


@dataclass(frozen=True)
class ModelSelector:
    """Decides after each epoch whether it is selected.

    A score of an image is 1 or 0 for a correct or wrong prediction, or minus the loss; the metric is a weighted mean of
    the scores.

    Attributes:
        metric: 'mean_class_error', 'top1' or 'loss'; 'last': every epoch is selected.
        one_standard_error: select the latest epoch within one standard error of the best one; False: the best one, the
            latest of equal ones.
        valid_digest: fingerprint of the validation split.
    """

    metric: str
    one_standard_error: bool = True
    valid_digest: str = ''

    def update(
        self, selection: Selection, epoch: int, metrics: dict[str, float], predictions: Predictions | None
    ) -> Selection:
        """Return the selection after an epoch, whose metrics are {} if it was not validated.

        Scores of other images or of another metric are not comparable, so the selection then starts again.
        """
        if self.metric == LAST:
            return Selection(LAST, selected_epoch=epoch, selected_result=metrics.get('mean_class_error'))
        if not metrics or predictions is None:
            # Until the first validation the newest epoch is the best one.
            return replace(selection, selected_epoch=epoch) if selection.best_epoch is None else selection
        scores, result = self._scores(predictions), metrics.get(self.metric)
        best = Selection(self.metric, self.valid_digest, epoch, result, scores, 1, epoch, result)
        if not self._is_comparable(selection, scores):
            return best
        assert selection.best_scores is not None
        num_epochs = selection.num_epochs + 1
        weights = mean_weights(predictions.labels, per_class=self.metric == 'mean_class_error')
        gain, error = _gain(selection.best_scores, scores, weights)
        if gain >= 0 or (math.isfinite(gain) and -gain <= _ROUNDING * error):
            return replace(best, num_epochs=num_epochs)
        expected = error * expected_maximum(num_epochs) / math.sqrt(2)
        if self.one_standard_error and math.isfinite(gain) and -gain <= (expected + error) * (1 + _ROUNDING):
            return replace(
                selection,
                num_epochs=num_epochs,
                selected_epoch=epoch,
                selected_result=result,
                difference=-gain,
                standard_error=error,
                expected=expected,
            )
        return replace(selection, num_epochs=num_epochs)

    def describe(self, selection: Selection, last_epoch: int) -> list[str]:
        """Return log lines about the selected epoch, its metric and the reason."""
        if selection.selected_epoch is None:  # a finished run of an earlier version
            return []
        selected = f'selected epoch {selection.selected_epoch} of {last_epoch}'
        if selection.best_epoch is None:
            reason = 'there are no images to select by' if self.metric == LAST else 'no file has a better one'
            return [f'{selected}: the last one, since {reason}']
        name, best = _NAMES[self.metric], self._as_text(selection.best_result)
        if selection.selected_epoch == selection.best_epoch:
            has_later = self.one_standard_error and selection.best_epoch < last_epoch
            reason = 'later epochs are worse by more than chance and one standard error'
            return [f'{selected}: best {name}, {best}', *[reason] * has_later]
        difference, error, expected = (
            f'{value:.4f}' if self.metric == 'loss' else f'{100 * value:.1f} points'
            for value in (selection.difference, selection.standard_error, selection.expected)
        )
        return [
            f'{selected}: {name} {self._as_text(selection.selected_result)}; '
            f'best: {best} in epoch {selection.best_epoch}',
            f'{difference} worse; expected by chance {expected}, standard error {error}',
        ]

    def _scores(self, predictions: Predictions) -> np.ndarray:
        if self.metric != 'loss':
            return predictions.correct
        # Unreadable images have no loss; they are the same ones in every epoch, so their differences are 0.
        return -np.where(np.isnan(predictions.losses), np.inf, predictions.losses)

    def _is_comparable(self, selection: Selection, scores: np.ndarray) -> bool:
        if selection.best_epoch is None:
            return False
        same = (selection.metric, selection.valid_digest) == (self.metric, self.valid_digest)
        if same and selection.best_scores is not None and len(selection.best_scores) == len(scores):
            return True
        LOGGER.info('selection starts again: no earlier scores of these images in this metric')
        return False

    def _as_text(self, value: float | None) -> str:
        if value is None:
            return 'unknown'
        return f'{value:.4f}' if self.metric == 'loss' else f'{value:.1%}'


def _gain(best: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return by how much the mean score is higher than that of the best epoch, and the standard error."""
    counted = (weights > 0) & (best != scores)  # leaves out equal infinities, whose difference is not a number
    return paired_difference(best[counted], scores[counted], weights[counted])


@cache
def expected_maximum(num_values: int) -> float:
    """Return the expected maximum of N independent standard normal values.

    The integral of 1 - Phi(x)^N - Phi(-x)^N over x >= 0, by the trapezoidal rule.
    """
    values = np.linspace(0.0, 9.0, 1801)
    above = np.array([NormalDist().cdf(-value) for value in values])
    heights = 1 - (1 - above) ** num_values - above**num_values
    return float(np.trapezoid(heights, values))
