"""A model for tests of lib/api.py: random weights, six classes, images of 32 px; and photos in every form."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lib.builders.model import new_model
from lib.config.yaml_text import as_node, as_text
from lib.runtime.device import pick_device
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, TrainProgress
from tests.aliproducts import draw_product
from tests.defaults import DEFAULTS

CLASSES = ['cola', 'tea 2', 'tea 10', '<b>milk</b>', 'Müsli', '粥']
BATCH = 8
SMALL = {'MODEL.BACKBONE': 'test_resnet', 'INPUT.SIZE': 32, 'NAME': 'x', 'TEST.BATCH_SIZE': BATCH}


def write_model(path: Path, classes: list[str] = CLASSES, **options: object) -> Path:
    """Write a checkpoint with random weights; options as INPUT__SIZE."""
    changes = {name.replace('__', '.'): value for name, value in options.items()}
    cfg = as_node(DEFAULTS | SMALL | changes)
    model = new_model(cfg, len(classes), pick_device('cpu', 'float32'))
    with torch.no_grad():
        model.classifier.weight *= 30  # so that probabilities differ
    counts = np.full(len(classes), 10)
    trained = TrainingSet('photos', counts, list(classes))
    write_checkpoint(
        path, Checkpoint(model.state_dict(), as_text(cfg), progress=TrainProgress(2), training_set=trained)
    )
    return path


def encoded(image: Image.Image, kind: str = 'JPEG', **options: object) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    """Return EXIF with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_photos(folder: Path, num_photos: int = 20) -> list[Path]:
    """Write photos of several formats, modes and sizes, three of them damaged; return all paths, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    kinds = [
        lambda image: ('jpg', encoded(image, quality=90)),
        lambda image: ('jpg', encoded(image, quality=90, exif=turned(6))),
        lambda image: ('png', encoded(image, 'PNG')),
        lambda image: ('jpg', encoded(image.convert('L'))),
        lambda image: ('jpg', encoded(image.convert('CMYK'))),
        lambda image: ('png', encoded(with_alpha(image), 'PNG')),
        lambda image: ('webp', encoded(image, 'WEBP')),
    ]
    for number in range(num_photos):
        image = draw_product(number % 6, 6, 40 + 8 * (number % 3), random).resize((150 + number, 90))
        ending, data = kinds[number % len(kinds)](image)
        (folder / f'{number:03d}.{ending}').write_bytes(data)
    whole = encoded(draw_product(1, 6, 60, random))
    (folder / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'text.png').write_bytes(b'no photo')
    return sorted(folder.iterdir())


def with_alpha(image: Image.Image) -> Image.Image:
    """Return the image with a transparency that falls from left to right."""
    alpha = np.tile(np.linspace(255, 0, image.width).astype(np.uint8), (image.height, 1))
    image = image.copy()
    image.putalpha(Image.fromarray(alpha))
    return image
