"""What a step of the backbone takes, by running it on tensors without memory."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.model import Recognizer
from lib.plan.memory_tracker import MemoryTracker, into_memoryless, memoryless, num_bytes

# Two sizes are enough: every tensor of a step is linear in the images.
_FEW, _MORE = 2, 4


@dataclass(frozen=True)
class LinearCost:
    """Bytes that grow with the images: fixed + per_image * images. Each an int64 array, (steps,) or ()."""

    fixed: np.ndarray
    per_image: np.ndarray

    def at(self, num_images: int) -> int:
        """Return the bytes for so many images; of several moments the largest."""
        return int(np.max(self.fixed + self.per_image * num_images))


@dataclass(frozen=True)
class BackboneCost:
    """Bytes and arithmetic of a backbone in training.

    Attributes:
        num_parameters: how many numbers.
        state: bytes of parameters and buffers (BatchNorm's statistics).
        gradients: bytes of gradients; 0 for a frozen one.
        saved: what is there once features are, and is kept for the way back: activations, and copies of weights in
            half precision.
        forward: the same after every operation on the way there.
        backward: and on the way back, gradients left out.
        flops: an image, there and back.
    """

    num_parameters: int
    state: int
    gradients: int
    saved: LinearCost
    forward: LinearCost
    backward: LinearCost
    flops: int


def backbone_cost(model: Recognizer, image_size: int) -> BackboneCost:
    """Return what the backbone of a recogniser on the meta device takes for images (3, image_size, image_size).

    It is run in train mode, in the precision of training.
    """
    with memoryless():
        into_memoryless(model)
        model.train()
        parameters = list(model.backbone.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            # There already, as in all but the first part of a batch: then new ones are added in place.
            parameter.grad = torch.empty_like(parameter)
        few, more = _run(model, image_size, _FEW), _run(model, image_size, _MORE)
        return BackboneCost(
            num_parameters=sum(parameter.numel() for parameter in parameters),
            state=num_bytes([*parameters, *model.backbone.buffers()]),
            gradients=num_bytes(trained),
            saved=_line(few[0], more[0]),
            forward=_line(few[1], more[1]),
            backward=_line(few[2], more[2]),
            flops=_flops(model, image_size),
        )


def _run(model: Recognizer, image_size: int, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bytes alive when the features are there, and after every operation there, and back."""
    images = _images(image_size, num_images)
    known = [*model.parameters(), *model.buffers(), images]
    known += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with MemoryTracker(known) as live:
        features = model.features(images)
        saved, forward = live.now, live.series()
        live.after.clear()
        live.after.append(saved)
        if features.requires_grad:
            features.backward(torch.empty_like(features))
        return np.array(saved), forward, live.series()


def _flops(model: Recognizer, image_size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        features = model.features(_images(image_size, _FEW))
        if features.requires_grad:
            features.backward(torch.empty_like(features))
    return counter.get_total_flops() // _FEW


def _images(image_size: int, num_images: int) -> torch.Tensor:
    images = torch.empty(num_images, 3, image_size, image_size)
    return images.to(memory_format=torch.channels_last)


def _line(few: np.ndarray, more: np.ndarray) -> LinearCost:
    if few.shape != more.shape:  # another number of operations: their peaks alone can be compared
        few, more = few.max(), more.max()
    per_image = (more - few) // (_MORE - _FEW)
    return LinearCost(few - per_image * _FEW, per_image)
