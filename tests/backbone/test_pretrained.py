"""Which weights of a file fit a backbone: containers, wrappers, EMA, other backbones."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision

from lib.backbone.bundled import weights_path
from lib.backbone.create import create_backbone
from lib.backbone.pretrained import load_pretrained
from lib.errors import UserError
from tests.backbone.small import Small, equal, other, prefixed, random_weights


@pytest.fixture(scope='module')
def weights():
    return random_weights()


PREFIXES = [
    '', 'module.', 'backbone.', 'encoder.', 'module.backbone.', '_orig_mod.', 'net.', 'encoder_q.', 'base_encoder.',
    'student.backbone.', '_orig_mod.module.', 'module._orig_mod.net.backbone.', 'a.b.c.d.',
]  # fmt: skip


@pytest.mark.parametrize(
    ('prefix', 'nested'),
    [*((prefix, 'state_dict') for prefix in PREFIXES), *(('net.module.', key) for key in (None, 'model', 'whatever'))],
)
def test_nesting_and_prefixes(tmp_path, weights, prefix, nested):
    state = prefixed(weights, prefix)
    torch.save({nested: state, 'epoch': 3} if nested else state, tmp_path / 'w.pth')
    backbone = Small()
    fit = load_pretrained(backbone, tmp_path / 'w.pth')
    assert fit.is_exact
    assert len(fit.weights) == len(weights)
    assert equal(backbone, weights)


@pytest.mark.parametrize('wrapper', ['_orig_mod', 'module', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'])
def test_wrappers_within_the_network(tmp_path, weights, wrapper):
    state = {key.replace('layer1.0.', f'layer1.{wrapper}.0.{wrapper}.'): value for key, value in weights.items()}
    torch.save(state, tmp_path / 'w.pth')
    backbone = Small()
    assert load_pretrained(backbone, tmp_path / 'w.pth').is_exact
    assert equal(backbone, weights)


CONTAINERS = ['state_dict_ema', 'model_ema', 'ema', 'teacher', 'ema_state_dict', 'swa_model']


@pytest.mark.parametrize(
    ('container', 'prefix', 'first'),
    [*((name, '', False) for name in CONTAINERS), ('ema', 'module.', True), ('teacher', 'backbone.module.', False)],
)
def test_ema_is_preferred_and_logged(tmp_path, weights, container, prefix, first):
    entries = {container: prefixed(weights, prefix), 'state_dict': prefixed(other(weights), prefix)}
    torch.save(dict(sorted(entries.items(), key=lambda item: (item[0] == container) != first)), tmp_path / 'w.pth')
    backbone = Small()
    fit = load_pretrained(backbone, tmp_path / 'w.pth')
    assert equal(backbone, weights)
    assert fit.is_mean
    assert fit.lines()[0].startswith(f'{len(weights)} tensors loaded from {container}')
    assert fit.lines()[0].endswith('(EMA)')


@pytest.mark.parametrize(
    ('chosen', 'rejected'),
    [
        ('ema_model.module.', 'model.'),
        ('teacher.backbone.', 'student.backbone.'),
        ('module.encoder_q.', 'module.encoder_k.'),
        ('module.base_encoder.', 'module.momentum_encoder.'),
        ('online_encoder.', 'target_encoder.'),
    ],
)
def test_two_networks_in_one_state_dict(tmp_path, weights, chosen, rejected):
    """Lightning and self-supervised training: an EMA first, else the network that comes first."""
    state = prefixed(weights, chosen) | prefixed(other(weights), rejected) | {'queue': torch.rand(4, 4)}
    torch.save({'state_dict': state}, tmp_path / 'w.pth')
    backbone = Small()
    assert load_pretrained(backbone, tmp_path / 'w.pth').is_exact
    assert equal(backbone, weights)


def test_incomplete_ema_is_not_used(tmp_path, weights):
    ema = {key: value for key, value in other(weights).items() if not key.startswith('layer3.')}
    torch.save({'ema': ema, 'model': weights}, tmp_path / 'w.pth')
    backbone = Small()
    fit = load_pretrained(backbone, tmp_path / 'w.pth')
    assert equal(backbone, weights)
    assert fit.lines() == [f'{len(weights)} tensors loaded from model', 'EMA not used, it is incomplete: ema']


def test_state_of_the_optimizer_is_no_network(tmp_path, weights):
    """FSDP and others store it by the names of the weights."""
    state = {key: value for key, value in weights.items() if not key.endswith('num_batches_tracked')}
    torch.save({'optimizer': {'exp_avg_ema': other(state)}, 'model': state}, tmp_path / 'w.pth')
    backbone = Small()
    load_pretrained(backbone, tmp_path / 'w.pth')
    assert torch.equal(backbone.conv1.weight, weights['conv1.weight'])


def test_every_key_is_reported(tmp_path, weights):
    state = prefixed(weights, 'module.backbone.')
    del state['module.backbone.bn1.num_batches_tracked']
    state['module.backbone.decoder.weight'] = torch.zeros(2)
    state['module.backbone.classifier.weight'] = torch.zeros(10, 64)
    torch.save({'state_dict': state}, tmp_path / 'w.pth')
    fit = load_pretrained(Small(), tmp_path / 'w.pth')
    assert fit.others == ('decoder.weight',)
    assert fit.classifier == ('classifier.weight',)
    assert not fit.missing
    assert fit.lines() == [
        f'{len(weights) - 1} tensors loaded from state_dict.backbone',
        'classifier not used: classifier.weight',
        '1 other tensors not used: decoder.weight',
    ]


def test_a_module_that_the_file_lacks_is_logged(tmp_path):
    """As the norm of a ViT after pooling, which masked autoencoders do not train."""
    torch.manual_seed(0)
    state = timm.create_model('test_vit', num_classes=0).state_dict()
    state = {key: value for key, value in state.items() if not key.startswith('norm.')}
    torch.save(state, tmp_path / 'w.pth')
    fit = load_pretrained(create_backbone('test_vit', image_size=160), tmp_path / 'w.pth')
    assert fit.lines()[-1] == 'not in the file, so random: norm.weight, norm.bias'


@pytest.mark.long
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'old format'])
def test_torchvision_resnet50_loads(tmp_path, zipped):
    """resnet50-19c8e357.pth has the old format of torch and no batch counters."""
    torch.manual_seed(4)
    original = torchvision.models.resnet50().eval()
    state = {k: v for k, v in original.state_dict().items() if not k.endswith('num_batches_tracked')}
    torch.save(state, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    backbone = create_backbone('res50', image_size=64).eval()
    fit = load_pretrained(backbone, tmp_path / 'w.pth')
    assert not fit.missing
    assert fit.classifier == ('fc.weight', 'fc.bias')
    original.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), original(images))


@pytest.mark.long
@pytest.mark.parametrize('backbone', [pytest.param('vgg11', marks=pytest.mark.slow), 'densenet121'])
def test_torchvision_files_that_timm_reads(tmp_path, backbone):
    """timm's functions for VGG and DenseNet take the weights only, and rename them."""
    torch.manual_seed(0)
    original = getattr(torchvision.models, backbone)().eval()
    torch.save(original.state_dict(), tmp_path / 'w.pth')
    loaded = create_backbone(backbone, image_size=224).eval()
    fit = load_pretrained(loaded, tmp_path / 'w.pth', backbone, 224)
    assert not fit.missing
    assert not fit.resampled
    last = [name for name, module in original.named_modules() if isinstance(module, torch.nn.Linear)][-1]
    original.get_submodule(last.rpartition('.')[0])._modules[last.rpartition('.')[2]] = torch.nn.Identity()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), original(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('of_file', 'backbone', 'part'),
    [
        ('test_resnet', 'test_vit', 'missing'),
        ('test_vit', 'test_vit2', 'missing'),
        ('test_vit2', 'test_vit', 'unknown'),
        ('test_vit3', 'test_vit', 'MODEL.BACKBONE test_vit of 160 px'),
        ('test_convnext', 'test_convnext2', 'another shape'),
    ],
)
def test_another_backbone_is_one_error_line(tmp_path, of_file, backbone, part):
    torch.save(timm.create_model(of_file).state_dict(), tmp_path / 'w.pth')
    with pytest.raises(UserError, match=r'w\.pth does not fit MODEL\.BACKBONE') as caught:
        load_pretrained(create_backbone(backbone, image_size=160), tmp_path / 'w.pth', backbone, 160)
    assert part in str(caught.value)
    assert 'set MODEL.BACKBONE as in its training' in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize(
    ('of_file', 'backbone'),
    [('resnet18', 'resnet34'), ('resnet34', 'resnet18'), ('resnet18', 'resnet18d'), ('resnet18', 'seresnet18')],
)
def test_weights_that_fit_in_part_are_an_error(tmp_path, of_file, backbone):
    """All tensors of ResNet-18 fit a ResNet-34, of which half would stay random."""
    torch.save(timm.create_model(of_file).state_dict(), tmp_path / 'w.pth')
    with pytest.raises(UserError, match=r'does not fit MODEL\.BACKBONE'):
        load_pretrained(create_backbone(backbone, image_size=64), tmp_path / 'w.pth', backbone, 64)


