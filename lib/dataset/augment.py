"""Augmentations beyond crop and flip: torchvision's, seeded per image.

torchvision uses torch's global generator. Each call seeds it from the image's slot and restores it, so the order of
images does not matter, and without workers the model's dropout is unaffected.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

# name -> class in torchvision.transforms.v2, keyword arguments
POLICIES: dict[str, tuple[str, dict]] = {
    'auto_augment': ('AutoAugment', {}),  # Cubuk et al., CVPR 2019: ImageNet's policy
    'auto_augment_cifar': ('AutoAugment', {'policy': 'cifar10'}),
    'rand_augment': ('RandAugment', {}),  # Cubuk et al., NeurIPS 2020
    'trivial_augment': ('TrivialAugmentWide', {}),  # Müller and Hutter, ICCV 2021
}


@dataclass(frozen=True)
class Augment:
    """Color jitter, then a policy, then random erasing (Zhong et al., AAAI 2020).

    Attributes:
        jitter: strength of brightness, contrast, saturation (from 0) and hue (0 to 0.5) jitter; zeros: none.
        policy: a name in POLICIES; '' for none.
        num_ops, magnitude: for rand_augment: operations per image, and their strength, 0 to 30.
        erase_probability: probability that a rectangle is erased.
        fill: color of erased pixels and of those that a rotation or shift leaves empty: red, green, blue, 0 to 255.
    """

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    policy: str = ''
    num_ops: int = 2
    magnitude: int = 9
    erase_probability: float = 0.0
    fill: Sequence[int] = (124, 116, 104)

    def __call__(self, pixels: torch.Tensor, seed: int) -> None:
        """Augment an image, uint8 (height, width, 3), in place."""
        image = pixels.permute(2, 0, 1)
        with _seeded(seed):
            for step in self._steps:
                image = step(image)
        pixels.copy_(image.permute(1, 2, 0))

    @cached_property
    def _steps(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        # Imported here: it takes seconds in each worker, and few runs need it.
        from torchvision.transforms import v2

        steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
        if any(self.jitter):
            steps.append(v2.ColorJitter(*self.jitter))
        if self.policy:
            name, keywords = POLICIES[self.policy]
            if self.policy == 'rand_augment':
                keywords = {'num_ops': self.num_ops, 'magnitude': self.magnitude}
            elif 'policy' in keywords:
                keywords = {'policy': v2.AutoAugmentPolicy(keywords['policy'])}
            steps.append(getattr(v2, name)(fill=list(self.fill), **keywords))
        if self.erase_probability:
            steps.append(v2.RandomErasing(self.erase_probability, value=list(self.fill)))
        return steps


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator within the block (torch.manual_seed would reach those of GPUs as well)."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
