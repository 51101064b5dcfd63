"""Multinomial logistic regression on stored features by L-BFGS, block by block in bounded memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lib.posthoc.judged_images import JudgedImages, row_blocks
from lib.posthoc.linear_head import LinearHead
from lib.posthoc.tau_sweep import NEVER

STRENGTHS = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
NUM_ITERATIONS = 30
USUAL_FITS = 4  # until `select` stops
_HISTORY = 10
_MAX_CACHED = 1 << 27  # standardized features in memory during a fit: 512 MB
_Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # inputs, labels, weights


class LogisticRegression:
    """Minimizes weighted mean cross entropy + lambda / 2 |W|^2 on standardized unit features; the bias is free.

    Args:
        images: features, labels and weights.
        device: the one that computes.
    """

    def __init__(self, images: JudgedImages, device: torch.device) -> None:
        self._images, self._device = images, device
        self._mean, self._scale = images.moments(device)

    def path(self, positions: np.ndarray, strengths: Sequence[float]) -> Iterator[tuple[float, LinearHead]]:
        """Yield (lambda, classifier of unit features) for some of the images, each fit starting from the one before.

        A class without images of positive weight among them has a bias that never wins.
        """
        images = self._images
        weight = torch.zeros(images.num_classes, images.num_features, device=self._device)
        bias = torch.zeros(images.num_classes, device=self._device)
        positions = positions[images.weights[positions] > 0]
        absent = torch.ones(images.num_classes, dtype=torch.bool, device=self._device)
        absent[torch.from_numpy(images.labels[positions]).to(self._device)] = False
        for strength in strengths:
            self._minimize(weight, bias.masked_fill_(absent, NEVER), positions, strength)
            scaled = weight / self._scale
            yield strength, LinearHead(scaled, (bias - scaled @ self._mean).masked_fill(absent, NEVER))

    def fit(self, positions: np.ndarray, strength: float) -> LinearHead:
        """Return the classifier of unit features for one lambda, after larger ones, from which it starts."""
        return [head for _, head in self.path(positions, [strength])][-1]

    def select(self, positions: np.ndarray, held_out: np.ndarray) -> tuple[float, LinearHead]:
        """Return the fit with the smallest loss on other images: lambda decreases until that loss rises."""
        best, least = None, float('inf')
        for strength, head in self.path(positions, STRENGTHS):
            loss = self.loss(head, held_out)
            if best is not None and not loss < least:
                break
            best, least = (strength, head), loss
        assert best is not None
        return best

    @torch.inference_mode()
    def loss(self, head: LinearHead, positions: np.ndarray) -> float:
        """Return the weighted mean cross entropy of images whose class the classifier knows; nan if there is none."""
        total, weight = 0.0, 0.0
        is_known = head.bias > NEVER / 2
        for some in self._blocks(positions):
            features, labels, weights = self._images.at(some, self._device)
            losses = torch.nn.functional.cross_entropy(head.logits(features), labels, reduction='none')
            total += float((losses * weights)[is_known[labels]].sum())
            weight += float(weights[is_known[labels]].sum())
        return total / weight if weight > 0 else float('nan')

    def _blocks(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        return row_blocks(positions, max(self._images.num_classes, self._images.num_features))

    def _minimize(self, weight: torch.Tensor, bias: torch.Tensor, positions: np.ndarray, strength: float) -> None:
        """Fit weight and bias in place."""
        weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
        total = float(self._images.weights[positions].sum(dtype=np.float64)) or 1.0
        blocks = list(self._blocks(positions))
        is_small = len(positions) * self._images.num_features <= _MAX_CACHED
        cached = [self._standardized(some) for some in blocks] if is_small else None

        def evaluate() -> float:
            torch.mul(weight, strength, out=weight.grad)
            torch.mul(bias, 0.0, out=bias.grad)
            loss = strength / 2 * float(weight.square().sum())
            batches = cached or map(self._standardized, blocks)
            return loss + sum(self._add_gradient(weight, bias, batch, total) for batch in batches)

        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=NUM_ITERATIONS, history_size=_HISTORY, line_search_fn='strong_wolfe'
        )
        optimizer.step(evaluate)

    def _standardized(self, positions: np.ndarray) -> _Batch:
        features, labels, weights = self._images.at(positions, self._device)
        return features.sub_(self._mean).div_(self._scale), labels, weights

    @torch.no_grad()
    def _add_gradient(self, weight: torch.Tensor, bias: torch.Tensor, batch: _Batch, total: float) -> float:
        """Add the gradient of some images, and return their part of the loss."""
        inputs, labels, weights = batch
        log_probs = torch.nn.functional.linear(inputs, weight, bias).log_softmax(dim=1)  # (k, num_classes)
        factors = weights / total
        loss = -float((log_probs.gather(1, labels[:, None])[:, 0] * factors).sum())
        gradient = log_probs.exp_()
        gradient[torch.arange(len(labels), device=self._device), labels] -= 1
        gradient *= factors[:, None]
        assert weight.grad is not None
        assert bias.grad is not None
        weight.grad.addmm_(gradient.T, inputs)
        bias.grad.add_(gradient.sum(dim=0))
        return loss
