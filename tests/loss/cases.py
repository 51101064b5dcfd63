"""Every loss with parameters away from its limits, beside its oracle."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from lib.loss.arcface import ArcFace, margins_by_size
from lib.loss.balanced_softmax import BalancedSoftmax
from lib.loss.class_dependent_temperatures import ClassDependentTemperatures
from lib.loss.cosface import CosFace
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.focal import Focal, SigmoidFocal
from lib.loss.generalized_cross_entropy import GeneralizedCrossEntropy
from lib.loss.influence_balanced import InfluenceBalanced
from lib.loss.label_aware_smoothing import LabelAwareSmoothing
from lib.loss.ldam import LDAM
from lib.loss.logit_adjustment import LogitAdjustment
from lib.loss.seesaw import Seesaw
from lib.loss.softmax_equalization import SoftmaxEqualization
from lib.loss.symmetric_cross_entropy import SymmetricCrossEntropy
from lib.loss.targets import Targets
from lib.loss.vector_scaling import VectorScaling
from lib.loss.weighted import WeightedLoss
from tests.oracles import losses as oracle

COUNTS = [500, 70, 1, 0, 12, 3]  # one class without images
SCALE = 16.0  # of the cosine classifier


class Case(NamedTuple):
    """A loss as a function of the counts, and its oracle: (logits, label, counts, feature) -> loss."""

    make: Callable
    slow: Callable


CASES = {
    'cross_entropy': Case(lambda n: CrossEntropy(), lambda z, y, n, h: oracle.cross_entropy(z, y)),
    'label_smoothing': Case(lambda n: CrossEntropy(0.1), lambda z, y, n, h: oracle.cross_entropy(z, y, 0.1)),
    'focal': Case(lambda n: Focal(2.0), lambda z, y, n, h: oracle.focal(z, y, 2.0)),
    'focal_half': Case(lambda n: Focal(0.5), lambda z, y, n, h: oracle.focal(z, y, 0.5)),
    'sigmoid_focal': Case(lambda n: SigmoidFocal(2.0), lambda z, y, n, h: oracle.sigmoid_focal(z, y, 2.0)),
    'sigmoid_focal_half': Case(lambda n: SigmoidFocal(0.5), lambda z, y, n, h: oracle.sigmoid_focal(z, y, 0.5)),
    'balanced_softmax': Case(BalancedSoftmax, lambda z, y, n, h: oracle.balanced_softmax(z, y, n)),
    'logit_adjustment': Case(
        lambda n: LogitAdjustment(n, 1.7), lambda z, y, n, h: oracle.logit_adjustment(z, y, n, 1.7)
    ),
    'vector_scaling': Case(
        lambda n: VectorScaling(n, gamma=0.2, tau=0.8), lambda z, y, n, h: oracle.vector_scaling(z, y, n, 0.2, 0.8)
    ),
    'class_dependent_temperatures': Case(
        lambda n: ClassDependentTemperatures(n, 0.3),
        lambda z, y, n, h: oracle.class_dependent_temperatures(z, y, n, 0.3),
    ),
    'ldam': Case(lambda n: LDAM(n, 0.5, SCALE), lambda z, y, n, h: oracle.ldam(z, y, n, 0.5, SCALE)),
    'softmax_equalization': Case(
        lambda n: SoftmaxEqualization(n, tail_fraction=0.05, probability=1.0),
        lambda z, y, n, h: oracle.softmax_equalization(z, y, n, 0.05, 1),
    ),
    'label_aware_smoothing': Case(
        lambda n: LabelAwareSmoothing(n, 0.4, 0.1, 'concave'),
        lambda z, y, n, h: oracle.label_aware_smoothing(z, y, n, 0.4, 0.1, 'concave'),
    ),
    'label_aware_smoothing_linear': Case(
        lambda n: LabelAwareSmoothing(n, 0.4, 0.1, 'linear'),
        lambda z, y, n, h: oracle.label_aware_smoothing(z, y, n, 0.4, 0.1, 'linear'),
    ),
    'label_aware_smoothing_convex': Case(
        lambda n: LabelAwareSmoothing(n, 0.4, 0.1, 'convex'),
        lambda z, y, n, h: oracle.label_aware_smoothing(z, y, n, 0.4, 0.1, 'convex'),
    ),
    'influence_balanced': Case(
        lambda n: InfluenceBalanced(differentiated=False),
        lambda z, y, n, h: oracle.influence_balanced(z, y, h, differentiated=False),
    ),
    'influence_differentiated': Case(
        lambda n: InfluenceBalanced(differentiated=True),
        lambda z, y, n, h: oracle.influence_balanced(z, y, h, differentiated=True),
    ),
    'seesaw': Case(lambda n: Seesaw(n, 0.8, 2.0), lambda z, y, n, h: oracle.seesaw(z, y, n, 0.8, 2.0)),
    'generalized_cross_entropy': Case(
        lambda n: GeneralizedCrossEntropy(0.7), lambda z, y, n, h: oracle.generalized_cross_entropy(z, y, 0.7)
    ),
    'symmetric_cross_entropy': Case(
        lambda n: SymmetricCrossEntropy(0.1, 1.0), lambda z, y, n, h: oracle.symmetric_cross_entropy(z, y, 0.1, 1.0)
    ),
    'arcface': Case(lambda n: ArcFace(0.5, SCALE), lambda z, y, n, h: oracle.arcface(z, y, 0.5, SCALE)),
    'arcface_by_size': Case(
        lambda n: ArcFace(margins_by_size(n, 0.5, 0.05), SCALE),
        lambda z, y, n, h: oracle.arcface(z, y, oracle.margin_by_size(y, n, 0.5, 0.05), SCALE),
    ),
    'cosface': Case(lambda n: CosFace(0.35, SCALE), lambda z, y, n, h: oracle.cosface(z, y, 0.35, SCALE)),
}


class Problem(NamedTuple):
    """Float64 logits within the range of a cosine classifier, features, and targets."""

    logits: torch.Tensor
    features: torch.Tensor
    targets: Targets

    def to(self, dtype: torch.dtype) -> 'Problem':
        """Return the problem with logits and features in `dtype`, coefficients and weights in float32."""
        targets = self.targets
        lam = None if targets.lam is None else targets.lam.float()
        weights = None if targets.weights is None else targets.weights.float()
        return Problem(self.logits.to(dtype), self.features.to(dtype), Targets(targets.labels, lam, weights))


def problem(seed: int, num_classes: int = len(COUNTS), batch: int = 9, k: int = 0) -> Problem:
    """Return random logits and labels (batch,), or (batch, k) with coefficients and image weights; labels[0] is 0."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, num_classes, dtype=torch.float64, generator=random)
    logits.clamp_(-0.99 * SCALE, 0.99 * SCALE)
    features = torch.randn(batch, 5, dtype=torch.float64, generator=random)
    labels = torch.randint(num_classes, (batch, k) if k else (batch,), generator=random)
    labels[0] = 0
    if not k:
        return Problem(logits, features, Targets(labels))
    # float64 like the logits, because the gradients of the labels of an image partly cancel.
    lam = torch.rand(batch, k, dtype=torch.float64, generator=random)
    weights = torch.rand(batch, dtype=torch.float64, generator=random)
    return Problem(logits, features, Targets(labels, lam / lam.sum(dim=1, keepdim=True), weights))


