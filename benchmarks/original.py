"""The loader and training step of the original entry (CVPR 2020 AliProducts, sixth place), rewritten for comparison.

OpenCV reads an image, torchvision's transforms crop and normalize it as a Pillow image, and a default DataLoader sends
float32 batches from its workers. A step is float32 in the default memory format with plain SGD; loss and accuracy are
read after each step. DataParallel is left out, because it does nothing on a CPU.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lib.backbone.resnet32 import ResNet32

_TEST_BATCH = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OriginalPhotos(Dataset):
    """The original entry's data set: OpenCV, Pillow and torchvision, one image at a time."""

    def __init__(
        self, paths: Sequence[Path], size: int, labels: Sequence[int] | None = None, *, train: bool = True
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.labels = labels
        if train:
            crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        else:
            crop = [transforms.Resize(int(size / 0.875)), transforms.CenterCrop(size)]
        pixels = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.transform = transforms.Compose([transforms.ToPILImage(), *crop, *pixels])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        import cv2  # imported in the worker, so that other benchmarks need no OpenCV

        cv2.setNumThreads(1)
        return self.transform(cv2.imread(self.paths[row])), 0 if self.labels is None else self.labels[row]


def default_loader(photos: Dataset, batch_size: int, num_workers: int) -> DataLoader:
    """Return a DataLoader with the options of most training scripts."""
    return DataLoader(
        photos, batch_size, shuffle=True, drop_last=True, num_workers=num_workers, persistent_workers=True
    )


def original_model(name: str, num_classes: int) -> nn.Module:
    """Return a network with a linear classifier: torchvision's 'resnet18', 'res32_cifar', or one of timm."""
    if name == 'resnet18':
        return torchvision.models.resnet18(num_classes=num_classes)
    if name == 'resnest50':
        return timm.create_model('resnest50d', num_classes=num_classes)
    if name == 'tf_efficientnet_lite0':
        return timm.create_model(name, num_classes=num_classes)
    return nn.Sequential(ResNet32(), nn.Linear(ResNet32.num_features, num_classes))


class _Meter:
    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.sum += value * count
        self.count += count


class OriginalTraining:
    """The epoch loop: float32, default memory format, SGD with momentum 0.9 and weight decay 1e-4."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.model = model
        self.loss_of = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)

    def epoch(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> int:
        """Train on all batches of images (batch, 3, H, W) and labels; return the number of images."""
        self.model.train()
        losses, accuracy = _Meter(), _Meter()
        for images, labels in batches:
            logits = self.model(images)
            loss = self.loss_of(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.update(loss.item(), len(images))
            accuracy.update((logits.argmax(dim=1) == labels).float().mean().item(), len(images))
        return losses.count


def original_predictions(model: nn.Module, paths: Sequence[Path], size: int, csv_file: Path, num_workers: int) -> int:
    """Predict photos like the original test script, in batches of 128, and write a CSV; return their number."""
    model.eval()
    loader = DataLoader(OriginalPhotos(paths, size, train=False), _TEST_BATCH, num_workers=num_workers)
    predicted: list[int] = []
    with torch.no_grad():
        for images, _ in loader:
            predicted += model(images).softmax(dim=1).argmax(dim=1).tolist()
    lines = [f'{path},{label}' for path, label in zip(paths, predicted, strict=True)]
    csv_file.write_text('\n'.join(['id,predicted', *lines, '']), encoding='utf-8')
    return len(paths)
