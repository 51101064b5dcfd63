"""Costs of backbone, classifier and optimizer against explicit sums."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.classifier.linear import LinearClassifier
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.weighted import WeightedLoss
from lib.model import Embedding, Recognizer
from lib.optim.optimizer import create_optimizer
from lib.plan.costs import backbone_cost, chunked_classifier_cost, classifier_cost, optimizer_cost
from lib.plan.memory_tracker import MemoryTracker

SIZE, CHANNELS = 8, 6


class Toy(nn.Module):
    """A same-size convolution with 3 -> 6 channels, squares, and their spatial mean."""

    num_features = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).square().mean(dim=(2, 3))


def toy(num_classes: int = 5, dtype: torch.dtype | None = None) -> Recognizer:
    with torch.device('meta'):
        return Recognizer(Toy(), LinearClassifier(CHANNELS, num_classes), train_dtype=dtype)


def test_activations_equal_a_count_by_hand():
    cost = backbone_cost(toy(), SIZE)
    weights = 4 * (3 * 3 * 3 * CHANNELS + CHANNELS)
    maps = 4 * CHANNELS * SIZE**2
    assert (cost.num_parameters, cost.state, cost.gradients) == (weights // 4, weights, weights)
    for images in (1, 2, 3, 50):
        # Saved: images by the convolution (not counted), its output by the square; and the features.
        assert cost.saved.at(images) == images * (maps + 4 * CHANNELS)
        # The squares are also alive directly after the mean.
        assert cost.forward.at(images) == images * (2 * maps + 4 * CHANNELS)


def test_half_precision_saves_copies_of_weights():
    cost = backbone_cost(toy(dtype=torch.bfloat16), SIZE)
    weights, maps = 2 * 3 * 3 * 3 * CHANNELS, 2 * CHANNELS * SIZE**2
    assert weights <= cost.saved.at(0) <= weights + 2 * CHANNELS  # possibly of the bias
    assert maps <= cost.saved.per_image <= maps + 2 * 3 * SIZE**2 + 6 * CHANNELS + maps * 2


@pytest.mark.parametrize('images', [3, 7])
def test_costs_are_linear_in_the_images(images, monkeypatch):
    """Measured with other numbers of images, the costs are the same."""
    expected = backbone_cost(toy(), SIZE)
    monkeypatch.setattr('lib.plan.costs._FEW', images)
    monkeypatch.setattr('lib.plan.costs._MORE', images + 2)
    found = backbone_cost(toy(), SIZE)
    for name in ('saved', 'forward', 'backward'):
        assert getattr(found, name).at(100) == getattr(expected, name).at(100)
    assert found.flops == expected.flops


def test_flops_of_a_convolution():
    """Forward, and backward to the weight but not to the images; 2 per multiply-add."""
    assert backbone_cost(toy(), SIZE).flops == 2 * 2 * (3 * 3 * 3) * CHANNELS * SIZE**2


def test_frozen_backbone_saves_no_activations():
    model = toy()
    model.freeze_backbone()
    cost = backbone_cost(model, SIZE)
    assert (cost.gradients, cost.saved.at(10)) == (0, 10 * 4 * CHANNELS)
    assert cost.flops == 2 * (3 * 3 * 3) * CHANNELS * SIZE**2
    trained = model.classifier.weight.numel() + model.classifier.bias.numel()
    with_momentum = optimizer_cost(model, lambda model: create_optimizer(model, kind='sgd', lr=0.1))
    assert with_momentum.state == 4 * trained


def test_an_embedding_is_part_of_the_backbone():
    model, width = toy(), 4
    with torch.device('meta'):
        model.embedding, added = Embedding(CHANNELS, width), 4 * (CHANNELS * width + 2 * width)
    plain, cost = backbone_cost(toy(), SIZE), backbone_cost(model, SIZE)
    assert cost.gradients - plain.gradients == added
    assert cost.num_parameters - plain.num_parameters == added // 4
    assert cost.saved.at(10) > plain.saved.at(10)
    assert cost.flops > plain.flops


def mean_loss(num_classes: int) -> WeightedLoss:
    return WeightedLoss(CrossEntropy(), np.ones(num_classes, dtype=np.int64))


def test_classifier_with_many_images_takes_three_logits_tensors():
    """Logits, the softmax saved by the loss, and the gradient."""
    images, classes = 4096, 1000
    cost = classifier_cost(toy(classes), mean_loss(classes), CHANNELS, images)
    assert cost.parameters == cost.gradients == 4 * classes * (CHANNELS + 1)
    logits = 4 * images * classes
    assert 3 * logits < cost.peak < 3.1 * logits
    # Retained: logits, gradients of rows and of features.
    assert cost.retained == logits + cost.gradients + 4 * images * CHANNELS


def test_classifier_with_many_classes_takes_its_gradient():
    classes = 100_000
    whole = classifier_cost(toy(classes), mean_loss(classes), CHANNELS, 2)
    assert whole.gradients < whole.peak < whole.gradients + 4 * 4 * 2 * classes
    half = classifier_cost(toy(classes, torch.bfloat16), mean_loss(classes), CHANNELS, 2)
    # Under autocast the gradient is first computed in half precision.
    assert half.peak >= whole.gradients + 2 * classes * CHANNELS


def test_chunked_classifier_takes_gradients_and_logits_of_a_chunk():
    """The loss overwrites the logits with their gradient; with all images in one block they exist twice."""
    images, classes, chunk = 1024, 5000, 64
    cost = chunked_classifier_cost(toy(classes), mean_loss(classes), CHANNELS, images, chunk=chunk, num_sampled=classes)
    logits, features = 4 * chunk * classes, 4 * images * CHANNELS
    assert cost.parameters == cost.gradients == 4 * classes * (CHANNELS + 1)
    assert 2 * logits < cost.peak - cost.gradients - features < 2.1 * logits
    assert cost.retained == cost.gradients + features


def test_sampled_classes_take_their_rows_twice():
    images, classes, sampled = 8, 100_000, 10_000
    cost = chunked_classifier_cost(
        toy(classes), mean_loss(sampled), CHANNELS, images, chunk=images, num_sampled=sampled
    )
    copies = 4 * sampled * (CHANNELS + 1)
    assert cost.gradients + copies < cost.peak < cost.gradients + 2 * copies + 4 * 4 * images * sampled
    assert cost.retained == cost.gradients + 4 * images * CHANNELS


@pytest.mark.parametrize(('kind', 'states'), [('sgd', 1), ('adam', 2), ('adamw', 2)])
def test_optimizer_state(kind, states):
    model = toy(100)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    tensors = len(list(model.parameters()))
    cost = optimizer_cost(model, lambda model: create_optimizer(model, kind=kind, lr=0.1, weight_decay=1e-4))
    steps = 4 * tensors if kind != 'sgd' else 0  # step counts, one number per tensor
    assert cost.state == 4 * states * numbers + steps
    plain = optimizer_cost(toy(100), lambda model: create_optimizer(model, kind='sgd', lr=0.1, momentum=0.0))
    assert plain.state == 0


def test_costs_equal_the_allocations_of_a_real_step():
    """The same operations on real tensors, with every storage counted."""
    cost = backbone_cost(toy(), SIZE)
    model = Recognizer(Toy(), LinearClassifier(CHANNELS, 5)).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    images = torch.randn(5, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    existing = [*model.parameters(), images, *(parameter.grad for parameter in model.parameters())]
    with MemoryTracker(existing) as tracker:
        features = model.features(images)
        assert tracker.current == cost.saved.at(5)
        assert tracker.peak == cost.forward.at(5)
        tracker.restart()
        features.backward(torch.ones_like(features))
        assert tracker.peak <= cost.backward.at(5)
