"""Backbones by name: timm's, the names that old configs use, and the CIFAR ResNet-32."""

import difflib

import timm
import torch
from timm.models import get_pretrained_cfg, is_model
from torch import nn

from lib.backbone.resnet32 import ResNet32
from lib.backbone.split_attention import lighten_split_attention
from lib.errors import UserError

CIFAR_RESNET = 'res32_cifar'

# timm's resnest50d has the original ResNeSt-50's parameter names and features, so old checkpoints load.
ALIASES = {
    'res50': 'resnet50',
    'res101': 'resnet101',
    'res152': 'resnet152',
    'resnest50': 'resnest50d',
    'resnest101': 'resnest101e',
    'resnest200': 'resnest200e',
    'resnest269': 'resnest269e',
}

HUB_PREFIXES = ('hf-hub:', 'hf_hub:')


def available() -> list[str]:
    """Return every name that `create_backbone` knows: the old names first, then timm's."""
    return [*ALIASES, CIFAR_RESNET, *timm.list_models()]


def create_backbone(name: str, *, image_size: int, allow_download: bool = False) -> nn.Module:
    """Create a backbone with fresh weights: (batch, 3, image_size, image_size) -> (batch, num_features).

    Its attribute `num_features` is the width of what it returns. Weights are drawn from torch's global
    generator. `allow_download` admits names such as 'hf-hub:timm/resnet50.a1_in1k', whose configuration
    timm has to fetch.

    Raises UserError for an unknown name, for a name on a hub without `allow_download`, and for an image
    size that the backbone cannot work with.
    """
    if name == CIFAR_RESNET:
        return ResNet32()
    return _create_timm(_resolve(name, allow_download), image_size, pretrained=False)


def create_timm_pretrained(name: str, *, image_size: int) -> tuple[nn.Module, str]:
    """Create a backbone with the weights that timm publishes for it, fetching them if need be.

    Returns the backbone and the licence of its weights ('unknown' if timm does not state it).
    Raises UserError as `create_backbone` does, and where there are no such weights or they cannot be fetched.
    """
    if name == CIFAR_RESNET:
        raise UserError(f"MODEL.PRETRAINED timm: nobody publishes weights for '{name}'; set MODEL.PRETRAINED ''")
    resolved = _resolve(name, allow_download=True)
    if not resolved.startswith(HUB_PREFIXES):
        published = get_pretrained_cfg(resolved)
        if published is None or not published.has_weights:
            raise UserError(
                f"MODEL.PRETRAINED timm: timm has no weights for '{name}'; "
                "take another MODEL.BACKBONE, or set MODEL.PRETRAINED to a file or ''"
            )
    backbone = _create_timm(resolved, image_size, pretrained=True)
    return backbone, backbone.pretrained_cfg.get('license') or 'unknown'


def _resolve(name: str, allow_download: bool) -> str:
    """Return the name as timm writes it. Nothing that would download or open a file passes by accident."""
    if name.startswith(HUB_PREFIXES):
        if allow_download:
            return name
        raise UserError(f"MODEL.BACKBONE '{name}' has to be downloaded: set MODEL.PRETRAINED timm to allow that")
    resolved = ALIASES.get(name, name)
    if ':' not in resolved and is_model(resolved):
        architecture, _, tag = resolved.partition('.')
        tags = {full.partition('.')[2] for full in timm.list_pretrained(f'{architecture}.*')}
        if not tag or tag in tags:
            return resolved
        near = [f'{architecture}.{tag}' for tag in sorted(tags)]
    else:
        near = available()
    matches = difflib.get_close_matches(name, near, n=3)
    hint = f'did you mean {" or ".join(matches)}?' if matches else 'timm.list_models() lists them'
    raise UserError(
        f"MODEL.BACKBONE '{name}' is not known; "
        f"allowed are timm's names, {', '.join(ALIASES)} and {CIFAR_RESNET}; {hint}"
    )


def _create_timm(name: str, image_size: int, *, pretrained: bool) -> nn.Module:
    published = None if name.startswith(HUB_PREFIXES) else get_pretrained_cfg(name)
    options = {}
    if published is not None and published.fixed_input_size and published.input_size[1:] != (image_size,) * 2:
        options['img_size'] = image_size
    try:
        backbone = timm.create_model(name, num_classes=0, pretrained=pretrained, **options)
    except TypeError as error:
        if not options or 'img_size' not in str(error):
            raise
        size = published.input_size[1]
        raise UserError(f"MODEL.BACKBONE '{name}' takes images of {size} px only: set INPUT.SIZE {size}") from error
    except Exception as error:  # timm, its hub and the network raise many kinds; each ends the run here
        what = 'weights could not be fetched or loaded' if pretrained else f'cannot be built for {image_size} px'
        raise UserError(f"MODEL.BACKBONE '{name}': {what}: {_one_line(error)}") from error
    lighten_split_attention(backbone)
    width = measure_width(backbone, name, image_size)
    # Some of timm's models end in a wider or narrower layer than their num_features says (head_hidden_size).
    if backbone.num_features != width:
        backbone.num_features = width
    return backbone


@torch.no_grad()
def measure_width(backbone: nn.Module, name: str, image_size: int, key: str = 'INPUT.SIZE') -> int:
    """Return the width of the features, found by one image: the only answer that holds for all of timm."""
    backbone.eval()
    try:
        features = backbone(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # a size that does not divide, a window that does not fit: every model its own kind
        raise UserError(
            f"MODEL.BACKBONE '{name}' cannot read images of {key} {image_size} px: {_one_line(error)}"
        ) from error
    finally:
        backbone.train()
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise UserError(f"MODEL.BACKBONE '{name}' does not give one feature vector an image; take another")
    return features.shape[1]


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
