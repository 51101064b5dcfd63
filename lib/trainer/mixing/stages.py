"""Mixing the features of pairs after a stage of the backbone, by forward hooks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lib.errors import UserError
from lib.trainer.mixing.base import blend

_STEM_REDUCTION = 2  # timm's features at half of the image's side or more belong to the stem


class StageError(UserError):
    """Features cannot be mixed after a stage of this backbone."""


class _Request(threading.local):
    """The mixing that the current thread requests; replicas of a model on several GPUs run in a thread each.

    It is a module variable and no attribute of the backbone, so that a backbone with hooks can be copied and saved.
    """

    stage = 0
    lam: torch.Tensor | None = None
    num_calls = 0


_request = _Request()


class MixedStages:
    """The stages of a backbone, 1, 2, ... from the image on, after which features can be mixed.

    ResNet-32: layer1 to layer3. timm models: timm's feature levels from a quarter of the image's side on (ResNet:
    layer1 to layer4; transformers: every block). Each gets one forward hook, which does nothing outside of `mixing`.
    Parameters and their names do not change; copies of the backbone have the hooks too.

    Args:
        backbone: a backbone of lib/backbone.
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
        """Number of stages; 0 for a backbone without named stages."""
        return len(self._names)

    def check(self, stage: int) -> None:
        """Raise StageError unless `stage` is 0 (the image) or a stage of the backbone."""
        if not 0 <= stage <= self.num_stages:
            has = f'stages 1 ({self._names[0]}) to {self.num_stages} ({self._names[-1]})' if self._names else 'none'
            raise StageError(
                f'stage {stage} is neither 0 (the image) nor a stage of the backbone: {self._backbone} has {has}'
            )

    @contextmanager
    def mixing(self, stage: int, lam: torch.Tensor) -> Iterator[None]:
        """Mix the pairs of each batch that this thread runs through the backbone within the block, after `stage`.

        The partner of image i is image i XOR 1 of the thread's images; a slice of a batch begins with an even image.

        Args:
            stage: from 1 to num_stages.
            lam: (batch,) float32, the fraction of each image's features that remains.

        Raises:
            StageError: there is no such stage, or the backbone did not run it exactly once.
        """
        self.check(stage)
        _request.stage, _request.lam, _request.num_calls = stage, lam, 0
        try:
            yield
            if _request.num_calls != 1:  # mixed labels for unmixed features would be wrong
                raise StageError(
                    f'{self._backbone} ran {self._names[stage - 1]} {_request.num_calls} times, so features cannot be '
                    f'mixed after stage {stage}'
                )
        finally:
            _request.stage, _request.lam = 0, None


@dataclass(frozen=True)
class _MixAfter:
    """Forward hook that mixes the output of a stage when the thread requests it."""

    stage: int

    def __call__(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if _request.stage != self.stage:
            return None
        _request.num_calls += 1
        if not isinstance(output, torch.Tensor):
            raise StageError(
                f'{type(module).__name__} returns a {type(output).__name__} of tensors, so features cannot be mixed '
                f'after stage {self.stage}'
            )
        assert _request.lam is not None
        return blend(output, _request.lam)


def _stage_names(backbone: nn.Module) -> list[str]:
    """Return the names of the modules that end a stage."""
    levels = getattr(backbone, 'feature_info', None)
    if levels is None:
        return [name for name, _ in backbone.named_children() if name.startswith('layer')]
    names = [level['module'] for level in levels if level['reduction'] > _STEM_REDUCTION]
    modules = dict(backbone.named_modules())
    return [name for name in dict.fromkeys(names) if name in modules]