def test_images_of_another_number_of_channels(tmp_path, weights):
    """timm adapts weights for three channels to other numbers, but not the other way round."""
    torch.save(weights | {'conv1.weight': torch.zeros(16, 1, 3, 3)}, tmp_path / 'w.pth')
    message = r'1 of another shape \(conv1.weight \(16, 1, 3, 3\) instead of \(16, 3, 3, 3\)\)'
    with pytest.raises(UserError, match=message):
        load_pretrained(Small(), tmp_path / 'w.pth')


def test_no_match_is_the_same_error(tmp_path):
    torch.save({'stem.kernel': torch.zeros(2, 3)}, tmp_path / 'w.pth')
    with pytest.raises(UserError, match=r'does not fit MODEL.BACKBONE.* unknown \(stem.kernel\)'):
        load_pretrained(Small(), tmp_path / 'w.pth')


def test_files_in_pretrain_models_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / 'here' / 'pretrain_models').mkdir(parents=True)
    (tmp_path / 'checkout' / 'pretrain_models').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setattr('lib.backbone.bundled.CHECKOUT', tmp_path / 'checkout')
    backbone = Small()
    torch.save(backbone.state_dict(), tmp_path / 'checkout' / 'pretrain_models' / 'small-1.pth')
    assert load_pretrained(Small(), 'small-1.pth').is_exact
    assert weights_path('small-1.pth') == tmp_path / 'checkout' / 'pretrain_models' / 'small-1.pth'
    # The current directory comes first, and a path before both.
    torch.save(backbone.state_dict(), tmp_path / 'here' / 'pretrain_models' / 'small-1.pth')
    assert weights_path('small-1.pth') == Path('pretrain_models', 'small-1.pth')
    torch.save(backbone.state_dict(), tmp_path / 'here' / 'small-1.pth')
    assert weights_path('small-1.pth') == Path('small-1.pth')
    assert weights_path(str(tmp_path / 'here' / 'small-1.pth')).is_file()


@pytest.mark.parametrize(
    ('text', 'hint'),
    [
        ('smal-1.pth', ' (did you mean small-1.pth?)'), ('bundle', ' (did you mean bundled?)'), ('zzz', ''),
        ('folder/smal-1.pth', ' (did you mean small-1.pth?)'),
    ],
)  # fmt: skip
def test_a_missing_file_is_one_line_with_what_is_allowed(tmp_path, monkeypatch, text, hint):
    (tmp_path / 'pretrain_models').mkdir()
    (tmp_path / 'pretrain_models' / 'small-1.pth').touch()
    (tmp_path / 'pretrain_models' / '.gitkeep').touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('lib.backbone.bundled.CHECKOUT', tmp_path / 'nowhere')
    with pytest.raises(UserError) as caught:
        load_pretrained(Small(), text)
    allowed = "auto, bundled, timm, a weights file, the name of one in ./pretrain_models, or ''"
    assert str(caught.value) == f'MODEL.PRETRAINED {text}: no such file; set {allowed}{hint}'
    with pytest.raises(UserError, match='is a folder; give the weights file in it'):
        load_pretrained(Small(), 'pretrain_models')
