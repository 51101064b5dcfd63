"""Parameter-efficient fine-tuning: the parameters of a backbone that are trained, and the modules that get adapters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lib.backbone.adapters import add_adaptformer, add_low_rank, add_scale_and_shift, linear_layers, own_parameters
from lib.errors import UserError

# Rank if none is given: Hu et al. use 1 to 64 (8 in most tables), Chen et al. 64.
DEFAULT_RANK = {'lora': 8, 'adaptformer': 64}
# Scale if none is given: alpha / r = 1, and s of Chen et al., section 4.3.
DEFAULT_SCALE = {'lora': 1.0, 'adaptformer': 0.1}
# Small networks inside of attention, which compute the bias of a relative position.
_POSITION_NETWORKS = {'rel_pos', 'cpb_mlp', 'meta_mlp'}


@dataclass(frozen=True)
class BaseWeights:
    """Identity of the constant weights of a tuned backbone, from which they are loaded again.

    Attributes:
        backbone, pretrained: MODEL.BACKBONE, and the source of its weights (MODEL.PRETRAINED).
        image_size: in pixels, to which positions were resampled.
        digest: of the constant weights, without those that were resampled, which depend on the machine in the last bit.
    """

    backbone: str
    pretrained: str
    image_size: int
    digest: str


def tune_backbone(
    backbone: nn.Module, kind: str, *, rank: int = 0, scale: float = 0.0, seed: int = 0, name: str = ''
) -> None:
    """Freeze `backbone` except for the parameters that `kind` trains, adapters included. Its output does not change.

    - norm: weight and bias of normalization layers (Frankle et al., ICLR 2021).
    - bias: all bias vectors (BitFit: Ben Zaken et al., ACL 2022).
    - ssf: a scale and a shift per channel of linear, convolution and normalization layers (Lian et al., NeurIPS 2022).
    - lora: W + scale * B A for the linear layers of attention and MLP (Hu et al., ICLR 2022), B = 0 at the start.
    - adaptformer: MLP(x) + s Up(ReLU(Down(x))) (Chen et al., NeurIPS 2022, eq. 3), Up = 0 at the start.

    Args:
        rank: r of LoRA, or the width between Down and Up; 0: DEFAULT_RANK.
        scale: alpha / r of LoRA, or s; 0: DEFAULT_SCALE.
        seed: seed of A and Down.
        name: MODEL.BACKBONE, for the error message.

    Raises:
        UserError: the backbone has nothing that `kind` could train.
    """
    targets = _TARGETS[kind](backbone)
    if not targets:
        kinds = [other for other, find in _TARGETS.items() if find(backbone)]
        raise UserError(
            f'MODEL.TUNE {kind} needs {_NEEDS[kind]}, but MODEL.BACKBONE {name or type(backbone).__name__} has none: '
            f'set MODEL.TUNE to {", ".join([*kinds, "head"])} or full'
        )
    backbone.requires_grad_(False)
    rank, scale = rank or DEFAULT_RANK.get(kind, 0), scale or DEFAULT_SCALE.get(kind, 0.0)
    generator = torch.Generator().manual_seed(seed)
    for target in targets:
        if isinstance(target, nn.Parameter):
            target.requires_grad_(True)
        elif kind == 'ssf':
            add_scale_and_shift(target)
        elif kind == 'lora':
            add_low_rank(target, rank, scale, generator)
        else:
            add_adaptformer(target, rank, scale, generator)


def first_stages(backbone: nn.Module, num_stages: int, *, name: str = '') -> list[str]:
    """Return the names of the parameters in the first stages of a backbone.

    The stem is the first stage; the others are those of timm's `group_matcher` (of a transformer, its blocks).

    Args:
        name: MODEL.BACKBONE, for the error message.

    Raises:
        UserError: the backbone has no stages, or no stage would be left.
    """
    groups = _groups(backbone, coarse=True)
    total = len(set(groups.values()))
    if num_stages >= total:
        found = f'has {total} stages' if total > 1 else 'defines no stages'
        allowed = f'set 0 to {total - 1}' if total > 1 else 'set --MODEL_FREEZE_STAGES 0'
        raise UserError(
            f'MODEL.FREEZE_STAGES is {num_stages}, but MODEL.BACKBONE {name or type(backbone).__name__} {found}: '
            f'{allowed}'
        )
    first = set(sorted(set(groups.values()))[:num_stages])
    return [key for key, group in groups.items() if group in first]


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """Return the submodules of a backbone that fit into one block each, the largest such; [] if it defines no blocks.

    Blocks are those of timm's `group_matcher`, as in layer-wise decay. Submodules with less than a thousandth of the
    parameters are left out.
    """
    groups = _groups(backbone, coarse=False)
    if not groups:
        return []
    smallest = sum(parameter.numel() for parameter in backbone.parameters()) / 1000

    def within(module: nn.Module, prefix: str) -> Iterator[nn.Module]:
        for name, child in module.named_children():
            parameters = dict(child.named_parameters(f'{prefix}{name}'))
            is_one = len({groups[parameter] for parameter in parameters}) == 1
            if not is_one or isinstance(child, nn.ModuleList | nn.ModuleDict):  # which have no forward pass
                yield from within(child, f'{prefix}{name}.')
            elif sum(parameter.numel() for parameter in parameters.values()) >= smallest:
                yield child

    return list(within(backbone, ''))


def _groups(backbone: nn.Module, *, coarse: bool) -> dict[str, int]:
    """Return the stage (`coarse`) or the block of each parameter by timm's `group_matcher`; {} if there is none."""
    group_matcher = getattr(backbone, 'group_matcher', None)
    if group_matcher is None:
        return {}
    from timm.models import group_parameters  # imported here: see lib/backbone/create.py

    return group_parameters(backbone, group_matcher(coarse=coarse), reverse=True)


