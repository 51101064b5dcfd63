"""MODEL.TUNE: a tuned model, its checkpoints without the weights of the base, and their completion from the file."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from lib.backbone.adapters import is_adapter, merge_adapters
from lib.builders.base_weights import complete_state, describe_tuning
from lib.builders.cache_key import checkpoint_fingerprint
from lib.builders.model import finetuned_model, model_at_test_size, model_of, new_model
from lib.builders.optim import build_optimizer
from lib.errors import UserError
from lib.optim.ema import ModelEMA
from lib.runtime.device import pick_device
from lib.trainer.checkpointing.state import Checkpoint
from tests.builders.test_sizes import config

DEVICE = pick_device('cpu', 'float32')
KINDS = ('norm', 'bias', 'ssf', 'lora', 'adaptformer')
NAMES = ['a', 'b', 'c']


def file_of(folder: Path, name: str, size: int, seed: int = 0) -> Path:
    """Write random weights of a backbone for a size."""
    path = folder / f'{name}{seed}.pth'
    model = new_model(config(MODEL__BACKBONE=name, INPUT__SIZE=size, SEED=seed), 3, DEVICE)
    torch.save(model.backbone.state_dict(), path)
    return path


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> Path:
    """The weights of a ViT for 160 px, so that those for other sizes are resampled."""
    return file_of(tmp_path_factory.mktemp('base'), 'test_vit', 160)


@pytest.fixture(scope='module')
def settings(base):
    def make(**changes):
        values = {'MODEL__BACKBONE': 'test_vit', 'MODEL__PRETRAINED': str(base), 'INPUT__SIZE': 64}
        return config(**(values | {'MODEL__TUNE': 'lora', 'MODEL__CLASSIFIER': 'linear'} | changes))

    return make


def trained(model):
    """Move everything that training would move."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def saved(model, path: str = 'log/x/best_model.pth') -> Checkpoint:
    """Return a checkpoint of a model as a run saves it."""
    constant = model.constant_names() if model.base else set()
    state = {name: value.clone() for name, value in model.state_dict().items() if name not in constant}
    return Checkpoint(state, base=model.base, path=Path(path))


def logits(model, size: int = 64) -> torch.Tensor:
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.long
@pytest.mark.parametrize('kind', KINDS)
def test_a_checkpoint_holds_the_tuned_part(settings, kind):
    cfg = settings(MODEL__TUNE=kind)
    model = trained(new_model(cfg, 3, DEVICE))
    checkpoint = saved(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in checkpoint.state_dict if not is_adapter(name)} == {
        name for name in trainable if not is_adapter(name)
    }
    assert trainable <= checkpoint.state_dict.keys()
    assert {'classifier.weight', 'classifier.bias'} <= trainable
    torch.testing.assert_close(logits(model_of(checkpoint, cfg, DEVICE)), logits(model), rtol=0, atol=0)
    # All consumers that need plain weights, such as exported files, merge them.
    plain = config(MODEL__BACKBONE='test_vit', MODEL__CLASSIFIER='linear', INPUT__SIZE=64)
    merged = Checkpoint(merge_adapters(complete_state(checkpoint, cfg)), path=checkpoint.path)
    if kind == 'adaptformer':
        with pytest.raises(UserError, match=r'was trained with another MODEL.TUNE .* than MODEL.TUNE full: set both'):
            model_of(merged, plain, DEVICE)
    else:
        torch.testing.assert_close(logits(model_of(merged, plain, DEVICE)), logits(model), rtol=0, atol=1e-5)


def test_all_weights_on_request_or_without_a_file(settings):
    everything = new_model(settings(), 3, DEVICE).state_dict().keys()
    for changes in ({'TRAIN__SAVE_WEIGHTS': 'all'}, {'MODEL__PRETRAINED': ''}):
        model = new_model(settings(**changes), 3, DEVICE)
        assert model.base is None
        assert saved(model).state_dict.keys() == everything
        lines = describe_tuning(model, settings(**changes))
        assert ('checkpoints contain all weights' in lines[-1]) is (changes == {'MODEL__PRETRAINED': ''})


