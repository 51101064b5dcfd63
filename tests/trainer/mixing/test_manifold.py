"""Manifold mixup: the stage of a step, and backbones that mix features, against backbones split by hand."""

import copy
import threading
from functools import cache

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from lib.backbone.create import create_backbone
from lib.trainer.mixing.base import MixDraws
from lib.trainer.mixing.manifold import ManifoldMixup
from lib.trainer.mixing.stages import MixedStages, StageError
from tests.oracles import mixing as oracle
from tests.trainer.mixing.batches import random_batch


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('stages', [(0, 1, 2), (0, 2), (1, 1, 3)])
def test_stages_have_equal_probabilities(stages, seed):
    mixer = ManifoldMixup(MixDraws(seed, 1.0), stages)
    drawn = [mixer._stage(epoch, first_slot) for epoch in range(20) for first_slot in range(0, 6400, 64)]
    counts = np.bincount(drawn, minlength=4)
    expected = np.bincount(stages, minlength=4) / len(stages) * len(drawn)
    assert (counts[expected == 0] == 0).all()
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-4


def test_the_stage_is_a_function_of_seed_epoch_and_slot():
    def stages(seed, epoch):
        mixer = ManifoldMixup(MixDraws(seed, 1.0), (0, 1, 2, 3))
        images, labels = random_batch(0, 2)
        return [mixer(images, labels, epoch=epoch, first_slot=slot).stage for slot in range(0, 40, 2)]

    assert stages(1, 2) == stages(1, 2)
    assert stages(1, 2) != stages(1, 3)
    assert stages(1, 2) != stages(2, 2)


def test_the_backbone_mixes_features():
    images, labels = random_batch(1, 6)
    mixed = ManifoldMixup(MixDraws(0, 1.0), (2,))(images, labels, epoch=0, first_slot=0)
    assert mixed.images is images
    assert mixed.stage == 2
    assert torch.equal(mixed.lam, mixed.targets.lam[:, 0])


@cache
def backbone_of(name: str) -> nn.Module:
    """A backbone with hooks, in train mode, where BatchNorm depends on which batch was mixed."""
    torch.manual_seed(0)
    return create_backbone(name, image_size=32).train()


def steps_of(name: str, backbone: nn.Module) -> list:
    """The functions before and between the stages of a backbone, and after the last, written by hand."""
    if name == 'res32_cifar':
        return [
            lambda x: F.relu(backbone.bn1(backbone.conv1(x))),
            backbone.layer1,
            backbone.layer2,
            backbone.layer3,
            lambda x: x.mean(dim=(2, 3)),
        ]
    if name == 'resnet18':
        return [
            lambda x: backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(x)))),
            backbone.layer1,
            backbone.layer2,
            backbone.layer3,
            backbone.layer4,
            lambda x: x.mean(dim=(2, 3)),
        ]
    assert name == 'vit_tiny_patch16_224'  # (batch, tokens, channels)
    return [
        lambda x: backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(x))),
        *backbone.blocks,
        lambda x: backbone.fc_norm(backbone.norm(x)[:, 0]),
    ]


def by_hand(name: str, backbone: nn.Module, images: torch.Tensor, stage: int, lam: torch.Tensor) -> torch.Tensor:
    x = images
    for number, step in enumerate(steps_of(name, backbone)):
        x = step(x)
        if number == stage:
            own = lam.view(-1, *[1] * (x.ndim - 1))
            x = own * x + (1 - own) * x[[oracle.partner(place, len(x)) for place in range(len(x))]]
    return x


CASES = [('res32_cifar', stage) for stage in (1, 2, 3)] + [('resnet18', stage) for stage in (1, 2, 3, 4)]
CASES += [('vit_tiny_patch16_224', stage) for stage in (1, 7, 12)]


@pytest.mark.parametrize(('name', 'stage'), CASES)
@pytest.mark.long
def test_features_against_a_split_backbone(name, stage):
    plain = backbone_of(name)
    hooked = copy.deepcopy(plain)
    stages = MixedStages(hooked)
    assert stages.num_stages == {'res32_cifar': 3, 'resnet18': 4, 'vit_tiny_patch16_224': 12}[name]
    images, _ = random_batch(stage, 5, side=32)
    lam = torch.tensor([0.2, 0.9, 0.0, 0.5, 1.0])
    with stages.mixing(stage, lam):
        found = hooked(images)
    torch.testing.assert_close(found, by_hand(name, plain, images, stage, lam), rtol=1e-4, atol=1e-4)
    # The comparison is not trivial: mixing changes the features.
    assert (found - copy.deepcopy(plain)(images)).abs().max() > 1e-2


def test_gradients_against_a_split_backbone():
    hooked = copy.deepcopy(backbone_of('res32_cifar'))
    plain, stages = copy.deepcopy(hooked), MixedStages(hooked)
    images, _ = random_batch(0, 4, side=16)
    lam = torch.tensor([0.2, 0.9, 0.6, 0.5])
    with stages.mixing(2, lam):
        hooked(images).square().sum().backward()
    by_hand('res32_cifar', plain, images, 2, lam).square().sum().backward()
    for (name, own), other in zip(hooked.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-3 * other.grad.abs().max().item(), msg=name)


def test_hooks_do_nothing_outside_of_the_block():
    hooked = copy.deepcopy(backbone_of('res32_cifar')).eval()
    images, _ = random_batch(0, 4, side=16)
    before, keys = hooked(images), list(hooked.state_dict())
    stages = MixedStages(hooked)
    assert torch.equal(hooked(images), before)
    with stages.mixing(1, torch.full((4,), 0.5)):
        assert not torch.equal(hooked(images), before)
    assert torch.equal(hooked(images), before)
    with pytest.raises(ZeroDivisionError), stages.mixing(1, torch.full((4,), 0.5)):
        _ = 1 / 0
    assert torch.equal(hooked(images), before)
    assert list(hooked.state_dict()) == keys


