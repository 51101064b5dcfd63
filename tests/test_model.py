"""The recognizer: parameter names, precision, freezing, and checkpoints of the original project."""

import copy

import pytest
import timm
import torch
from torch import nn

from lib.backbone.create import create_backbone, num_features_of
from lib.classifier.cosine import CosineClassifier, Projector
from lib.classifier.linear import LinearClassifier
from lib.errors import UserError
from lib.model import NoRandomWeights, Recognizer


def small(classifier=None, **dtypes) -> Recognizer:
    torch.manual_seed(0)
    return Recognizer(create_backbone('res32_cifar', image_size=32), classifier or LinearClassifier(64, 10), **dtypes)


def test_logits_are_the_classifier_of_the_features():
    model = small().eval()
    images = torch.rand(3, 3, 32, 32)
    features = model.features(images)
    assert features.shape == (3, 64)
    torch.testing.assert_close(model(images), model.classifier(features))


@pytest.mark.parametrize(
    'classifier', [LinearClassifier(64, 10), CosineClassifier(64, 10, scale=16.0)], ids=['linear', 'cosine']
)
def test_autocast_gives_float32_close_to_float32(classifier):
    exact = small(classifier=classifier).eval()
    mixed = small(classifier=classifier, eval_dtype=torch.bfloat16).eval()
    images = torch.rand(3, 3, 32, 32)
    dtypes = []
    mixed.backbone.conv1.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    logits = mixed(images)
    assert dtypes == [torch.bfloat16]
    assert mixed.features(images).dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact(images), atol=0.05 * exact(images).abs().max().item(), rtol=0)


def test_train_and_eval_dtype_are_separate():
    exact, mixed = small().eval(), small(train_dtype=torch.bfloat16)
    images = torch.rand(3, 3, 32, 32)
    assert not torch.equal(mixed(images), exact.train()(images))
    mixed.load_state_dict(exact.eval().state_dict())
    assert torch.equal(mixed.eval()(images), exact(images))


def test_every_parameter_gets_a_gradient():
    model = small(train_dtype=torch.bfloat16)
    model(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_frozen_backbone_does_not_change():
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


def test_frozen_backbone_can_shift_its_batchnorm():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.5))
    backbone.num_features = 8 * 30 * 30
    model = Recognizer(backbone, LinearClassifier(backbone.num_features, 2)).train()
    model.freeze_backbone(shift_batchnorm=True)
    norm, images = backbone[1], torch.rand(4, 3, 32, 32)
    before = copy.deepcopy(backbone.state_dict())
    activations = backbone[0](images)
    features = model.features(images)
    # Normalized by the batch, without dropout; statistics change, parameters do not.
    expected = (activations - activations.mean((0, 2, 3), keepdim=True)) / (
        activations.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(features, expected.flatten(1))
    torch.testing.assert_close(norm.running_mean, 0.1 * activations.mean((0, 2, 3)))
    assert not features.requires_grad
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]) == ('running' not in key and 'num_batches' not in key), key
    moved = norm.running_mean.clone()
    model.eval().features(images)
    assert torch.equal(norm.running_mean, moved)
    model.train()
    assert [module.training for module in backbone] == [False, True, False, False]


def test_projector_embeds_features_and_rows():
    plain = small()
    model = small(projector=Projector(64, 16), train_dtype=torch.bfloat16)
    assert plain.projector is None
    names = {name for name in model.state_dict() if name.startswith('projector.')}
    assert set(model.state_dict()) == set(plain.state_dict()) | names
    embeddings, prototypes = model.embed(model.features(torch.rand(4, 3, 32, 32))), model.prototypes()
    assert (embeddings.shape, prototypes.shape) == ((4, 16), (10, 16))
    for vectors in (embeddings, prototypes):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    (embeddings @ prototypes.T)[:, 0].sum().backward()
    assert model.classifier.weight.grad.abs().sum() > 0
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


def test_unfrozen_backbone_updates_its_statistics():
    model = small().train()
    before = model.backbone.bn1.running_mean.clone()
    model(torch.rand(4, 3, 32, 32))
    assert not torch.equal(model.backbone.bn1.running_mean, before)


