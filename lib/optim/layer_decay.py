"""Learning rates that fall from the classifier to the stem, for fine-tuning."""

from types import SimpleNamespace

from timm.models import group_parameters
from torch import nn

from lib.errors import UserError


def layer_scales(backbone: nn.Module, decay: float, *, name: str) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter of `backbone`: decay ** (blocks up to the classifier).

    Layer-wise decay (Clark et al., ICLR 2020, ELECTRA; Bao et al., ICLR 2022, BEiT): 1 for the classifier, `decay` for
    the last block, and so on down to the stem. What a block is, the backbone says itself, in timm's way
    (`group_matcher`); whatever it counts to its own classifier, such as a last norm, has the factor 1.

    Args:
        name: what the user calls the backbone.

    Raises:
        UserError: the backbone does not tell its blocks.
    """
    if not hasattr(backbone, 'group_matcher'):
        raise _no_blocks(decay, name)
    own = [key for key, _ in backbone.named_parameters()]
    # The backbone was built without its classifier, so one is named to be grouped with the rest.
    prefix = (getattr(backbone, 'pretrained_cfg', None) or {}).get('classifier') or 'head'
    classifier = f'{prefix if isinstance(prefix, str) else prefix[0]}.weight'
    named = SimpleNamespace(named_parameters=lambda: [(key, None) for key in (*own, classifier)])
    layers = group_parameters(named, backbone.group_matcher(coarse=False), reverse=True)
    last = layers[classifier]
    if last == 0:
        raise _no_blocks(decay, name)
    return {key: decay ** max(0, last - layers[key]) for key in own}


def _no_blocks(decay: float, name: str) -> UserError:
    return UserError(
        f'OPTIMIZER.LAYER_DECAY is {decay:g}, but MODEL.BACKBONE {name} does not tell its blocks: '
        '--OPTIMIZER_LAYER_DECAY 1, or another backbone'
    )
