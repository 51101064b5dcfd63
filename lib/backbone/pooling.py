"""The pooling of a backbone's last feature map, or of its tokens, into one vector: MODEL.POOL."""

from collections.abc import Mapping

import torch
from torch import nn

from lib.errors import UserError, shown

_EXPONENT = 'gem_exponent'
_FLOOR = 1e-6  # of the activations, as in the authors' code


class GeneralizedMean(nn.Module):
    """Generalized mean, (mean of x^p)^{1/p} over the positions of each channel (GeM: Radenovic et al., TPAMI 2019,
    eq. 3).

    p is learned, from 3; 1 is the mean of the positive activations, and infinity the maximum.

    Args:
        dims: the spatial dimensions of the input.
        keepdim: keep these with length 1.
    """

    def __init__(self, dims: tuple[int, ...], *, keepdim: bool) -> None:
        super().__init__()
        self.gem_exponent = nn.Parameter(torch.full((1,), 3.0))
        self.dims, self.keepdim = dims, keepdim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if x.dtype == torch.float64 else x.float()  # powers of half precision are too inexact
        x = x.clamp_min(_FLOOR).pow(self.gem_exponent).mean(dim=self.dims, keepdim=self.keepdim)
        return x.pow(1 / self.gem_exponent)


def set_pooling(backbone: nn.Module, kind: str, *, name: str = '') -> None:
    """Let a backbone pool by `kind`: avg, max, gem (`GeneralizedMean`), or cls (the class token of a transformer).

    Its weights stay the same. GeM adds a parameter.

    Args:
        name: MODEL.BACKBONE, for the error message.

    Raises:
        UserError: the backbone has no such pooling.
    """
    # Imported here: see lib/backbone/create.py.
    from timm.layers import SelectAdaptivePool2d
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    # Transformers whose last step pools tokens by `global_pool`; other classes override it.
    token_heads = (VisionTransformer.forward_head, Eva.forward_head)
    layers = [
        (path, module)
        for path, module in backbone.named_modules()
        if isinstance(module, SelectAdaptivePool2d) and not module.is_identity()
    ]
    allowed: tuple[str, ...] = ()
    if getattr(type(backbone), 'forward_head', None) in token_heads and backbone.attn_pool is None:
        allowed = ('avg', 'max') if backbone.cls_token is None else ('avg', 'max', 'cls')
    elif len(layers) == 1:
        allowed = ('avg', 'max', 'gem')
    if kind not in allowed:
        has = f'pools by {", ".join(allowed)} only' if allowed else 'has no pooling that could be replaced'
        hint = f'--MODEL_POOL {allowed[0]}' if allowed else "--MODEL_POOL ''"
        raise UserError(f'MODEL.POOL is {kind}, but MODEL.BACKBONE {shown(name)} {has}: {hint}')
    if 'gem' not in allowed:
        setattr(backbone, 'global_pool', 'token' if kind == 'cls' else kind)  # noqa: B010 (mypy: modules only)
        return
    path, layer = layers[0]
    dims, flattens = getattr(layer.pool, 'dim', (2, 3)), getattr(layer.pool, 'flatten', False)
    flattens = bool(flattens) or isinstance(layer.flatten, nn.Flatten)
    input_format = 'NHWC' if tuple(dims) == (1, 2) else 'NCHW'
    pooling: nn.Module = GeneralizedMean(tuple(dims), keepdim=not flattens)
    if kind != 'gem':
        pooling = SelectAdaptivePool2d(pool_type=f'fast{kind}', flatten=flattens, input_fmt=input_format)
    parent, _, last = path.rpartition('.')
    setattr(backbone.get_submodule(parent), last, pooling)


def is_pooling(name: str) -> bool:
    """Return whether a name of a state_dict is that of a parameter of the pooling."""
    return name.rpartition('.')[2] == _EXPONENT


def with_pooling_of(backbone: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state of a backbone that was trained with the same or another pooling, for that of `backbone`."""
    own = {name: value for name, value in backbone.state_dict().items() if is_pooling(name)}
    return own | {name: value for name, value in state.items() if not is_pooling(name) or name in own}
