"""Limiting cases: with its parameter at the limit a loss is cross entropy, or the loss that it generalizes."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

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
from lib.loss.weighted import WeightedLoss, effective_number, inverse_frequency
from tests.loss.cases import SCALE, assert_same, problem, value_and_gradients

N = torch.tensor([500, 70, 1, 0, 12, 3])
EQUAL = torch.full((6,), 17)

CROSS_ENTROPY = {
    'no smoothing': CrossEntropy(0.0),
    'focal gamma 0': Focal(0.0),
    'balanced softmax with equal counts': BalancedSoftmax(EQUAL),
    'logit adjustment tau 0': LogitAdjustment(N, 0.0),
    'VS gamma 0 tau 0': VectorScaling(N, gamma=0.0, tau=0.0),
    'VS with equal counts': VectorScaling(EQUAL, gamma=0.3, tau=1.0),
    'ArcFace margins 0': ArcFace(margins_by_size(N, 0.0, 0.0), SCALE),
    'CDT gamma 0': ClassDependentTemperatures(N, 0.0),
    'CDT with equal counts': ClassDependentTemperatures(EQUAL, 0.3),
    'LDAM margin 0': LDAM(N, 0.0, SCALE),
    'SEQL probability 0': SoftmaxEqualization(N, tail_fraction=0.05, probability=0.0),
    'SEQL without tail classes': SoftmaxEqualization(N, tail_fraction=0.0, probability=1.0),
    'LAS without smoothing': LabelAwareSmoothing(N, 0.0, 0.0, 'concave'),
    'seesaw exponents 0': Seesaw(N, 0.0, 0.0),
    'GCE q 0': GeneralizedCrossEntropy(0.0),
    'SCE without reverse': SymmetricCrossEntropy(1.0, 0.0),
    'ArcFace margin 0': ArcFace(0.0, SCALE),
    'CosFace margin 0': CosFace(0.0, SCALE),
}


def losses_and_gradient(loss, some):
    labels = some.targets.labels
    weights = torch.arange(1.0, 1 + labels.numel()).view_as(labels)  # so that all images have different gradients
    return value_and_gradients(lambda z, h: (loss(z, labels) * weights).sum(), some.logits)


@pytest.mark.parametrize('name', CROSS_ENTROPY)
def test_limit_is_cross_entropy(name):
    some = problem(seed=11)
    found = losses_and_gradient(CROSS_ENTROPY[name], some)
    assert_same(found, losses_and_gradient(lambda z, y: F.cross_entropy(z, y, reduction='none'), some), rtol=1e-9)


@pytest.mark.parametrize(
    ('loss', 'limit', 'rtol'),
    [
        (LogitAdjustment(N, 1.0), BalancedSoftmax(N), 1e-12),
        (VectorScaling(N, gamma=0.0, tau=0.7), LogitAdjustment(N, 0.7), 1e-12),
        (VectorScaling(N, gamma=0.3, tau=0.0), ClassDependentTemperatures(N, 0.3), 1e-12),
        (GeneralizedCrossEntropy(1e-7), CrossEntropy(), 1e-5),
        (LabelAwareSmoothing(EQUAL, 0.3, 0.1, 'convex'), LabelAwareSmoothing(N, 0.3, 0.3, 'linear'), 1e-12),
        # 1 - eps on the label and eps / (C - 1) elsewhere is label smoothing by eps C / (C - 1).
        (LabelAwareSmoothing(N, 0.3, 0.3, 'linear'), CrossEntropy(0.3 * 6 / 5), 1e-9),
        (SymmetricCrossEntropy(0.0, 0.25), GeneralizedCrossEntropy(1.0), 1e-9),
    ],
    ids=['LA tau 1', 'VS gamma 0', 'VS tau 0', 'GCE q -> 0', 'LAS with equal counts', 'LAS constant', 'MAE'],
)
def test_limit_is_the_loss_it_generalizes(loss, limit, rtol):
    some = problem(seed=12)
    assert_same(losses_and_gradient(loss, some), losses_and_gradient(limit, some), rtol=rtol)


def test_label_smoothing_equals_torch():
    some = problem(seed=13)
    torch_loss = functools.partial(F.cross_entropy, reduction='none', label_smoothing=0.1)
    assert_same(losses_and_gradient(CrossEntropy(0.1), some), losses_and_gradient(torch_loss, some), rtol=1e-9)


def test_sigmoid_focal_gamma_0_is_the_sum_of_binary_cross_entropies():
    some = problem(seed=14)
    one_hot = F.one_hot(some.targets.labels, 6).double()

    def binary(logits, labels):
        return F.binary_cross_entropy_with_logits(logits, one_hot, reduction='none').sum(dim=1)

    assert_same(losses_and_gradient(SigmoidFocal(0.0), some), losses_and_gradient(binary, some), rtol=1e-9)


@pytest.mark.parametrize('gamma', [0.0, 1.0, 2.0, 3.5])
def test_sigmoid_focal_is_continuous_in_gamma(gamma):
    some = problem(seed=15)
    near = losses_and_gradient(SigmoidFocal(gamma + 1e-9), some)
    assert_same(losses_and_gradient(SigmoidFocal(gamma), some), near, rtol=1e-6, atol=1e-8)


def test_influence_balanced_without_influence_is_cross_entropy():
    """With epsilon far above the influence, and alpha = epsilon, the weight is 1."""
    some = problem(seed=16)
    loss = InfluenceBalanced(differentiated=True, alpha=1e12, epsilon=1e12)
    found = losses_and_gradient(lambda z, y: loss(z, y, some.features), some)
    assert_same(found, losses_and_gradient(CrossEntropy(), some), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('weights', [effective_number(N, 0.0), inverse_frequency(N, 0.0)], ids=['beta', 'exponent'])
def test_class_balanced_loss_without_weights_is_cross_entropy(weights):
    some = problem(seed=17)
    labels = torch.where(some.targets.labels == 3, 0, some.targets.labels)  # class 3 has no images
    for weighted_mean in (True, False):
        loss = WeightedLoss(CrossEntropy(), N, weights, weighted_mean=weighted_mean)
        found = value_and_gradients(lambda z, h, of=loss: of(z, Targets(labels)), some.logits)
        assert_same(found, value_and_gradients(lambda z, h: F.cross_entropy(z, labels), some.logits))


def test_arcface_falls_with_the_cosine_beyond_pi_minus_margin():
    cosines = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    logits = torch.stack([SCALE * cosines, torch.zeros_like(cosines)], dim=1)
    losses = ArcFace(0.5, SCALE)(logits, torch.zeros(len(cosines), dtype=torch.int64))
    assert (losses.diff() < 0).all()
    plain = CrossEntropy()(logits, torch.zeros(len(cosines), dtype=torch.int64))
    assert (losses[:-2] > plain[:-2]).all()


def test_classes_of_one_size_have_the_margin_of_the_smallest():
    some, equal = problem(seed=18), torch.full((len(N),), 7)
    margins = margins_by_size(equal, 0.5, 0.05)
    assert torch.equal(margins, torch.full((len(N),), 0.5, dtype=torch.float64))
    found, expected = (losses_and_gradient(ArcFace(margin, SCALE), some) for margin in (margins, 0.5))
    assert_same(found, expected, rtol=1e-12)


def test_margin_is_multiplied_by_the_scale():
    """LDAM and CosFace on s cos with scale s: the margin is subtracted from the cosine."""
    logits = torch.tensor([[SCALE * 0.3, SCALE * 0.1]], dtype=torch.float64)
    expected = math.log1p(math.exp(SCALE * (0.1 - (0.3 - 0.35))))
    for loss in (CosFace(0.35, SCALE), LDAM(torch.tensor([5, 5]), 0.35, SCALE)):
        assert loss(logits, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-9)


def test_focal_gamma_below_1_is_finite_at_p_1():
    loss = Focal(0.5)
    value, gradient, _ = value_and_gradients(
        lambda z, h: loss(z, torch.tensor([0])).sum(), torch.tensor([[200.0, -200.0]])
    )
    assert value == 0
    assert gradient.isfinite().all()


def test_softmax_equalization_excludes_tail_with_its_probability():
    """Each image has the loss of probability 0 or 1, in the expected proportion, drawn from the global generator."""
    logits = torch.randn(1, 6, dtype=torch.float64).expand(2000, -1)
    labels = torch.zeros(2000, dtype=torch.int64)
    plain, excluded = (SoftmaxEqualization(N, 0.05, probability)(logits, labels)[0] for probability in (0.0, 1.0))
    torch.manual_seed(3)
    losses = SoftmaxEqualization(N, 0.05, 0.7)(logits, labels)
    is_excluded = losses == excluded
    assert (is_excluded | (losses == plain)).all()
    assert abs(is_excluded.double().mean() - 0.7) < 5 * math.sqrt(0.7 * 0.3 / 2000)
    torch.manual_seed(3)
    assert torch.equal(losses, SoftmaxEqualization(N, 0.05, 0.7)(logits, labels))


def test_softmax_equalization_is_0_if_all_others_are_excluded():
    loss = SoftmaxEqualization(N, tail_fraction=1.0, probability=1.0)
    some = problem(seed=18)
    value, gradient, _ = losses_and_gradient(loss, some)
    assert value == 0
    assert gradient.count_nonzero() == 0
