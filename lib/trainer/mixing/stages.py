"""Where a backbone can mix features of pairs on the way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lib.errors import UserError
from lib.trainer.mixing.base import blend

_STEM_REDUCTION = 2  # timm's features at half of the image's side or more are the stem's


class _Wish(threading.local):
    """What the thread wants mixed; replicas of a model on several GPUs run in a thread each, with a part of the batch.

    It belongs to this file and not to a backbone, so that a backbone with hooks can be copied, sent and saved.
    """

    stage = 0
    shares: torch.Tensor | None = None
    times_met = 0


_wish = _Wish()


class MixedStages:
    """The stages of a backbone, 1, 2, ... from the image on, after which features can be mixed.

    Those of ResNet-32 are layer1 to layer3; those of timm's models are what timm lists as their feature levels, from a
    quarter of the image's side on (ResNet: layer1 to layer4; transformers: every block). Each gets one forward hook,
    which does nothing outside of `mixing`. Parameters and their names stay as they are; copies of the backbone have the
    hooks too.

    Args:
        backbone: of lib/backbone.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = type(backbone).__name__
        self._names = _stage_names(backbone)
        for number, name in enumerate(self._names, 1):
            module = backbone.get_submodule(name)
            if not any(isinstance(hook, _MixAfter) for hook in module._forward_hooks.values()):
                module.register_forward_hook(_MixAfter(number))

    @property
    def num_stages(self) -> int:
        """How many there are; 0 where the backbone tells none."""
        return len(self._names)

    def check(self, stage: int) -> None:
        """Raise UserError unless `stage` is 0 (the image) or one of the backbone's."""
        if not 0 <= stage <= self.num_stages:
            has = f'stages 1 ({self._names[0]}) to {self.num_stages} ({self._names[-1]})' if self._names else 'none'
            raise UserError(
                f'MIX.STAGES has {stage}, but must be 0 (the image) or a stage of MODEL.BACKBONE: {self._backbone} has '
                f'{has}; leave {stage} out of MIX.STAGES, or take another backbone'
            )

    @contextmanager
    def mixing(self, stage: int, shares: torch.Tensor) -> Iterator[None]:
        """Mix the pairs of each batch that this thread runs through the backbone within the block, after `stage`.

        The partner of image i is image i XOR 1 of what the thread has; a part of a larger batch begins with an even
        image.

        Args:
            stage: from 1 to num_stages.
            shares: (batch,) float32, the own share of each image.

        Raises:
            UserError: there is no such stage, or the backbone did not come by it exactly once.
        """
        self.check(stage)
        _wish.stage, _wish.shares, _wish.times_met = stage, shares, 0
        try:
            yield
            if _wish.times_met != 1:  # the labels are mixed: features that are not would teach nonsense
                raise UserError(
                    f'MIX.STAGES: {self._backbone} ran {self._names[stage - 1]} {_wish.times_met} times, so features '
                    f'cannot be mixed there; leave {stage} out of MIX.STAGES, or take another MODEL.BACKBONE'
                )
        finally:
            _wish.stage, _wish.shares = 0, None


@dataclass(frozen=True)
class _MixAfter:
    """A forward hook: mixes what a stage gives, when the thread wants it there."""

    stage: int

    def __call__(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if _wish.stage != self.stage:
            return None
        _wish.times_met += 1
        if not isinstance(output, torch.Tensor):
            raise UserError(
                f'MIX.STAGES has {self.stage}, but {type(module).__name__} there gives a {type(output).__name__} of '
                f'tensors; leave {self.stage} out of MIX.STAGES, or take another MODEL.BACKBONE'
            )
        return blend(output, _wish.shares)


def _stage_names(backbone: nn.Module) -> list[str]:
    """Return the names of the modules that end a stage."""
    levels = getattr(backbone, 'feature_info', None)
    if levels is None:
        return [name for name, _ in backbone.named_children() if name.startswith('layer')]
    names = [level['module'] for level in levels if level['reduction'] > _STEM_REDUCTION]
    modules = dict(backbone.named_modules())
    return [name for name in dict.fromkeys(names) if name in modules]
