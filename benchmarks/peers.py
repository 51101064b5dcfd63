"""Loaders to compare with: torchvision's decoder, and NVIDIA DALI on the CPU, as in their documentation."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from benchmarks.original import MEAN, STD


class TorchvisionPhotos(Dataset):
    """torchvision's decoder and tensor transforms, as recommended in its documentation."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = [str(path) for path in paths]
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(decode_jpeg(read_file(self.paths[row]), ImageReadMode.RGB)), 0


def dali_epoch(
    paths: Sequence[Path], size: int, batch_size: int, num_threads: int
) -> Callable[[], Iterable[np.ndarray]]:
    """Return a function that yields the batches of an epoch of DALI's CPU pipeline, (batch, 3, size, size) float32."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch_size, num_threads=num_threads, device_id=None, seed=0, prefetch_queue_depth=2)
    def pipeline():
        files, labels = fn.readers.file(
            files=[str(path) for path in paths], labels=[0] * len(paths), random_shuffle=True, name='photos'
        )
        images = fn.decoders.image_random_crop(files, random_area=[0.08, 1.0], output_type=types.RGB)
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            output_layout='CHW',
        ), labels

    pipe = pipeline()
    pipe.build()

    def epoch() -> Iterable[np.ndarray]:
        for _ in range(len(paths) // batch_size):
            images, _ = pipe.run()
            yield images.as_array()

    return epoch
