"""One step: mixing, loss and optimizer, against the same computed by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lib.classifier.linear import LinearClassifier
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.optim.optimizer import create_optimizer
from lib.trainer.forward import TrainingForward
from lib.trainer.mixing.base import MixedBatch, unmixed
from lib.trainer.objective import Objective
from lib.trainer.step import TrainStep
from lib.trainer.train_state import TrainState
from tests.trainer.steps import Setup, batch_of, step_of

LR = 0.5


def small_step(objective, seed=0):
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    model = Recognizer(backbone, LinearClassifier(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return TrainStep(TrainState(model, optimizer), TrainingForward(model), objective, lambda step: LR, seed=0)


def batch(seed, size=4):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 2, 2, generator=random), torch.randint(3, (size,), generator=random)


def average(**keywords):
    return WeightedLoss(CrossEntropy(), np.array([5, 3, 1]), **keywords)


@pytest.mark.parametrize('seed', range(3))
def test_the_gradient_of_mixed_labels(seed):
    step = small_step(Objective(average()))
    images, labels = batch(seed)
    lam = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    pairs = torch.stack([labels, labels.flip(0)], dim=1)
    targets = Targets(pairs, torch.stack([lam, 1 - lam], dim=1))
    before = step.state.model.classifier.bias.detach().clone()
    p = step.state.model(images).detach().softmax(dim=1)
    loss, num_right, *_ = step(MixedBatch(images, targets), 0)
    expected, gradient = 0.0, torch.zeros(3)
    for i in range(4):
        q = torch.zeros(3)
        q[pairs[i, 0]] += lam[i]
        q[pairs[i, 1]] += 1 - lam[i]
        expected += -(q * p[i].log()).sum() / 4
        gradient += (p[i] - q) / 4
    torch.testing.assert_close(loss, expected)
    assert num_right == (p.argmax(dim=1) == targets.hard).sum()
    torch.testing.assert_close(step.state.model.classifier.bias.detach(), before - LR * gradient)


def test_an_auxiliary_loss_is_added_with_its_weight():
    calls = []

    def auxiliary(outputs, targets, images, scale):
        calls.append((outputs.features.shape, len(targets.labels), images.shape))
        return outputs.logits.square().sum()

    images, labels = batch(5)
    step = small_step(Objective(average(), auxiliary, loss_weight=0.25, auxiliary_weight=2.0))
    logits = step.state.model(images)
    expected = 0.25 * nn.functional.cross_entropy(logits, labels) + 2 * logits.square().sum()
    loss, *_ = step(unmixed(images, labels, epoch=0, first_slot=0), 0)
    torch.testing.assert_close(loss, expected)
    assert calls == [((4, 5), 4, images.shape)]


@pytest.mark.parametrize(('epoch', 'weighted'), [(0, False), (1, False), (2, True), (7, True)])
def test_deferred_weights_apply_from_their_epoch(epoch, weighted):
    weights = torch.tensor([0.1, 0.9, 2.0])
    objective = Objective(average(class_weights=weights, reweight_from_epoch=2))
    images, labels = batch(6)
    step = small_step(objective)
    objective.set_epoch(epoch)
    expected = nn.functional.cross_entropy(step.state.model(images), labels, weight=weights if weighted else None)
    loss, *_ = step(unmixed(images, labels, epoch=epoch, first_slot=0), 0)
    torch.testing.assert_close(loss, expected)


def test_the_first_epochs_train_the_head_alone():
    """The weights of the backbone stay bit for bit, and neither weight decay nor momentum begins before its turn."""
    setup = Setup(embedding=True, head_steps=3, decay=0.5)
    step, alone = step_of(setup), step_of(setup)
    alone.state.model.freeze_backbone()
    assert step.state.model.backbone.training is True
    for number in range(5):
        epoch = int(number >= setup.head_steps)
        for each in (step, alone):
            each.set_epoch(epoch)
            each(batch_of(setup, number), number)
        model = step.state.model
        changed = {name for name, value in alone.state.model.named_parameters()
                   if not torch.equal(model.get_parameter(name), value)}  # fmt: skip
        assert (model.trains_head_only, model.backbone.training, model.embedding.training) == (
            not epoch,
            bool(epoch),
            True,
        )
        if not epoch:
            assert changed == set()
            assert not any(model.backbone.get_parameter(name) in step.state.optimizer.state
                           for name, _ in model.backbone.named_parameters())  # fmt: skip
        else:
            assert changed >= {f'backbone.{name}' for name, _ in model.backbone.named_parameters()}
    assert model.constant_names() == set()


@pytest.mark.parametrize('kind', ['sgd', 'adamw'])
def test_a_run_resumed_among_the_first_epochs_has_the_same_weights(kind):
    setup = Setup(embedding=True, head_steps=3)

    def started():
        step = step_of(setup)
        step.state.optimizer = create_optimizer(step.state.model, kind=kind, lr=0.1, weight_decay=0.1)
        return step

    def run(step, numbers):
        for number in numbers:
            step.set_epoch(int(number >= setup.head_steps))
            step(batch_of(setup, number), number)
        return step.state.model.state_dict()

    expected, first, resumed = run(started(), range(6)), started(), started()
    run(first, range(2))
    resumed.state.model.load_state_dict(first.state.model.state_dict())
    resumed.state.optimizer.load_state_dict(copy.deepcopy(first.state.optimizer.state_dict()))
    for name, value in run(resumed, range(2, 6)).items():
        assert torch.equal(value, expected[name]), name


def test_the_hard_label_has_the_largest_lam():
    targets = Targets(torch.tensor([[2, 0], [1, 1], [0, 2]]), torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]))
    assert targets.hard.tolist() == [0, 1, 0]
