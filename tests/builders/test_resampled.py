"""Checkpoints at another image size than in their training: features are those of timm with the same weights."""

from pathlib import Path

import pytest
import timm
import torch

from lib.builders.model import finetuned_model, model_at_test_size, model_of, new_model
from lib.errors import UserError
from lib.runtime.device import pick_device
from lib.trainer.checkpointing.state import Checkpoint
from tests.builders.test_sizes import config

DEVICE = pick_device('cpu', 'float32')
SIZE, TEST_SIZE = 64, 96


def settings(**changes):
    return config(**({'MODEL__BACKBONE': 'test_vit', 'INPUT__SIZE': SIZE, 'MODEL__CLASSIFIER': 'linear'} | changes))


@pytest.fixture(scope='module')
def checkpoint() -> Checkpoint:
    """Return a checkpoint of a ViT for 64 px, with positions that differ from each other."""
    model = new_model(settings(), 3, DEVICE)
    torch.manual_seed(5)
    with torch.no_grad():
        model.backbone.pos_embed.normal_()
    return Checkpoint({key: value.clone() for key, value in model.state_dict().items()}, path=Path('log/x/last.pth'))


def features_of_timm(checkpoint: Checkpoint, size: int, images: torch.Tensor) -> torch.Tensor:
    state = {key.removeprefix('backbone.'): value for key, value in checkpoint.state_dict.items()}
    state = {key: value for key, value in state.items() if not key.startswith('classifier.')}
    overlay = {'state_dict': state}
    backbone = timm.create_model(
        'test_vit', pretrained=True, num_classes=0, img_size=size, pretrained_cfg_overlay=overlay
    )
    with torch.no_grad():
        return backbone.eval()(images)


def features(model, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().features(images)


@pytest.mark.parametrize('size', [32, 64, 96])
def test_evaluation_at_another_size(checkpoint, size):
    images = torch.rand(2, 3, size, size)
    model = model_of(checkpoint, settings(INPUT__TEST_SIZE=size), DEVICE, image_size=size)
    torch.testing.assert_close(features(model, images), features_of_timm(checkpoint, size, images))


@pytest.mark.parametrize('size', [32, 96])
def test_fine_tuning_at_another_size(checkpoint, size):
    images = torch.rand(2, 3, size, size)
    model, _ = finetuned_model(checkpoint, settings(INPUT__SIZE=size), DEVICE, ['a', 'b', 'c'])
    torch.testing.assert_close(features(model, images), features_of_timm(checkpoint, size, images))


def test_validation_while_training_is_that_of_the_checkpoint(checkpoint):
    """Validation at TEST_SIZE uses the current weights, and computes what test.py computes with the checkpoint."""
    cfg = settings(INPUT__TEST_SIZE=TEST_SIZE)
    model = new_model(cfg, 3, DEVICE)
    at_test_size = model_at_test_size(cfg, DEVICE)
    images = torch.rand(2, 3, TEST_SIZE, TEST_SIZE)
    before = features(at_test_size(model), images)
    model.load_state_dict(checkpoint.state_dict)
    resampled = at_test_size(model)
    torch.testing.assert_close(features(resampled, images), features_of_timm(checkpoint, TEST_SIZE, images))
    assert not torch.allclose(features(resampled, images), before)
    assert resampled.classifier is model.classifier
    assert model.backbone.pos_embed.shape[1] == checkpoint.state_dict['backbone.pos_embed'].shape[1]


@pytest.mark.parametrize(
    ('backbone', 'changes'),
    [('resnet10t', {'INPUT__TEST_SIZE': TEST_SIZE}), ('test_vit', {}), ('test_vit', {'INPUT__TEST_SIZE': SIZE})],
)
def test_no_second_backbone_where_the_first_takes_both_sizes(backbone, changes):
    assert model_at_test_size(settings(MODEL__BACKBONE=backbone, **changes), DEVICE) is None


@pytest.mark.parametrize('backbone', ['test_vit2', 'test_resnet'])  # features of the same and of another width
def test_weights_of_another_backbone_are_the_same_error_for_every_command(checkpoint, backbone):
    cfg = settings(MODEL__BACKBONE=backbone)
    messages = []
    for load in (
        lambda: model_of(checkpoint, cfg, DEVICE),
        lambda: model_of(checkpoint, cfg, DEVICE, image_size=SIZE),
        lambda: finetuned_model(checkpoint, cfg, DEVICE, ['a', 'b', 'c']),
    ):
        with pytest.raises(UserError) as caught:
            load()
        messages.append(str(caught.value))
    assert len(set(messages)) == 1
    assert messages[0].startswith(f'{checkpoint.path} does not fit MODEL.BACKBONE {backbone} of {SIZE} px: ')
    assert '\n' not in messages[0]


@pytest.mark.long
def test_positions_that_timm_does_not_resample_are_one_error_line():
    cfg = settings(MODEL__BACKBONE='pit_ti_224', INPUT__SIZE=160)
    model = new_model(cfg, 3, DEVICE)
    checkpoint = Checkpoint(model.state_dict(), path=Path('log/x/last.pth'))
    with pytest.raises(UserError, match=r'pos_embed .* instead of .*: set INPUT\.SIZE as in its training'):
        model_of(checkpoint, cfg, DEVICE, image_size=128)
