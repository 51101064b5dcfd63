"""Parameter-efficient tuning: what is trained, how many parameters, their gradients, and merged weights."""

import importlib
import random

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from lib.backbone.adapters import is_adapter, merge_into_backbone
from lib.backbone.create import create_backbone
from lib.backbone.tuning import blocks_of, tune_backbone
from lib.errors import UserError

KINDS = ('norm', 'bias', 'ssf', 'lora', 'adaptformer')
# ViT-Tiny: width, blocks, width of the MLP; RANK is given, so that a default does not hide an error.
D, L, H, RANK = 192, 12, 768, 4
# Per block: qkv, proj, fc1, fc2 (inputs, outputs) and two norms; beside the blocks: one norm and the patches.
LINEAR = ((D, 3 * D), (D, D), (D, H), (H, D))
NUM_TRAINED = {
    'norm': L * 2 * 2 * D + 2 * D,
    'bias': L * (sum(out for _, out in LINEAR) + 2 * D) + D + D,
    'ssf': 2 * (L * (sum(out for _, out in LINEAR) + 2 * D) + D + D),
    'lora': L * sum(RANK * (inputs + out) for inputs, out in LINEAR),
    'adaptformer': L * (D * RANK + RANK + RANK * D + D + 1),
}
# Foundation models of timm by their names there, at reduced depth and width: SigLIP 2 has the names of SigLIP, EUPE
# those of DINOv3 and ConvNeXt. Where an entry lists kinds, the others are an error.
NARROW = {'depth': 1, 'embed_dim': 96, 'num_heads': 3}
SMALL = {
    'vit_small_patch14_dinov2': ({**NARROW, 'depth': 2, 'img_size': 28}, KINDS),
    'vit_small_patch14_reg4_dinov2': ({**NARROW, 'depth': 2, 'img_size': 28}, KINDS),
    'vit_small_patch16_dinov3': ({**NARROW, 'depth': 2, 'img_size': 32}, KINDS),
    'vit_tiny_patch16_dinov3_qkvb': ({'depth': 2, 'img_size': 32}, KINDS),
    'vit_small_plus_patch16_dinov3': ({**NARROW, 'depth': 2, 'img_size': 32}, KINDS),
    'vit_base_patch16_siglip_224': ({**NARROW, 'img_size': 32}, KINDS),
    'vit_base_patch16_siglip_gap_224': ({**NARROW, 'img_size': 32}, KINDS),
    'vit_base_patch16_clip_224': ({**NARROW, 'img_size': 32}, KINDS),
    'eva02_tiny_patch14_224': ({'depth': 2, 'img_size': 28}, KINDS),
    'beit_base_patch16_224': ({**NARROW, 'img_size': 32}, KINDS),
    'swinv2_tiny_window8_256': ({'depths': (1, 1), 'embed_dim': 48, 'num_heads': (3, 6), 'img_size': 64}, KINDS),
    'convnext_tiny': ({'depths': (1, 1, 1, 1), 'dims': (24, 48, 64, 96)}, KINDS),
    'convnext_atto': ({'depths': (1, 1, 1, 1)}, ('norm', 'bias', 'ssf')),
    'test_resnet': ({}, ('norm', 'bias', 'ssf')),
    'test_efficientnet': ({}, ('norm', 'bias', 'ssf')),
    'test_nfnet': ({}, ('bias', 'ssf')),
}


@pytest.fixture(autouse=True)
def seed():
    number = random.randrange(10**6)
    print(f'seed {number}')
    torch.manual_seed(number)


def tuned(backbone: nn.Module, kind: str, **options) -> nn.Module:
    tune_backbone(backbone, kind, **({'rank': RANK} | options))
    return backbone


def moved(backbone: nn.Module, size: float = 0.02) -> nn.Module:
    """Move the trained parameters, so that adapters compute something."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return backbone


def small_backbone(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a shallow backbone and images; scales of zero, which hide layers, become one."""
    options = SMALL[name][0]
    backbone = timm.create_model(name, num_classes=0, **options).eval()
    with torch.no_grad():
        for key, value in backbone.named_parameters():
            if 'gamma' in key or key.endswith('gain') or ('norm' in key and key.endswith('weight')):
                value.fill_(1.0)
    size = options.get('img_size', 64)
    return backbone, torch.randn(2, 3, size, size)


def linear_names(backbone: nn.Module) -> list[str]:
    return [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]


@pytest.mark.long
@pytest.mark.parametrize('kind', KINDS)
def test_number_of_parameters(kind):
    backbone = tuned(create_backbone('vit_tiny_patch16_224', image_size=64), kind)
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    assert sum(map(torch.numel, trained)) == NUM_TRAINED[kind]