def fast(case: Case, problem: Problem, counts=COUNTS, **options):
    """Return the weighted loss and its gradients with respect to logits and features (0 where there is none)."""
    loss = WeightedLoss(case.make(torch.tensor(counts)), torch.tensor(counts), **options)
    return value_and_gradients(lambda z, h: loss(z, problem.targets, h), problem.logits, problem.features)


def slow(case: Case, problem: Problem, counts=COUNTS, **options):
    """Return the same, computed by the oracle."""
    targets = problem.targets
    labels = targets.labels.reshape(len(targets.labels), -1).tolist()
    lam = None if targets.lam is None else targets.lam.tolist()
    weights = None if targets.weights is None else targets.weights.tolist()

    def value(logits, features):
        def of(i, label):
            return case.slow(logits[i], label, counts, features[i])

        return oracle.weighted(of, labels, counts, lam, weights, **options)

    return value_and_gradients(value, problem.logits, problem.features)


def value_and_gradients(function, logits, features=None):
    logits = logits.clone().requires_grad_()
    features = torch.zeros(()) if features is None else features
    features = features.clone().requires_grad_()
    value = function(logits, features)
    if value.requires_grad:
        value.backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in (logits, features)]
    return value.detach(), *gradients


def assert_same(found, expected, rtol=1e-6, atol=1e-12):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.to(other.dtype), other, rtol=rtol, atol=atol)
