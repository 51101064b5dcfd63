"""LOSS.AUXILIARY -> the auxiliary loss, its weight, and the checks of a teacher."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.builders.model import finetuned_model, model_of, new_model
from lib.builders.objective import AUXILIARIES, build_objective
from lib.builders.optim import build_optimizer, build_schedule
from lib.classifier.cosine import Projector
from lib.config.defaults import KEYS
from lib.config.keys.loss import METRIC
from lib.config.yaml_text import as_node, as_text, as_values
from lib.errors import UserError
from lib.export import openvino_model
from lib.runtime.device import pick_device
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, TrainProgress
from lib.trainer.objective import ContrastTerm, DistillTerm, MetricTerm
from tests.defaults import DEFAULTS

NAMES = ['cola', 'tea', 'milk']
COUNTS = np.array([120, 30, 4])
DEVICE = pick_device('cpu', 'float32')
SMALL = {'MODEL.BACKBONE': 'res32_cifar', 'INPUT.SIZE': 32, 'NAME': 'x'}


def config(**changes):
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    return as_node(DEFAULTS | SMALL | changes)


def checkpoint_of(cfg, num_classes=3):
    model = new_model(cfg, num_classes, DEVICE)
    return Checkpoint(
        model.state_dict(),
        config=as_text(cfg),
        progress=TrainProgress(epoch=2),
        training_set=TrainingSet('', COUNTS[:num_classes], NAMES[:num_classes]),
    )


def teacher_at(path, checkpoint):
    write_checkpoint(path, checkpoint)
    return config(LOSS__AUXILIARY='distillation', LOSS__TEACHER=str(path), LOSS__AUXILIARY_WEIGHT=0.25)


def test_the_table_has_the_choices_of_the_key():
    assert tuple(AUXILIARIES) == KEYS['LOSS.AUXILIARY'].choices


def test_no_auxiliary_loss():
    cfg = config()
    objective = build_objective(cfg, COUNTS, new_model(cfg, 3, DEVICE), DEVICE)
    assert objective.auxiliary is None
    assert objective.loss_weight == 1


@pytest.mark.parametrize('name', METRIC)
def test_metric_losses_are_added_if_the_package_is_installed(name, monkeypatch):
    pytest.importorskip('pytorch_metric_learning')
    cfg = config(LOSS__AUXILIARY=name, MODEL__EMBEDDING=8)
    model = new_model(cfg, 3, DEVICE)
    objective = build_objective(cfg, COUNTS, model, DEVICE)
    assert isinstance(objective.auxiliary, MetricTerm)
    assert (model.projector, objective.auxiliary_weight) == (None, 0.5)
    monkeypatch.setattr(openvino_model, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=f'^LOSS.AUXILIARY {name} needs more packages: pip install pytorch_metric'):
        build_objective(cfg, COUNTS, model, DEVICE)


def test_contrast_is_added():
    cfg = config(LOSS__AUXILIARY='balanced_contrastive', LOSS__AUXILIARY_WEIGHT=0.35)
    model = new_model(cfg, 3, DEVICE)
    objective = build_objective(cfg, COUNTS, model, DEVICE)
    assert isinstance(objective.auxiliary, ContrastTerm)
    assert (objective.loss_weight, objective.auxiliary_weight) == (1, 0.35)
    assert isinstance(model.projector, Projector)
    # The projector is initialized last, so it does not change the other weights.
    plain = new_model(config(), 3, DEVICE)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())


def test_distillation_with_a_teacher_of_another_architecture(tmp_path):
    teacher = config(MODEL__BACKBONE='test_resnet', MODEL__CLASSIFIER='cosine', INPUT__SIZE=40, SEED=7)
    cfg = teacher_at(tmp_path / 'a.pth', checkpoint_of(teacher))
    model = new_model(cfg, 3, DEVICE)
    objective = build_objective(cfg, COUNTS, model, DEVICE, NAMES)
    assert isinstance(objective.auxiliary, DistillTerm)
    assert (objective.loss_weight, objective.auxiliary_weight) == (0.75, 0.25)
    images, expected = torch.randn(2, 3, 32, 32), new_model(teacher, 3, DEVICE).eval()
    torch.testing.assert_close(objective.auxiliary._teacher(images), expected(images))


def test_a_teacher_that_does_not_fit(tmp_path):
    path, good = tmp_path / 'a.pth', checkpoint_of(config())
    model = new_model(config(), 3, DEVICE)

    def error(checkpoint=good, **changes):
        cfg = as_node(as_values(teacher_at(path, checkpoint)) | changes)
        with pytest.raises(UserError) as caught:
            build_objective(cfg, COUNTS, model, DEVICE, NAMES)
        return str(caught.value)

    assert 'has 2 classes, but the training set has 3' in error(checkpoint_of(config(), num_classes=2))
    turned = replace(good, training_set=TrainingSet('', COUNTS, NAMES[::-1]))
    assert 'in another order (milk where the training set has cola)' in error(turned)
    assert 'holds no config' in error(replace(good, config=''))
    assert 'INPUT.MEAN' in error(**{'INPUT.MEAN': (0.0, 0.0, 0.0)})
    assert 'DATASET.COLOR_SPACE RGB' in error(**{'DATASET.COLOR_SPACE': 'BGR'})
    assert 'no such file' in error(**{'LOSS.TEACHER': str(tmp_path / 'none.pth')})
    (tmp_path / 'text.pth').write_text('no checkpoint')
    assert error(**{'LOSS.TEACHER': str(tmp_path / 'text.pth')}).startswith('LOSS.TEACHER')
    other = replace(good, config=as_text(config(MODEL__BACKBONE='test_resnet')))
    assert error(other).startswith(f'LOSS.TEACHER {path}')


CONTRAST = config(LOSS__AUXILIARY='balanced_contrastive')


def test_a_projector_is_loaded_only_with_its_loss():
    checkpoint = checkpoint_of(CONTRAST)
    again = model_of(checkpoint, CONTRAST, DEVICE)
    assert all(torch.equal(value, checkpoint.state_dict[key]) for key, value in again.state_dict().items())
    tuned, _ = finetuned_model(checkpoint, config(), DEVICE, NAMES)
    assert tuned.projector is None
    kept, _ = finetuned_model(checkpoint, as_node(as_values(CONTRAST) | {'SEED': 5}), DEVICE, NAMES)
    assert all(torch.equal(value, checkpoint.state_dict[key]) for key, value in kept.state_dict().items())


@pytest.mark.parametrize('first', [config(), as_node(as_values(CONTRAST) | {'LOSS.CONTRAST_WIDTH': 16})])
def test_a_projector_that_does_not_fit_is_initialized_anew(first):
    fresh = new_model(CONTRAST, 3, DEVICE).projector.state_dict()
    tuned, _ = finetuned_model(checkpoint_of(first), CONTRAST, DEVICE, NAMES)
    assert all(torch.equal(value, fresh[key]) for key, value in tuned.projector.state_dict().items())


def test_a_random_classifier_equals_that_of_a_new_model():
    checkpoint, cfg = checkpoint_of(config(SEED=1)), config(MODEL__CLASSIFIER_INIT='random', SEED=2)
    model, new = finetuned_model(checkpoint, cfg, DEVICE, ['cola', 'juice', 'milk'])
    assert new == ['juice']
    expected = new_model(cfg, 3, DEVICE)
    assert torch.equal(model.classifier.weight, expected.classifier.weight)
    assert torch.equal(model.backbone.conv1.weight, checkpoint.state_dict['backbone.conv1.weight'])


def test_the_norms_of_rows_are_limited():
    cfg = config(OPTIMIZER__MAX_NORM=0.1, OPTIMIZER__LR=1.0)
    model = new_model(cfg, 3, DEVICE)
    optimizer = build_optimizer(cfg, model)
    model(torch.rand(4, 3, 32, 32))[:, 0].sum().backward()
    optimizer.step()
    assert model.classifier.weight.norm(dim=1).max() <= 0.1 * (1 + 1e-6)
    frozen = config(OPTIMIZER__MAX_NORM=0.1, MODEL__CLASSIFIER='lws', MODEL__FREEZE_CLASSIFIER=True)
    with pytest.raises(UserError, match=r'OPTIMIZER.MAX_NORM.*MODEL.FREEZE_CLASSIFIER'):
        build_optimizer(frozen, new_model(frozen, 3, DEVICE))


@pytest.mark.parametrize('kind', KEYS['SCHEDULE.TYPE'].choices)
def test_0_epochs_have_a_constant_schedule(kind):
    cfg = config(TRAIN__MAX_EPOCH=0, SCHEDULE__TYPE=kind, SCHEDULE__WARMUP_EPOCHS=5.0)
    assert build_schedule(cfg, 10)(0) == cfg.OPTIMIZER.LR
