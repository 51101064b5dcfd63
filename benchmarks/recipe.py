"""Time of a training epoch of configs/GroceryStore.yaml compared with a plain recipe on the same photos.

REAL_PHOTOS=FOLDER python benchmarks/recipe.py [--json FILE]

Plain: torchvision's ResNet-18 at 112 px, PIL and torchvision transforms in a default DataLoader, batch 32, SGD,
label smoothing 0.1, channels_last, bfloat16 if the hardware supports it. Ours: the config, with main.py's loop.
Result: recipe_epoch_speedup, time of a plain epoch / time of ours; both have the same number of images.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torchvision
from PIL import Image
from torchvision import transforms

from benchmarks.harness import alternate, finish, parse_arguments, real_photos
from benchmarks.training import epoch_of, training
from lib.commands.cli import cli_main
from lib.formats.text_lists import convert_grocery_store

BATCH_SIZE, WORKERS = 32, 2


class PlainPhotos(torch.utils.data.Dataset):
    """The training photos, read as in most training scripts."""

    def __init__(self, root: Path) -> None:
        lines = (root / 'train.txt').read_text(encoding='utf-8').splitlines()
        self.entries = [(root / line.split(',')[0].strip(), int(line.split(',')[1])) for line in lines if line.strip()]
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(112, scale=(0.2, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        path, label = self.entries[row]
        return self.transform(Image.open(path).convert('RGB')), label


def plain_epoch(root: Path, dtype: torch.dtype | None) -> Callable[[], int]:
    """Return a function that trains one epoch of the plain recipe."""
    loader = torch.utils.data.DataLoader(
        PlainPhotos(root), BATCH_SIZE, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True
    )
    model = torchvision.models.resnet18(num_classes=81).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def run() -> int:
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.autocast('cpu', dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                logits = model(images.to(memory_format=torch.channels_last))
            loss = loss_of(logits.float(), labels)
            loss.backward()
            optimizer.step()
        return len(loader) * BATCH_SIZE

    return run


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], rounds=(3, 'epochs of each side'))
    photos = real_photos()
    options = ['--config', 'configs/GroceryStore.yaml', '--RUN_NUM_WORKERS', str(WORKERS), '--RUN_DEVICE', 'cpu']
    with training(convert_grocery_store(photos), options) as run:
        sides = {'ours': epoch_of(run), 'plain': plain_epoch(photos, run.device.train_dtype)}
        rates = alternate(sides, arguments.rounds)
    results = {f'{name}_images_per_second': rate for name, rate in rates.items()}
    finish({**results, 'recipe_epoch_speedup': rates['ours'] / rates['plain']}, arguments.json)


if __name__ == '__main__':
    cli_main(main)
