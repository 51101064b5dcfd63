"""The original entry's way to batches (CVPR 2020 AliProducts, sixth place), as fairly as its authors would have it.

OpenCV reads, torchvision's transforms work on a Pillow image and normalise, and a default DataLoader makes batches:
float32 travels from its workers.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OriginalPhotos(Dataset):
    """OpenCV, Pillow, torchvision, one image after the other."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = [str(path) for path in paths]
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomResizedCrop(size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        import cv2  # a worker's own, so that whoever needs no such side needs no OpenCV

        cv2.setNumThreads(1)
        return self.transform(cv2.imread(self.paths[row])), 0


def default_loader(photos: Dataset, batch_size: int, num_workers: int) -> DataLoader:
    """Return a DataLoader as most training scripts have it."""
    return DataLoader(
        photos, batch_size, shuffle=True, drop_last=True, num_workers=num_workers, persistent_workers=True
    )
