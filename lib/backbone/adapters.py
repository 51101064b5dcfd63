"""Adapters in the modules of a backbone, and their merging into plain weights.

An adapter is added by changing the class of a module to a subclass with more parameters. So the names and values of the
weights stay those of the base, code that reads `module.weight` directly (EVA and Swin V2 do for q, k and v) gets the
adapted weight, and at the start the output is exactly that of the base.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_LORA, _SSF, _ADAPTFORMER = ('lora_a', 'lora_b', 'lora_scale'), ('ssf_scale', 'ssf_shift'), 'adaptformer'
_MERGED = ('weight', 'bias', *_LORA, *_SSF)


def is_adapter(name: str) -> bool:
    """Return whether a name of a state_dict is that of an adapter's tensor."""
    *modules, last = name.split('.')
    return last in _LORA or last in _SSF or _ADAPTFORMER in modules


def merge_adapters(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state_dict with LoRA and SSF merged into the weights, which compute the same up to rounding.

    The tensors of AdaptFormer stay: its ReLU cannot become part of a linear layer.
    """
    merged = {name: value for name, value in state.items() if name.rpartition('.')[2] not in (*_LORA, *_SSF)}
    for name in state:
        layer, _, last = name.rpartition('.')
        of_layer = {key: state[f'{layer}.{key}'].double() for key in _MERGED if f'{layer}.{key}' in state}
        if last == 'lora_a':
            low_rank = of_layer['lora_b'] @ of_layer['lora_a']
            new = {'weight': of_layer['weight'] + of_layer['lora_scale'] * low_rank}
        elif last == 'ssf_scale':
            scale = of_layer['ssf_scale']
            new = {'weight': of_layer['weight'] * _along_rows(scale, of_layer['weight'])}
            if 'bias' in of_layer:
                new['bias'] = of_layer['bias'] * scale + of_layer['ssf_shift']
        else:
            continue
        merged |= {f'{layer}.{key}': value.to(state[f'{layer}.{key}']) for key, value in new.items()}
    return merged


def merge_into_backbone(backbone: nn.Module) -> None:
    """Merge LoRA and SSF into the weights of `backbone`, whose modules have their original classes afterwards."""
    state = merge_adapters(backbone.state_dict())
    for module in backbone.modules():
        if isinstance(module, _LowRankWeight | _ScaledAndShifted):
            for name in (*_LORA, *_SSF):
                if hasattr(module, name):
                    delattr(module, name)
            module.__class__ = type(module).__bases__[1]
    backbone.load_state_dict(state)


class _LowRankWeight(nn.Module):
    """A linear layer with the weight W + scale * B A."""

    lora_a: torch.Tensor  # A, (rank, in_features)
    lora_b: torch.Tensor  # B, (out_features, rank)
    lora_scale: torch.Tensor  # alpha / r

    @property
    def weight(self) -> torch.Tensor:
        """The adapted weight."""
        return _stored(self, 'weight') + self.lora_scale * (self.lora_b @ self.lora_a)

    @weight.setter
    def weight(self, value: torch.Tensor) -> None:
        """Accept the assignment of DataParallel to a replica, see `_stored`."""


class _LowRankLinear(_LowRankWeight):
    """The same as W x + scale * B (A x), without the gradient of a whole weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = F.linear(x, _stored(self, 'weight'), _stored(self, 'bias'))
        return base + self.lora_scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class _ScaledAndShifted(nn.Module):
    """A layer whose output is multiplied by a scale per channel, plus a shift where the layer has a bias."""

    ssf_scale: torch.Tensor  # (channels,)
    ssf_shift: torch.Tensor  # (channels,)

    @property
    def weight(self) -> torch.Tensor:
        """The adapted weight."""
        weight = _stored(self, 'weight')
        return weight * _along_rows(self.ssf_scale, weight)

    @weight.setter
    def weight(self, value: torch.Tensor) -> None:
        """Accept the assignment of DataParallel to a replica, see `_stored`."""

    @property
    def bias(self) -> torch.Tensor | None:
        """The adapted bias."""
        bias = _stored(self, 'bias')
        return None if bias is None else bias * self.ssf_scale + self.ssf_shift

    @bias.setter
    def bias(self, value: torch.Tensor) -> None:
        """Accept the assignment of DataParallel to a replica, see `_stored`."""


class _ScaledAndShiftedLinear(_ScaledAndShifted):
    """The same computed from the output of a linear layer, without the gradient of a whole weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = _stored(self, 'bias')
        out = F.linear(x, _stored(self, 'weight'), bias)
        out = out * self.ssf_scale.to(out.dtype)
        return out if bias is None else out + self.ssf_shift.to(out.dtype)


class _WithAdaptFormer(nn.Module):
    """An MLP with an AdaptFormer in parallel."""

    adaptformer: 'AdaptFormer'

    def forward(self, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return super().forward(x, *args, **options) + self.adaptformer(x)


class _SequenceWithAdaptFormer(_WithAdaptFormer):
    """The same for an MLP that is an nn.Sequential, which calls all modules that it yields."""

    def __iter__(self) -> Iterator[nn.Module]:
        return (module for name, module in self.named_children() if name != _ADAPTFORMER)


class AdaptFormer(nn.Module):
    """s Up(ReLU(Down(x))), with a learned s as in LIFT (Shi et al., ICML 2024).

    Its input is that of the MLP, which in most backbones a LayerNorm has normalized, so it contains no LayerNorm.
    """

    def __init__(self, width: int, rank: int, width_out: int, scale: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width_out)
        # Without dimensions, so that the product has the precision of the other factor.
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.up(F.relu(self.down(x)))


def _stored(module: nn.Module, name: str) -> Any:
    """Return the weight or bias of the base; the attribute of this name may be the adapted one."""
    parameters = module._parameters
    # The replicas of DataParallel have no parameters: theirs are tensors in another dictionary.
    return parameters[name] if name in parameters else module.__dict__['_former_parameters'].get(name)


def _along_rows(channels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return (channels,) in a shape that broadcasts over all but the first dimension of `weight`."""
    return channels.view(-1, *[1] * (weight.ndim - 1))


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """Return the linear layers in a module, at any depth."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def own_parameters(module: nn.Module, *names: str) -> list[nn.Parameter]:
    """Return the parameters of a module itself, by name, that are not None."""
    own = (module._parameters.get(name) for name in names)
    return [parameter for parameter in own if parameter is not None]


# (class of an adapter, class of a module) -> the subclass of both.
_SUBCLASSES: dict[tuple[type, type], type] = {}


def _change_class(module: nn.Module, adapted: type[nn.Module]) -> None:
    original = type(module)
    if (adapted, original) not in _SUBCLASSES:
        name = f'{adapted.__name__.lstrip("_")}{original.__name__}'
        _SUBCLASSES[adapted, original] = type(name, (adapted, original), {})
    module.__class__ = _SUBCLASSES[adapted, original]


def add_low_rank(layer: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
    """Add LoRA to a linear layer; A is drawn from the generator, B is zero."""
    weight = layer.weight
    layer.register_parameter('lora_a', nn.Parameter(_uniform(rank, layer.in_features, generator).to(weight)))
    layer.register_parameter('lora_b', nn.Parameter(weight.new_zeros(layer.out_features, rank)))
    layer.register_buffer('lora_scale', weight.new_tensor(scale))
    # Another forward than that of torch uses the weight in its own way.
    is_plain = type(layer).forward is nn.Linear.forward
    _change_class(layer, _LowRankLinear if is_plain else _LowRankWeight)


def add_scale_and_shift(layer: nn.Module) -> None:
    """Add SSF to a layer whose output is linear in its weight: a scale of 1, and a shift of 0 if it has a bias."""
    (weight,) = own_parameters(layer, 'weight')
    layer.register_parameter('ssf_scale', nn.Parameter(weight.new_ones(len(weight))))
    if own_parameters(layer, 'bias'):
        layer.register_parameter('ssf_shift', nn.Parameter(weight.new_zeros(len(weight))))
    is_plain = type(layer).forward is nn.Linear.forward
    _change_class(layer, _ScaledAndShiftedLinear if is_plain else _ScaledAndShifted)


def add_adaptformer(mlp: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
    """Add an AdaptFormer to an MLP; Down is drawn from the generator, Up and the biases are zero."""
    layers = linear_layers(mlp)
    width = layers[0].in_features
    adapter = AdaptFormer(width, rank, layers[-1].out_features, scale)
    with torch.no_grad():
        adapter.down.weight.copy_(_uniform(rank, width, generator))
        for zero in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
            zero.zero_()
    mlp.add_module(_ADAPTFORMER, adapter.to(layers[0].weight))
    _change_class(mlp, _SequenceWithAdaptFormer if isinstance(mlp, nn.Sequential) else _WithAdaptFormer)


def _uniform(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Return Kaiming's initialization as of nn.Linear, from a generator on the CPU for all devices."""
    values = torch.rand(rows, columns, generator=generator, device='cpu')
    return (2 * values - 1) / math.sqrt(columns)