def test_a_base_that_is_missing_or_differs_is_one_error(settings, base, tmp_path):
    checkpoint = saved(trained(new_model(settings(), 3, DEVICE)))
    needs = '^log/x/best_model.pth contains only the weights that MODEL.TUNE trained, and needs those of its base: '
    with pytest.raises(UserError, match=needs + f'MODEL.PRETRAINED {tmp_path}/gone.pth: no such file'):
        model_of(checkpoint, settings(MODEL__PRETRAINED=str(tmp_path / 'gone.pth')), DEVICE)
    other = file_of(tmp_path, 'test_vit', 160, seed=4)
    with pytest.raises(UserError, match=needs + rf'MODEL.PRETRAINED {other} has other weights than .* {base} had when'):
        model_of(checkpoint, settings(MODEL__PRETRAINED=str(other)), DEVICE)
    copy = tmp_path / 'copy.pth'
    copy.write_bytes(base.read_bytes())
    model_of(checkpoint, settings(MODEL__PRETRAINED=str(copy)), DEVICE)


def test_the_fingerprint_of_a_checkpoint_depends_on_the_base(settings):
    checkpoint = saved(new_model(settings(), 3, DEVICE))
    other = replace(checkpoint, base=replace(checkpoint.base, digest='another'))
    assert checkpoint_fingerprint(checkpoint) != checkpoint_fingerprint(other)
    assert checkpoint_fingerprint(checkpoint, 'backbone.') != checkpoint_fingerprint(other, 'backbone.')


@pytest.mark.parametrize('kind', ['ssf', 'lora', 'adaptformer'])
def test_evaluation_at_another_size(settings, kind):
    """The model of the validation during training, and that of test.py, have resampled positions and the adapters."""
    cfg = settings(MODEL__TUNE=kind, INPUT__TEST_SIZE=96)
    model = trained(new_model(cfg, 3, DEVICE))
    at_test_size = model_at_test_size(cfg, DEVICE)(model)
    loaded = model_of(saved(model), cfg, DEVICE, image_size=96)
    torch.testing.assert_close(logits(at_test_size, 96), logits(loaded, 96), rtol=0, atol=1e-6)
    state = loaded.backbone.state_dict()
    adapters = {name: value for name, value in model.backbone.state_dict().items() if is_adapter(name)}
    assert all(torch.equal(value, state[name]) for name, value in adapters.items())
    assert len(adapters) > 6


@pytest.mark.parametrize('kind', ['norm', 'bias', 'ssf'])
def test_running_statistics_are_those_of_the_base(kind, tmp_path):
    path = file_of(tmp_path, 'test_resnet', 64)
    cfg = config(MODEL__BACKBONE='test_resnet', MODEL__PRETRAINED=str(path), INPUT__SIZE=64, MODEL__TUNE=kind)
    model = new_model(cfg, 3, DEVICE)
    model.train()
    norms = [module for module in model.backbone.modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.backbone.training  # dropout and drop path follow train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not any('running' in name for name in saved(model).state_dict)


@pytest.mark.parametrize('kind', KINDS)
def test_optimizer_and_layer_decay(settings, kind):
    """Only tuned parameters have a state; those of an adapter have the factor of their block."""
    cfg = settings(MODEL__TUNE=kind, OPTIMIZER__LAYER_DECAY=0.5, OPTIMIZER__TYPE='adamw')
    model = new_model(cfg, 3, DEVICE)
    optimizer = build_optimizer(cfg, model)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in optimizer.state} == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    num_blocks = len(model.backbone.blocks)
    for group in optimizer.param_groups:
        for name in (names[id(parameter)] for parameter in group['params']):
            if name.startswith('backbone.blocks.'):
                assert group['lr_scale'] == 0.5 ** (num_blocks - int(name.split('.')[2])), name


