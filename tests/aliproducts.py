"""A small data set in the file format of the AliProducts challenge, with images that a model can learn."""

import colorsys
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def class_ids(num_classes: int) -> list[int]:
    """Return the original ids: ascending, with gaps, of one to five digits."""
    return [3 + 7 * position + (10_000 if position % 5 == 4 else 0) for position in range(num_classes)]


def make_aliproducts(
    folder: Path,
    num_classes: int = 6,
    images_per_class: int | Sequence[int] = 8,
    *,
    valid_per_class: int = 2,
    num_test: int = 6,
    size: int = 48,
    padded: bool = True,
    text_ids: bool = True,
    tree: bool = True,
    seed: int = 0,
) -> Path:
    """Write train.json, val.json, train/, val/, test/, product_tree.json into `folder` and return it.

    Color and shape distinguish classes; position, size and brightness vary.

    Args:
        images_per_class: one number, or one per class.
        padded: name class folders 00123 instead of 123.
        text_ids: write class_id as text.
        tree: write product_tree.json.
    """
    folder = Path(folder)
    random = np.random.default_rng(seed)
    counts = [images_per_class] * num_classes if isinstance(images_per_class, int) else list(images_per_class)
    ids = sorted(class_ids(num_classes))
    for split, numbers in (('train', counts), ('val', [valid_per_class] * num_classes)):
        entries = []
        for label, (class_id, number) in enumerate(zip(ids, numbers, strict=True)):
            class_folder = folder / split / (f'{class_id:05d}' if padded else str(class_id))
            class_folder.mkdir(parents=True, exist_ok=True)
            for position in range(number):
                name = f'{split}_{class_id}_{position}.jpg'
                draw_product(label, num_classes, size, random).save(class_folder / name, quality=90)
                entries.append({'image_id': name, 'class_id': str(class_id) if text_ids else class_id})
        order = random.permutation(len(entries))
        (folder / f'{split}.json').write_text(json.dumps({'images': [entries[row] for row in order]}))
    (folder / 'test').mkdir(exist_ok=True)
    for position in range(num_test):
        image = draw_product(position % num_classes, num_classes, size, random)
        image.save(folder / 'test' / f'{position}.jpg', quality=90)
    if tree:
        families = {f'Family {start // 2}': [str(i) for i in ids[start : start + 2]] for start in range(0, len(ids), 2)}
        (folder / 'product_tree.json').write_text(json.dumps({'Goods': families}))
    return folder


def draw_product(label: int, num_classes: int, size: int, random: np.random.Generator) -> Image.Image:
    """Return an RGB photo of a class: a disc, box or bar in the hue of the class on a gray background."""
    hue = label / num_classes
    color = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.9, random.uniform(0.7, 1.0)))
    image = Image.new('RGB', (size, size), (int(random.integers(60, 200)),) * 3)
    half = size * random.uniform(0.28, 0.4)
    x, y = random.uniform(0.42, 0.58, 2) * size
    height = half / 3 if label % 3 == 2 else half
    draw = ImageDraw.Draw(image)
    shape = draw.ellipse if label % 3 == 0 else draw.rectangle
    shape((x - half, y - height, x + half, y + height), fill=color)
    noise = random.normal(0, 6, (size, size, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