@pytest.mark.long
@pytest.mark.parametrize('name', SMALL)
def test_families(name):
    """Each kind starts as the base with its names, trains only its parameters, and merges, or is one error."""
    for kind in KINDS:
        backbone, images = small_backbone(name)
        state = {key: value.clone() for key, value in backbone.state_dict().items()}
        with torch.no_grad():
            expected = backbone(images)
        kinds = SMALL[name][1]
        if kind not in kinds:
            allowed = ', '.join(kinds)
            with pytest.raises(
                UserError, match=rf'MODEL.TUNE {kind} needs .*set MODEL.TUNE to {allowed}, head or full'
            ):
                tuned(backbone, kind)
            continue
        tuned(backbone, kind)
        assert torch.equal(backbone(images), expected), kind
        now = backbone.state_dict()
        assert all(torch.equal(now[key], value) for key, value in state.items())
        assert all(map(is_adapter, now.keys() - state.keys()))
        moved(backbone)
        images = images.requires_grad_()
        result = backbone(images)
        assert (result - expected).abs().max() > 1e-4
        result.square().sum().backward()
        for key, parameter in backbone.named_parameters():
            assert parameter.requires_grad is (parameter.grad is not None), (kind, key)
        check_one_step(backbone)
        result = backbone(images)
        merge_into_backbone(backbone)
        if kind != 'adaptformer':
            assert backbone.state_dict().keys() == state.keys()
            plain = small_backbone(name)[0]
            plain.load_state_dict(backbone.state_dict())
            backbone = plain
        result = result.detach()
        scale = max(1.0, float(result.abs().max()))
        torch.testing.assert_close(backbone(images) / scale, result / scale, rtol=0, atol=1e-5)


