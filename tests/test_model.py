"""The recogniser: names, precision, freezing, and checkpoints in the original's form."""

import copy

import pytest
import timm
import torch
from torch import nn

from lib.backbone.create import create_backbone
from lib.classifier.cosine import Cosine
from lib.classifier.linear import Linear
from lib.model import Recognizer


def small(classifier=None, **dtypes) -> Recognizer:
    torch.manual_seed(0)
    return Recognizer(create_backbone('res32_cifar', image_size=32), classifier or Linear(64, 10), **dtypes)


def test_logits_are_the_classifier_on_the_features():
    model = small().eval()
    images = torch.rand(3, 3, 32, 32)
    features = model.features(images)
    assert features.shape == (3, 64)
    torch.testing.assert_close(model(images), model.classifier(features))


@pytest.mark.parametrize('classifier', [Linear(64, 10), Cosine(64, 10, scale=16.0)], ids=['linear', 'cosine'])
def test_autocast_gives_float32_close_to_float32(classifier):
    exact = small(classifier=classifier).eval()
    mixed = small(classifier=classifier, eval_dtype=torch.bfloat16).eval()
    images = torch.rand(3, 3, 32, 32)
    seen = []
    mixed.backbone.conv1.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    logits = mixed(images)
    assert seen == [torch.bfloat16]
    assert mixed.features(images).dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact(images), atol=0.05 * exact(images).abs().max().item(), rtol=0)


def test_training_may_round_what_evaluation_does_not():
    exact, mixed = small().eval(), small(train_dtype=torch.bfloat16)
    images = torch.rand(3, 3, 32, 32)
    assert not torch.equal(mixed(images), exact.train()(images))
    mixed.load_state_dict(exact.eval().state_dict())
    assert torch.equal(mixed.eval()(images), exact(images))


def test_a_gradient_reaches_every_parameter():
    model = small(train_dtype=torch.bfloat16)
    model(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_frozen_backbone_stays_as_it_is():
    model = small()
    model.freeze_backbone()
    model.train()
    before = copy.deepcopy(model.backbone.state_dict())
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
    weight = model.classifier.weight.detach().clone()
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert model.classifier.training
    assert not any(module.training for module in model.backbone.modules())
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not torch.equal(model.classifier.weight, weight)
    assert not copy.deepcopy(model).train().backbone.training


def test_an_unfrozen_backbone_updates_its_statistics():
    model = small().train()
    before = model.backbone.bn1.running_mean.clone()
    model(torch.rand(4, 3, 32, 32))
    assert not torch.equal(model.backbone.bn1.running_mean, before)


def test_names_are_those_of_the_original_checkpoints():
    model = Recognizer(create_backbone('resnest50', image_size=64), Linear(2048, 7))
    names = set(model.state_dict())
    backbone = timm.create_model('resnest50d', num_classes=0)
    assert names == {f'backbone.{name}' for name in backbone.state_dict()} | {
        'classifier.weight',
        'classifier.bias',
    }
    # ResNeSt's own names: a deep stem, split attention in the place of the second convolution.
    assert {
        'backbone.conv1.0.weight',
        'backbone.conv1.6.weight',
        'backbone.bn1.running_mean',
        'backbone.layer1.0.conv2.conv.weight',
        'backbone.layer1.0.conv2.fc1.weight',
        'backbone.layer4.2.conv3.weight',
        'backbone.layer1.0.downsample.1.weight',
    } <= names
    assert set(nn.DataParallel(model).state_dict()) == {f'module.{name}' for name in names}


def test_a_checkpoint_of_the_original_gives_timms_logits(tmp_path):
    """Prefix `module.`, ResNeSt-50 and FC, and the same logits as timm's resnest50d."""
    torch.manual_seed(5)
    original = timm.create_model('resnest50d', num_classes=7).eval()
    state = {}
    for key, value in original.state_dict().items():
        head = key.startswith('fc.')
        state[f'module.classifier.{key[3:]}' if head else f'module.backbone.{key}'] = value
    torch.save({'state_dict': state, 'epoch': 119}, tmp_path / 'old.pth')
    loaded = torch.load(tmp_path / 'old.pth', weights_only=True)['state_dict']
    model = Recognizer(create_backbone('resnest50', image_size=64), Linear(2048, 7)).eval()
    model.load_state_dict({key.removeprefix('module.'): value for key, value in loaded.items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images))
