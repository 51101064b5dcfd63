"""Create backbones by name: those of timm, the names of old configs, and the CIFAR ResNet-32."""

import difflib
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, is_model
from torch import nn

from lib.backbone.resnet32 import ResNet32
from lib.backbone.split_attention import use_fast_split_attention
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
    """Return all names that `create_backbone` accepts: those of old configs first, then those of timm."""
    return [*ALIASES, CIFAR_RESNET, *timm.list_models()]


def create_backbone(name: str, *, image_size: int, allow_download: bool = False) -> nn.Module:
    """Create a backbone with random weights: (batch, 3, image_size, image_size) -> features (batch, num_features).

    Its attribute `num_features` is the width of the features. Weights are drawn from torch's global generator.

    Args:
        allow_download: accept names such as 'hf-hub:timm/resnet50.a1_in1k', whose configuration is downloaded.

    Raises:
        UserError: unknown name; a name on a hub without `allow_download`; an unsupported image size.
    """
    if name == CIFAR_RESNET:
        return ResNet32()
    return _create_timm(_resolve(name, allow_download), image_size, pretrained=False)


def create_timm_pretrained(name: str, *, image_size: int) -> tuple[nn.Module, str]:
    """Create a backbone with the weights that timm publishes for it, downloading them if necessary.

    Returns:
        The backbone, and the license of its weights ('unknown' if timm does not state it).

    Raises:
        UserError: as in `create_backbone`; there are no such weights, or the download fails.
    """
    if name == CIFAR_RESNET:
        raise UserError(f"MODEL.PRETRAINED timm: there are no published weights for '{name}'; set MODEL.PRETRAINED ''")
    resolved = _resolve(name, allow_download=True)
    if not resolved.startswith(HUB_PREFIXES):
        published = get_pretrained_cfg(resolved)
        if published is None or not published.has_weights:
            raise UserError(
                f"MODEL.PRETRAINED timm: timm has no weights for '{name}'; "
                "choose another MODEL.BACKBONE, or set MODEL.PRETRAINED to a file or ''"
            )
    backbone = _create_timm(resolved, image_size, pretrained=True)
    pretrained_cfg: Any = backbone.pretrained_cfg
    return backbone, pretrained_cfg.get('license') or 'unknown'


def _resolve(name: str, allow_download: bool) -> str:
    """Return the name in timm's spelling; names that would download or open a file are rejected."""
    if name.startswith(HUB_PREFIXES):
        if allow_download:
            return name
        raise UserError(f"MODEL.BACKBONE '{name}' must be downloaded: set MODEL.PRETRAINED timm to allow that")
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
    hint = f'did you mean {" or ".join(matches)}?' if matches else 'timm.list_models() lists all'
    raise UserError(
        f"MODEL.BACKBONE '{name}' is unknown; "
        f'allowed are the names of timm, {", ".join(ALIASES)} and {CIFAR_RESNET}; {hint}'
    )


def _create_timm(name: str, image_size: int, *, pretrained: bool) -> nn.Module:
    published = None if name.startswith(HUB_PREFIXES) else get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if published is not None and published.fixed_input_size and published.input_size[1:] != (image_size,) * 2:
        options['img_size'] = image_size
    try:
        backbone = timm.create_model(name, num_classes=0, pretrained=pretrained, **options)
    except TypeError as error:
        if published is None or not options or 'img_size' not in str(error):
            raise
        size = published.input_size[1]
        raise UserError(f"MODEL.BACKBONE '{name}' accepts only images of {size} px: set INPUT.SIZE {size}") from error
    except Exception as error:  # timm, the hub and the network raise many exception types
        problem = 'weights cannot be downloaded or loaded' if pretrained else f'cannot be built for {image_size} px'
        raise UserError(f"MODEL.BACKBONE '{name}': {problem}: {_one_line(error)}") from error
    use_fast_split_attention(backbone)
    width = measure_width(backbone, name, image_size)
    # The last layer of some timm models has another width than their num_features (head_hidden_size).
    if backbone.num_features != width:
        setattr(backbone, 'num_features', width)  # noqa: B010 (mypy takes attributes of modules for submodules)
    return backbone


@torch.no_grad()
def measure_width(backbone: nn.Module, name: str, image_size: int, key: str = 'INPUT.SIZE') -> int:
    """Return the width of the features, measured with one image, which works for all models of timm.

    Args:
        key: the config key of the image size, for the error message.

    Raises:
        UserError: the backbone does not accept the size, or does not return one feature vector per image.
    """
    backbone.eval()
    try:
        features = backbone(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # indivisible sizes, windows that do not fit: models raise various types
        raise UserError(
            f"MODEL.BACKBONE '{name}' does not accept images of {key} {image_size} px: {_one_line(error)}"
        ) from error
    finally:
        backbone.train()
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise UserError(f"MODEL.BACKBONE '{name}' does not return one feature vector per image: choose another")
    return features.shape[1]


def num_features_of(backbone: nn.Module) -> int:
    """Return the width of the features of a backbone."""
    num_features = backbone.num_features
    assert isinstance(num_features, int)
    return num_features


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