def test_names_are_those_of_the_original_checkpoints():
    model = Recognizer(create_backbone('resnest50', image_size=64), LinearClassifier(2048, 7))
    names = set(model.state_dict())
    backbone = timm.create_model('resnest50d', num_classes=0)
    assert names == {f'backbone.{name}' for name in backbone.state_dict()} | {
        'classifier.weight',
        'classifier.bias',
    }
    # Names of ResNeSt: a deep stem, split attention instead of the second convolution.
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


@pytest.mark.long
def test_original_checkpoint_gives_the_logits_of_timm(tmp_path):
    """With prefix `module.`, ResNeSt-50 and FC, the logits are those of timm's resnest50d."""
    torch.manual_seed(5)
    original = timm.create_model('resnest50d', num_classes=7).eval()
    state = {}
    for key, value in original.state_dict().items():
        is_classifier = key.startswith('fc.')
        state[f'module.classifier.{key[3:]}' if is_classifier else f'module.backbone.{key}'] = value
    torch.save({'state_dict': state, 'epoch': 119}, tmp_path / 'old.pth')
    loaded = torch.load(tmp_path / 'old.pth', weights_only=True)['state_dict']
    model = Recognizer(create_backbone('resnest50', image_size=64), LinearClassifier(2048, 7)).eval()
    model.load_state_dict({key.removeprefix('module.'): value for key, value in loaded.items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images))


# Backbone -> prefixes of the parameters in its stem and first stage, by hand.
FIRST_TWO_STAGES = {
    'tf_efficientnet_lite0': ('conv_stem.', 'bn1.', 'blocks.0.'),
    'resnet18': ('conv1.', 'bn1.', 'layer1.'),
    'vit_tiny_patch16_224': ('cls_token', 'pos_embed', 'patch_embed.', 'blocks.0.'),
    'convnext_atto': ('stem.', 'stages.0.'),
}


@pytest.mark.long
@pytest.mark.parametrize('name', FIRST_TWO_STAGES)
def test_frozen_stages_do_not_change_and_the_others_do(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=64)
    model = Recognizer(backbone, LinearClassifier(num_features_of(backbone), 5))
    model.freeze_stages(2, name=name)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    model.train()
    model(torch.rand(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    after = model.backbone.state_dict()
    frozen = {key for key in before if key.startswith(FIRST_TWO_STAGES[name])}
    assert all(torch.equal(after[key], before[key]) for key in frozen)
    trained = {key for key, parameter in model.backbone.named_parameters() if parameter.grad is not None}
    assert trained == {key for key, _ in model.backbone.named_parameters()} - frozen
    statistics = [key for key in before.keys() - frozen if key.endswith('running_mean')]
    assert not any(torch.equal(after[key], before[key]) for key in statistics)


def test_stages_that_do_not_exist_are_an_error():
    model = Recognizer(create_backbone('resnet18', image_size=32), LinearClassifier(512, 5))
    with pytest.raises(UserError, match=r'FREEZE_STAGES is 5, but MODEL\.BACKBONE resnet18 has 5 stages: set 0 to 4'):
        model.freeze_stages(5, name='resnet18')
    model.backbone = nn.Sequential(nn.Conv2d(3, 8, 1))
    with pytest.raises(UserError, match='mine defines no stages: set --MODEL_FREEZE_STAGES 0'):
        model.freeze_stages(1, name='mine')


@pytest.mark.parametrize('name', ['res32_cifar', 'resnet18', 'test_vit', 'test_convnext'])
def test_a_model_without_random_weights_draws_no_number_and_is_completed_by_loading(name):
    def build() -> Recognizer:
        return Recognizer(create_backbone(name, image_size=64), LinearClassifier(64, 1000))

    torch.manual_seed(0)
    expected = build()
    before = torch.get_rng_state()
    with NoRandomWeights():
        model = build()
    assert torch.equal(torch.get_rng_state(), before)
    model.load_state_dict(expected.state_dict())
    buffers = dict(expected.named_buffers())  # those that are no part of the state are computed, not drawn
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