def test_the_ema_averages_adapters_and_leaves_the_base(settings):
    model = new_model(settings(), 3, DEVICE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ema = ModelEMA(model, 0.5, constant=model.constant_names())
    trained(model)
    ema.update()
    for name, value in ema.state_dict().items():
        torch.testing.assert_close(value, (before[name] + model.state_dict()[name]) / 2, msg=name)
        assert torch.equal(value, before[name]) is (name in model.constant_names() or name.endswith('lora_scale'))


@pytest.mark.parametrize('after', ['lora', 'head', 'full', 'ssf', 'adaptformer'])
def test_fine_tuning_from_a_tuned_checkpoint(settings, after):
    """The same adapters are trained further; others start from merged weights. The first output is the same."""
    model = trained(new_model(settings(), 3, DEVICE))
    cfg = settings(MODEL__TUNE=after, MODEL__FREEZE_BACKBONE=after == 'head')
    started, _ = finetuned_model(saved(model), cfg, DEVICE, ['0', '1', '2'])
    torch.testing.assert_close(logits(started), logits(model), rtol=0, atol=1e-5)
    assert started.base is None
    assert any(name.endswith('lora_b') for name in started.state_dict()) is (after == 'lora')


def test_adaptformer_cannot_become_another_kind(settings):
    cfg = settings(MODEL__TUNE='adaptformer', MODEL__TUNE_RANK=4)
    checkpoint = saved(trained(new_model(cfg, 3, DEVICE)))
    started, _ = finetuned_model(checkpoint, cfg, DEVICE, ['0', '1', '2'])
    torch.testing.assert_close(logits(started), logits(model_of(checkpoint, cfg, DEVICE)), rtol=0, atol=0)
    with pytest.raises(UserError, match=r'^log/x/best_model.pth was trained with MODEL.TUNE adaptformer, which cannot'):
        finetuned_model(checkpoint, settings(MODEL__TUNE='lora'), DEVICE, ['0', '1', '2'])
    with pytest.raises(UserError, match=r'than MODEL.TUNE adaptformer, MODEL.TUNE_RANK 8: set both as in its training'):
        model_of(checkpoint, settings(MODEL__TUNE='adaptformer', MODEL__TUNE_RANK=8), DEVICE)


def test_the_log_line():
    cfg = config(MODEL__BACKBONE='test_vit', INPUT__SIZE=64, MODEL__TUNE='lora', MODEL__CLASSIFIER='linear')
    model = new_model(cfg, 10, DEVICE)
    total = sum(map(torch.numel, model.parameters()))
    num_lora = 6 * 8 * ((64 + 192) + (64 + 64) + 2 * (64 + 192))  # six blocks of width 64, MLPs of 192, rank 8
    number = num_lora + 10 * 64 + 10
    assert describe_tuning(model, cfg)[0] == (
        f'MODEL.TUNE lora, rank 8: {number:,} of {total:,} parameters are trained ({100 * number / total:.2g}%)'
    )
    assert describe_tuning(new_model(config(MODEL__BACKBONE='test_vit', INPUT__SIZE=64), 3, DEVICE), config()) == []


def test_the_exponent_of_gem_is_in_checkpoints_without_the_base(tmp_path):
    file = file_of(tmp_path, 'resnet18', 32)
    options = {'MODEL__BACKBONE': 'resnet18', 'MODEL__PRETRAINED': str(file), 'INPUT__SIZE': 32}
    cfg = config(**options, MODEL__TUNE='ssf', MODEL__POOL='gem', TRAIN__SAVE_WEIGHTS='tuned')
    model, images = trained(new_model(cfg, 3, DEVICE)), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        model.backbone.get_parameter('global_pool.gem_exponent').fill_(2.0)
        checkpoint = saved(model)
        assert 'backbone.conv1.weight' not in checkpoint.state_dict
        assert torch.equal(model_of(checkpoint, cfg, DEVICE).eval()(images), model(images))
        for pool in ('', 'gem'):  # fine-tuned with and without it
            other, _ = finetuned_model(checkpoint, config(**options, MODEL__POOL=pool), DEVICE, NAMES)
            assert ('global_pool.gem_exponent' in other.backbone.state_dict()) == (pool == 'gem')
    with pytest.raises(UserError, match=r'another pooling than MODEL.POOL avg.* --MODEL_POOL gem'):
        model_of(checkpoint, config(**options, MODEL__TUNE='ssf', MODEL__POOL='avg'), DEVICE)