def _norm_parameters(backbone: nn.Module) -> list[nn.Parameter]:
    norms = [module for module in backbone.modules() if _is_norm(module)]
    return [parameter for norm in norms for parameter in own_parameters(norm, 'weight', 'bias')]


def _biases(backbone: nn.Module) -> list[nn.Parameter]:
    named = backbone.named_parameters()
    return [parameter for name, parameter in named if name.endswith('bias') and parameter.ndim == 1]


def _affine_layers(backbone: nn.Module) -> list[nn.Module]:
    """Return the layers whose output is linear in their weight, rows first, plus their bias."""
    from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame  # see lib/backbone/create.py

    standardized = (ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame)
    return [
        module
        for module in backbone.modules()
        if own_parameters(module, 'weight')
        and not parametrize.is_parametrized(module)
        and not isinstance(module, standardized)
        and (
            isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            or (_is_norm(module) and 'Response' not in type(module).__name__)
        )
    ]


def _block_layers(backbone: nn.Module) -> list[nn.Module]:
    """Return the linear layers of the blocks with an MLP: those of attention and MLP."""
    layers: dict[nn.Module, None] = {}
    for block in _blocks(backbone):
        for name, module in block.named_modules():
            if (
                isinstance(module, nn.Linear)
                and _POSITION_NETWORKS.isdisjoint(name.split('.'))
                and not parametrize.is_parametrized(module)
            ):
                layers[module] = None  # a block may contain others: each layer once
    return list(layers)


def _mlps(backbone: nn.Module) -> list[nn.Module]:
    return [block.get_submodule('mlp') for block in _blocks(backbone)]


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """Return the modules with a child `mlp` that has linear layers: the blocks of timm's transformers."""
    return [
        module
        for name, module in backbone.named_modules()
        if _POSITION_NETWORKS.isdisjoint(name.split('.'))
        and any(child == 'mlp' and linear_layers(mlp) for child, mlp in module.named_children())
    ]


def _is_norm(module: nn.Module) -> bool:
    return 'norm' in type(module).__name__.lower()


_TARGETS: dict[str, Callable[[nn.Module], list[Any]]] = {
    'norm': _norm_parameters,
    'bias': _biases,
    'ssf': _affine_layers,
    'lora': _block_layers,
    'adaptformer': _mlps,
}
_NEEDS = {
    'norm': 'normalization layers',
    'bias': 'bias vectors',
    'ssf': 'linear, convolution or normalization layers',
    'lora': 'blocks with attention or an MLP of linear layers',
    'adaptformer': 'blocks with an MLP of linear layers',
}
