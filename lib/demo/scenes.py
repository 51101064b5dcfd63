"""Where a product is photographed: studio, wooden table, kitchen, shop shelf, or anywhere out of focus."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WALLS = ((226, 224, 218), (205, 212, 220), (214, 203, 190), (188, 200, 190), (150, 160, 176), (96, 100, 112))
WOODS = ((176, 126, 78), (134, 90, 56), (206, 168, 120), (98, 68, 48), (186, 178, 166))
BOARDS = ((238, 238, 236), (212, 214, 218), (120, 124, 130), (190, 160, 120))

Scene = tuple[Image.Image, float]


def draw_scene(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """Draw a background.

    Args:
        width, height: pixels.
        fronts: packs (RGBA) that may stand beside the photographed one.
        rng: decides everything.

    Returns:
        The RGB image, and the height at which a pack stands, as a share of `height`.
    """
    scene = SCENES[rng.choice(len(SCENES), p=SCENE_SHARES)]
    return scene(width, height, fronts, rng)


def _tone(colors: Sequence[tuple[int, int, int]], rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(colors[rng.integers(len(colors))]) + rng.normal(0, 8, 3), 0, 255)


def _grain(width: int, height: int, cells: tuple[int, int], strength: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise around 0, (height, width, 1): `cells` (across, down) random values, interpolated."""
    coarse = rng.normal(0, strength, cells[::-1]).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))[..., None]


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _studio(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """White or tinted paper, as in a catalogue."""
    tone = _tone(((248, 248, 248), (240, 240, 238), (232, 236, 242), *WALLS), rng)
    fall = np.linspace(1.03, rng.uniform(0.82, 1.0), height)[:, None, None]
    return _image(np.broadcast_to(tone * fall, (height, width, 3))), rng.uniform(0.86, 0.95)


def _table(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """A wooden table before a wall."""
    edge = round(height * rng.uniform(0.45, 0.75))
    wall = _tone(WALLS, rng) + _grain(width, edge, (4, 3), 7, rng)
    wood = _tone(WOODS, rng) + _grain(width, height - edge, (3, 28), 12, rng) * np.array([1, 0.85, 0.7])
    wood = wood + _grain(width, height - edge, (24, 40), 4, rng)
    wood *= np.linspace(0.8, 1.06, height - edge)[:, None, None]
    return _image(np.concatenate([wall, wood])), rng.uniform(0.86, 0.96)


def _kitchen(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """Tiles above a worktop."""
    image = _image(_tone(WALLS, rng) + _grain(width, height, (5, 5), 5, rng))
    draw = ImageDraw.Draw(image)
    tile, joint = (
        int(rng.integers(26, 48)),
        tuple(int(c) for c in _tone(((245, 245, 243), (150, 150, 150)), rng)),
    )
    for row, y in enumerate(range(int(rng.integers(tile)) - tile, height, tile)):
        draw.line((0, y, width, y), fill=joint, width=2)
        for x in range(-tile + (row % 2) * tile, width, 2 * tile):
            draw.line((x, y, x, y + tile), fill=joint, width=2)
    edge = round(height * rng.uniform(0.68, 0.82))
    top = _image(_tone((*BOARDS, *WOODS), rng) + _grain(width, height - edge, (30, 20), 6, rng))
    image.paste(top, (0, edge))
    return image.filter(ImageFilter.BoxBlur(rng.uniform(0, 1.2))), rng.uniform(0.87, 0.96)


def _shelf(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """A shop shelf with a price rail; neighbours cut by the picture's edges."""
    tone = _tone(BOARDS, rng)
    image = _image(np.broadcast_to(tone * np.linspace(0.4, 0.75, height)[:, None, None], (height, width, 3)))
    ground = rng.uniform(0.84, 0.92)
    draw = ImageDraw.Draw(image)
    for side, front in zip((-1, 1), fronts, strict=False):
        tall = round(height * rng.uniform(0.6, 0.85))
        share = rng.uniform(0.15, 0.5)  # of the pack that the picture shows
        cut = round(share * front.width)
        part = front.crop((front.width - cut, 0, front.width, front.height) if side < 0 else (0, 0, cut, front.height))
        part = part.resize((max(1, round(cut * tall / front.height)), tall), Image.Resampling.BILINEAR)
        image.paste(part, (0 if side < 0 else width - part.width, round((ground - 0.01) * height) - tall), part)
    rail = round(ground * height)
    draw.rectangle((0, rail, width, height), fill=tuple(int(c) for c in np.clip(tone * 1.04, 0, 255)))
    draw.line((0, rail, width, rail), fill=tuple(int(c) for c in tone * 0.55), width=2)
    left, tag = int(rng.integers(0, width - 30)), (250, 240, 150) if rng.random() < 0.4 else (250, 250, 250)
    draw.rectangle((left, rail + 4, left + 34, height - 1), fill=tag)
    draw.line((left + 4, rail + 9, left + 24, rail + 9), fill=(40, 40, 40), width=2)
    return image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.3))), ground + 0.01


def _blurred(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """Coloured patches out of focus."""
    light = rng.uniform(0.4, 1.1, (6, 5, 1))
    patches = _tone((*WALLS, *WOODS), rng) * light + rng.normal(0, 14, (6, 5, 3))
    image = _image(patches).resize((width, height), Image.Resampling.BICUBIC)
    return image, rng.uniform(0.86, 0.98)


SCENES: tuple[Callable[..., Scene], ...] = (_studio, _table, _kitchen, _shelf, _blurred)
SCENE_SHARES = (0.3, 0.22, 0.14, 0.22, 0.12)