def test_lam_1_changes_nothing():
    hooked = copy.deepcopy(backbone_of('res32_cifar')).eval()
    stages = MixedStages(hooked)
    images, _ = random_batch(0, 4, side=16)
    before = hooked(images)
    for stage in (1, 2, 3):
        with stages.mixing(stage, torch.ones(4)):
            assert torch.equal(hooked(images), before)


def test_hooks_are_added_once_and_copied():
    hooked = copy.deepcopy(backbone_of('res32_cifar')).eval()
    stages = MixedStages(hooked)
    images, _ = random_batch(0, 4, side=16)
    lam = torch.tensor([0.2, 0.9, 0.6, 0.5])
    with stages.mixing(2, lam):
        expected = hooked(images)
    twin = copy.deepcopy(hooked)
    with stages.mixing(2, lam):
        assert torch.equal(twin(images), expected)
    for model in (hooked, twin):  # hooked again, they would mix twice
        with MixedStages(model).mixing(2, lam):
            assert torch.equal(model(images), expected)
    with copy.deepcopy(stages).mixing(2, lam):
        assert torch.equal(twin(images), expected)


def replica_of(module: nn.Module) -> nn.Module:
    """Return a replica like those of torch.nn.parallel.replicate, which does not work on the CPU."""
    replica = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        replica._modules[name] = replica_of(child)
    for name, parameter in module._parameters.items():
        setattr(replica, name, parameter.detach() if parameter is not None else None)
    return replica


def test_each_thread_mixes_its_own_slice():
    """As replicas of DataParallel, which share the hooks and run at the same time."""
    hooked = copy.deepcopy(backbone_of('res32_cifar')).eval()
    stages = MixedStages(hooked)
    images, _ = random_batch(0, 8, side=16)
    lam = torch.linspace(0, 1, 8)
    replicas = [replica_of(hooked) for _ in range(4)]
    # Two threads mix at stage 1, one at stage 3, one not at all.
    stage_of, barrier, found = [1, 3, 1, 0], threading.Barrier(4, timeout=30), {}

    def run(part: int) -> None:
        chunk = slice(2 * part, 2 * part + 2)
        barrier.wait()
        with torch.no_grad():
            if stage_of[part]:
                with stages.mixing(stage_of[part], lam[chunk]):
                    barrier.wait()
                    found[part] = replicas[part](images[chunk])
                    barrier.wait()
            else:
                barrier.wait()
                found[part] = replicas[part](images[chunk])
                barrier.wait()

    threads = [threading.Thread(target=run, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for part, stage in enumerate(stage_of):
        chunk = slice(2 * part, 2 * part + 2)
        expected = by_hand('res32_cifar', hooked, images[chunk], stage or -1, lam[chunk])
        torch.testing.assert_close(found[part], expected, rtol=1e-4, atol=1e-4)


def test_features_keep_the_type_of_autocast():
    hooked = copy.deepcopy(backbone_of('res32_cifar')).eval()
    stages, seen = MixedStages(hooked), []
    hooked.layer3.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    images, _ = random_batch(0, 4, side=16)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        hooked(images)
        with stages.mixing(2, torch.full((4,), 0.3)):
            hooked(images)
    assert seen[0] == seen[1]


def test_no_such_stage():
    stages = MixedStages(backbone_of('resnet18'))
    stages.check(0)
    for stage in (5, -1):
        with pytest.raises(StageError, match=rf'^stage {stage} .*ResNet has stages 1 \(layer1\) to 4 \(layer4\)'):
            stages.check(stage)
    with pytest.raises(StageError, match='has none'):
        MixedStages(nn.Linear(2, 2)).check(1)


class Branching(nn.Module):
    """A backbone with a stage that returns a list, one that is not used, and one that is used twice."""

    def __init__(self):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = Pair(), nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.layer3(self.layer3(sum(self.layer1(x))))


class Pair(nn.Module):
    def forward(self, x):
        return [x, x]


@pytest.mark.parametrize(
    ('stage', 'message'), [(1, 'Pair returns a list'), (2, 'layer2 0 times'), (3, 'layer3 2 times')]
)
def test_features_that_cannot_be_mixed_are_an_error(stage, message):
    model = Branching()
    stages = MixedStages(model)
    with pytest.raises(StageError, match=message), stages.mixing(stage, torch.ones(2)):
        model(torch.ones(2, 3))
    assert torch.equal(model(torch.ones(2, 3)), torch.full((2, 3), 2.0))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('resnest14d', ['layer1', 'layer2', 'layer3', 'layer4']),
        ('regnety_002', ['s1', 's2', 's3', 's4']),
        ('convnext_atto', ['stages.0', 'stages.1', 'stages.2', 'stages.3']),
        ('swin_tiny_patch4_window7_224', ['layers.0', 'layers.1', 'layers.2', 'layers.3']),
        ('tf_efficientnetv2_b0', ['blocks.1', 'blocks.2', 'blocks.4', 'blocks.5']),
        ('densenet121', ['features.denseblock1', 'features.denseblock2', 'features.denseblock3', 'features.norm5']),
    ],
)
def test_stages_of_other_families(name, expected):
    with torch.device('meta'):
        backbone = timm.create_model(name, num_classes=0)
    assert MixedStages(backbone)._names == expected
