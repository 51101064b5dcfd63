"""Auxiliary losses: their inputs and their gradients."""

import torch
from torch import nn

from lib.classifier.cosine import Projector
from lib.classifier.linear import LinearClassifier
from lib.loss.balanced_contrastive import BalancedContrastive
from lib.loss.distillation import Distillation
from lib.loss.targets import Targets
from lib.model import Recognizer
from lib.trainer.forward import LossScale, TrainingForward
from lib.trainer.objective import ContrastTerm, DistillTerm, Objective

IMAGES = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 2, 2, 1, 1])
SCALE = LossScale(torch.tensor(6.0), 1.0, 0, (6,))


def recognizer(seed=0, projector=None):
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    return Recognizer(backbone, LinearClassifier(8, 3), projector=projector)


def test_contrast_compares_embeddings_with_the_models_prototypes():
    model = recognizer(projector=Projector(8, 4))
    term, loss = ContrastTerm(model, BalancedContrastive(0.1)), BalancedContrastive(0.1)
    outputs = TrainingForward(model)(IMAGES)
    value = term(outputs, Targets(LABELS), IMAGES, SCALE)
    torch.testing.assert_close(value, loss(outputs.embeddings, model.prototypes(), LABELS))
    value.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {'classifier.bias'}


def test_the_teacher_is_frozen_in_every_mode_of_the_objective():
    model, teacher = recognizer(0), recognizer(1)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    expected = teacher.eval()(IMAGES).detach()
    term = DistillTerm(teacher.train(), Distillation(3.0, 0.5))
    objective = Objective(nn.Identity(), term, loss_weight=0.5, auxiliary_weight=0.5).train()
    outputs = TrainingForward(model)(IMAGES)
    value = term(outputs, Targets(LABELS), IMAGES, SCALE)
    torch.testing.assert_close(value, Distillation(3.0, 0.5)(outputs.logits, expected))
    value.backward()
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not objective.state_dict()
    assert not list(objective.parameters())
