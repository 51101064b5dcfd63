"""uint8 batch to the float32 input of a backbone, on the device, so that a quarter of the bytes travels."""

from collections.abc import Sequence

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue; fractions
IMAGENET_STD = (0.229, 0.224, 0.225)


def mirror(images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Mirror the images at `places` (int64) of a batch (batch, height, width, 3) left to right, in place."""
    if images.device.type == 'cpu':
        # Four times as fast as indexing: bytes are flipped in long runs, images copied whole.
        mirrored = images.flip(2)
        for place in places.tolist():
            images[place] = mirrored[place]
    elif len(places):
        images[places] = images[places].flip(2)
    return images


class Normalize:
    """Compute (x / 255 - mean) / std as one multiply-add, x * scale + shift.

    `bgr` turns the channels round and leaves the statistics where they are: channel 0 is then blue and
    normalised with mean[0]. This is what checkpoints of the original system were trained on.
    `channels_last` is the memory format that convolutions in bfloat16 are fast on; the uint8 batch has it
    already, so nothing is moved.

    It holds no parameters and nothing of a checkpoint; constants go to a device when first used there.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        bgr: bool = False,
        channels_last: bool = True,
    ):
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f'mean is {mean}, std is {std}; three numbers each, std above 0, are needed')
        self.bgr = bgr
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        scale = [1 / (255 * deviation) for deviation in std]
        shift = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
        self._scale = torch.tensor(scale, dtype=torch.float32)
        self._shift = torch.tensor(shift, dtype=torch.float32)
        self._rows: dict[tuple[torch.device, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 RGB (batch, height, width, 3) to float32 (batch, 3, height, width) on the same device."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            shape = tuple(images.shape)
            raise ValueError(f'images are {images.dtype} {shape}; uint8 (batch, height, width, 3) is needed')
        if self.bgr:
            images = images.flip(3)  # while a pixel is still three bytes
        batch, height, width, _ = images.shape
        scale, shift = self._row_constants(images.device, width)
        # By rows of pixels, not by channels: the processor's vectors are filled, which is five times as fast.
        rows = images.reshape(batch * height, width * 3).to(torch.float32)
        torch.addcmul(shift, rows, scale, out=rows)
        images = rows.view(batch, height, width, 3).permute(0, 3, 1, 2)  # a view: the memory is channels_last
        return images.contiguous(memory_format=self.memory_format)

    def _row_constants(self, device: torch.device, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and shift on a device, each (width * 3,), as a row of pixels lies in memory."""
        if (device, width) not in self._rows:
            self._rows[device, width] = (self._scale.repeat(width).to(device), self._shift.repeat(width).to(device))
        return self._rows[device, width]