def check_one_step(backbone: nn.Module) -> None:
    """A step changes each parameter with a gradient, and nothing else."""
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    gradients = {key: parameter.grad for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    torch.optim.SGD([value for value in backbone.parameters() if value.requires_grad], lr=1e-3).step()
    for key, value in backbone.state_dict().items():
        gradient = gradients.get(key)
        expected = before[key] if gradient is None else before[key] - 1e-3 * gradient
        torch.testing.assert_close(value, expected)


def layer_and_values(backbone: nn.Module, name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a layer and a dict that gets its inputs `x` and the gradient `dy` of its outputs."""
    layer, values = backbone.get_submodule(name), {}
    layer.register_forward_hook(lambda _, inputs, __: values.update(x=inputs[0].detach().flatten(0, -2)))
    layer.register_full_backward_hook(lambda _, __, gradients: values.update(dy=gradients[0].flatten(0, -2)))
    return layer, values


def test_gradients_of_lora():
    """y = (W + s B A) x: dB = s dy (A x)^T and dA = s B^T dy x^T, summed over the tokens."""
    backbone = moved(tuned(create_backbone('test_vit', image_size=32).double().eval(), 'lora', scale=0.5))
    layer, values = layer_and_values(backbone, 'blocks.1.mlp.fc1')
    backbone(torch.randn(3, 3, 32, 32, dtype=torch.float64)).square().sum().backward()
    x, dy, a, b = values['x'], values['dy'], layer.lora_a.detach(), layer.lora_b.detach()
    torch.testing.assert_close(layer.lora_b.grad, 0.5 * dy.T @ (x @ a.T))
    torch.testing.assert_close(layer.lora_a.grad, 0.5 * (dy @ b).T @ x)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert float(layer.lora_a.grad.abs().max()) > 0


def test_gradients_of_ssf():
    """y = g (W x + b) + t: dg = sum of dy (W x + b), dt = sum of dy."""
    backbone = moved(tuned(create_backbone('test_vit', image_size=32).double().eval(), 'ssf'))
    layer, values = layer_and_values(backbone, 'blocks.1.attn.proj')
    stored = {name: value.detach() for name, value in layer.named_parameters()}
    backbone(torch.randn(3, 3, 32, 32, dtype=torch.float64)).square().sum().backward()
    x, dy = values['x'], values['dy']
    base = x @ stored['weight'].T + stored['bias']
    torch.testing.assert_close(layer.ssf_scale.grad, (dy * base).sum(0))
    torch.testing.assert_close(layer.ssf_shift.grad, dy.sum(0))
    torch.testing.assert_close(layer(x), stored['ssf_scale'] * base + stored['ssf_shift'])
    torch.testing.assert_close(F.linear(x, layer.weight, layer.bias), layer(x))


def test_adaptformer_is_the_equation():
    """MLP(x) + s Up(ReLU(Down(x))) of Chen et al., with s = 0.1."""
    backbone = tuned(create_backbone('test_vit', image_size=32), 'adaptformer').eval()
    assert backbone.blocks[0].mlp.adaptformer.scale.item() == pytest.approx(0.1)
    moved(backbone)
    mlp = backbone.blocks[0].mlp
    x, adapter = torch.randn(5, 64), mlp.adaptformer
    down = torch.relu(x @ adapter.down.weight.T + adapter.down.bias)
    up = down @ adapter.up.weight.T + adapter.up.bias
    plain = mlp.fc2(F.gelu(mlp.fc1(x)))
    torch.testing.assert_close(mlp(x), plain + adapter.scale * up)


def test_adaptformer_beside_a_sequence():
    """nn.Sequential calls all its children, but the adapter is none of its steps."""
    mlp = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    x = torch.randn(2, 3)
    expected = mlp(x)
    moved(tuned(nn.ModuleDict({'mlp': mlp}), 'adaptformer'))
    torch.testing.assert_close(mlp(x), expected + mlp.adaptformer(x))
    assert (mlp.adaptformer(x) != 0).all()


def test_code_that_reads_the_weight_itself_gets_the_adapted_one():
    """EVA computes q, k and v from `qkv.weight`, not by calling the layer."""
    backbone, images = small_backbone('eva02_tiny_patch14_224')
    tuned(backbone, 'lora')
    before = backbone(images)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith(('q_proj.lora_b', 'qkv.lora_b')):
                parameter.normal_()
    assert not torch.allclose(backbone(images), before, atol=1e-4)


def test_the_start_depends_on_the_seed_only():
    first, again, other = (
        tuned(create_backbone('test_vit', image_size=32), 'lora', seed=seed).state_dict() for seed in (1, 1, 2)
    )
    name = 'blocks.0.attn.qkv.lora_a'
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    bound = 1 / 64**0.5
    assert 0.9 * bound < float(first[name].abs().max()) <= bound


def test_lora_is_in_attention_and_mlp_only():
    backbone = tuned(create_backbone('swinv2_tiny_window8_256', image_size=64), 'lora')
    adapted = {name.rpartition('.')[0] for name, _ in backbone.named_parameters() if name.endswith('lora_a')}
    assert adapted == {
        name
        for name in linear_names(backbone)
        if name.endswith(('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'))  # not cpb_mlp, not the reduction
    }


@pytest.mark.parametrize('kind', ['lora', 'ssf', 'adaptformer'])
def test_bfloat16_stays_bfloat16(kind):
    backbone = tuned(create_backbone('test_vit', image_size=32), kind)
    dtypes = set()
    backbone.blocks[0].mlp.fc1.register_forward_hook(lambda *values: dtypes.add(values[2].dtype))
    backbone.blocks[0].mlp.register_forward_hook(lambda *values: dtypes.add(values[2].dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        backbone(torch.randn(2, 3, 32, 32))
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize('kind', ['lora', 'ssf'])
def test_replicas_of_data_parallel(kind, monkeypatch):
    """DataParallel assigns plain tensors to the names of parameters; without GPUs the copies are those of the CPU."""
    backbone = moved(tuned(create_backbone('test_vit', image_size=32), kind)).eval()
    module = importlib.import_module('torch.nn.parallel.replicate')

    def copies(tensors, devices, detach=False):
        return [[tensor.view_as(tensor) for tensor in tensors] for _ in devices]

    monkeypatch.setattr(module, '_broadcast_coalesced_reshape', copies)
    images = torch.randn(2, 3, 32, 32)
    for replica in module.replicate(backbone, [0, 1]):
        assert torch.equal(replica(images), backbone(images))


def test_nothing_to_train():
    with pytest.raises(UserError, match=r'^MODEL.TUNE norm needs normalization layers, but MODEL.BACKBONE x has none'):
        tune_backbone(nn.Linear(2, 2), 'norm', name='x')


@pytest.mark.long
@pytest.mark.parametrize(
    ('name', 'some'),
    [
        ('vit_tiny_patch16_224', {'patch_embed', 'blocks.0', 'blocks.11'}),
        ('resnet18', {'layer1.0', 'layer4.1'}),
        ('convnext_atto', {'stages.1.downsample', 'stages.1.blocks.0', 'stages.3.blocks.1'}),
        ('swin_tiny_patch4_window7_224', {'layers.1.downsample', 'layers.3.blocks.1'}),
    ],
)
def test_blocks_run_once_and_hold_nearly_all_parameters(name, some):
    with torch.device('meta'):
        backbone = timm.create_model(name, num_classes=0)
        blocks, calls = blocks_of(backbone), []
        names = {module: path for path, module in backbone.named_modules()}
        for block in blocks:
            block.register_forward_hook(lambda module, *_: calls.append(names[module]))
        backbone(torch.empty(2, 3, 224, 224))
    assert calls == [names[block] for block in blocks]
    assert some <= set(calls)
    inside = [parameter for block in blocks for parameter in block.parameters()]
    assert len(set(inside)) == len(inside)
    assert sum(map(torch.numel, inside)) > 0.9 * sum(map(torch.numel, backbone.parameters()))


def test_a_backbone_without_stages_has_no_blocks():
    assert blocks_of(nn.Sequential(nn.Linear(3, 3))) == []
