"""Synthetic photos of packs: a scene, the projected pack with its shadow, occlusion, blur and exposure, as JPEG."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WALLS = ((226, 224, 218), (205, 212, 220), (214, 203, 190), (188, 200, 190), (150, 160, 176), (96, 100, 112))
WOODS = ((176, 126, 78), (134, 90, 56), (206, 168, 120), (98, 68, 48), (186, 178, 166))
BOARDS = ((238, 238, 236), (212, 214, 218), (120, 124, 130), (190, 160, 120))
SKIN = ((236, 188, 160), (198, 140, 104), (122, 80, 56))

Scene = tuple[Image.Image, float]


def draw_scene(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """Draw a background.

    Args:
        width, height: pixels.
        fronts: packs (RGBA) that may be beside the photographed one.
        rng: source of all randomness.

    Returns:
        The RGB image, and the height of the ground below the pack, as a fraction of `height`.
    """
    scene = SCENES[rng.choice(len(SCENES), p=SCENE_PROBABILITIES)]
    return scene(width, height, fronts, rng)


def _tone(colors: Sequence[tuple[int, int, int]], rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(colors[int(rng.integers(len(colors)))]) + rng.normal(0, 8, 3), 0, 255)


def _grain(width: int, height: int, cells: tuple[int, int], strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise around 0, (height, width, 1): `cells` (across, down) random values, interpolated."""
    coarse = rng.normal(0, strength, cells[::-1]).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))[..., None]


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _studio(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """Draw white or tinted paper, as in a catalog."""
    tone = _tone(((248, 248, 248), (240, 240, 238), (232, 236, 242), *WALLS), rng)
    fall = np.linspace(1.03, rng.uniform(0.82, 1.0), height)[:, None, None]
    return _image(np.broadcast_to(tone * fall, (height, width, 3))), rng.uniform(0.86, 0.95)


def _table(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """Draw a wooden table in front of a wall."""
    edge = round(height * rng.uniform(0.45, 0.75))
    wall = _tone(WALLS, rng) + _grain(width, edge, (4, 3), 7, rng)
    wood = _tone(WOODS, rng) + _grain(width, height - edge, (3, 28), 12, rng) * np.array([1, 0.85, 0.7])
    wood = wood + _grain(width, height - edge, (24, 40), 4, rng)
    wood *= np.linspace(0.8, 1.06, height - edge)[:, None, None]
    return _image(np.concatenate([wall, wood])), rng.uniform(0.86, 0.96)


def _kitchen(width: int, height: int, fronts: Sequence[Image.Image], rng: np.random.Generator) -> Scene:
    """Draw tiles above a countertop."""
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
    """Draw a shop shelf with a price rail and neighboring packs, which the borders of the image cut."""
    tone = _tone(BOARDS, rng)
    image = _image(np.broadcast_to(tone * np.linspace(0.4, 0.75, height)[:, None, None], (height, width, 3)))
    ground = rng.uniform(0.84, 0.92)
    draw = ImageDraw.Draw(image)
    for side, front in zip((-1, 1), fronts, strict=False):
        tall = round(height * rng.uniform(0.6, 0.85))
        visible = rng.uniform(0.15, 0.5)  # fraction of the pack
        cut = round(visible * front.width)
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
    """Draw colored patches out of focus."""
    light = rng.uniform(0.4, 1.1, (6, 5, 1))
    patches = _tone((*WALLS, *WOODS), rng) * light + rng.normal(0, 14, (6, 5, 3))
    image = _image(patches).resize((width, height), Image.Resampling.BICUBIC)
    return image, rng.uniform(0.86, 0.98)


SCENES: tuple[Callable[..., Scene], ...] = (_studio, _table, _kitchen, _shelf, _blurred)
SCENE_PROBABILITIES = (0.3, 0.22, 0.14, 0.22, 0.12)


def photograph(front: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator) -> bytes:
    """Take a photo of a pack.

    Args:
        front: the pack's RGBA front.
        others: two more fronts, which may be visible beside it.
        rng: source of all randomness.

    Returns:
        A JPEG, 160 to 200 pixels wide and high.
    """
    width, height = (int(n) for n in rng.integers(160, 201, 2))
    photo, ground = draw_scene(width, height, others, rng)
    pack, corner = _project(front, width, height, ground, rng)
    box = (*corner, corner[0] + pack.width, corner[1] + pack.height)
    _cast_shadow(photo, pack, box, rng)
    photo.paste(pack, corner, pack)
    if rng.random() < 0.25:
        _occlude(photo, others[0], box, rng)
    photo = _expose(_blur(photo, rng), rng)
    file = io.BytesIO()
    photo.save(file, 'JPEG', quality=int(rng.integers(45, 93)))
    return file.getvalue()


def _project(
    front: Image.Image, width: int, height: int, ground: float, rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, int]]:
    """Project the front into the image; return an RGBA layer and the position of its upper left corner."""
    scale = min(height * rng.uniform(0.6, 0.85) / front.height, width * rng.uniform(0.7, 0.85) / front.width)
    half_width, tall = scale * front.width / 2, scale * front.height
    yaw, pitch = rng.uniform(-0.09, 0.09), rng.uniform(-0.06, 0.06)
    half_width *= 1 - 1.4 * abs(yaw)
    # Corners around the middle of the bottom edge: the side turned away is shorter, the tilted end narrower.
    corners = np.array([[-1, -1], [1, -1], [1, 0], [-1, 0]], dtype=float)
    taper = np.array([1 - pitch, 1 - pitch, 1 + pitch, 1 + pitch])
    middle = corners[:, 1] + 0.5
    quad = np.stack([
        corners[:, 0] * half_width * taper,
        tall * (-0.5 + middle * (1 + yaw * corners[:, 0])),
    ])  # fmt: skip
    angle = rng.normal(0, 4) if rng.random() < 0.85 else rng.uniform(-18, 18)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    quad = np.array([[cos, -sin], [sin, cos]]) @ quad
    lowest = ground * height + rng.normal(0, 0.012) * height
    quad += np.array([[width * rng.normal(0.5, 0.05)], [lowest - quad[1].max()]])
    corner = np.floor(quad.min(axis=1))
    size = np.ceil(quad.max(axis=1) - corner).astype(int).tolist()
    if scale < 0.6:
        front = front.reduce(2)  # a projection does not average: fine print would be aliased
    source = np.array([[0, front.width, front.width, 0], [0, 0, front.height, front.height]], dtype=float)
    coefficients = _homography((quad - corner[:, None]).T, source.T)
    layer = front.transform(tuple(size), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return layer, (int(corner[0]), int(corner[1]))


def _homography(target: np.ndarray, source: np.ndarray) -> list[float]:
    """Return the eight coefficients of Pillow's transform that map four points (4, 2) of the output to the input."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values)).tolist()


def _cast_shadow(
    photo: Image.Image, pack: Image.Image, box: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    """Darken the ground below the pack (contact) and the area of its shadow to one side."""
    coarse = 4  # shadows are soft, so a quarter of the size is enough
    shadow = Image.new('L', [-(-side // coarse) for side in photo.size])
    deep, lean = rng.uniform(0.1, 0.4), rng.choice([-1, 1]) * rng.uniform(0.05, 0.2) * pack.width
    cast = pack.getchannel('A').reduce(coarse)
    position = (round((box[0] + lean) / coarse), round((box[1] + rng.uniform(0, 6)) / coarse))
    shadow.paste(round(255 * deep), position, cast)
    shadow = shadow.filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5)))
    reach = pack.width / coarse
    left, bottom = box[0] / coarse, box[3] / coarse
    contact = (left - 0.5, bottom - 0.05 * reach - 0.5, left + reach + 0.5, bottom + 0.04 * reach + 0.5)
    ImageDraw.Draw(shadow).ellipse(contact, fill=int(rng.uniform(100, 170)))
    shadow = shadow.filter(ImageFilter.BoxBlur(0.7)).resize(photo.size, Image.Resampling.BILINEAR)
    photo.paste((18, 16, 20), (0, 0), shadow)


def _occlude(photo: Image.Image, other: Image.Image, box: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    """Occlude up to about a sixth of the pack with a finger, a sticker, or another pack in the foreground."""
    left, top, right, bottom = box
    wide, tall = right - left, bottom - top
    draw = ImageDraw.Draw(photo)
    kind = rng.integers(3)
    if kind == 0:
        from_left = rng.random() < 0.5
        y, a = rng.uniform(top + 0.4 * tall, bottom), rng.uniform(0.07, 0.12) * wide + 4
        tip = left + 0.18 * wide if from_left else right - 0.18 * wide
        skin = SKIN[rng.integers(len(SKIN))]
        reach = (-3 * a, y - a, tip, y + a) if from_left else (tip, y - a, photo.width + 3 * a, y + a)
        draw.rounded_rectangle(reach, a, fill=skin, outline=tuple(int(0.8 * c) for c in skin))
    elif kind == 1:
        x, y, a = rng.uniform(left, right), rng.uniform(top, bottom), rng.uniform(0.09, 0.14) * wide
        draw.ellipse((x - a, y - a, x + a, y + a), fill=(228, 40, 44) if rng.random() < 0.5 else (250, 220, 40))
        draw.line((x - a / 2, y, x + a / 2, y), fill=(255, 255, 255), width=3)
    else:
        scale = tall * rng.uniform(0.9, 1.1) / other.height
        pack = other.resize((round(other.width * scale), round(other.height * scale)), Image.Resampling.BILINEAR)
        pack = pack.filter(ImageFilter.GaussianBlur(1.5))
        over = round(wide * rng.uniform(0.05, 0.25))
        x = left + over - pack.width if rng.random() < 0.5 else right - over
        photo.paste(pack, (x, round(bottom - tall * rng.uniform(0.2, 0.45))), pack)


def _blur(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply a slight defocus or motion blur, or none."""
    kind = rng.random()
    if kind < 0.5:
        return photo.filter(ImageFilter.BoxBlur(rng.uniform(0.1, 1.1)))
    if kind < 0.6:
        return photo.filter(ImageFilter.BoxBlur((1.2, 0) if rng.random() < 0.5 else (0, 1.2)))
    return photo


def _expose(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply exposure, color temperature, light from one side, haze, and sometimes a reflection or sensor noise."""
    width, height = photo.size
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    exposure, slope_x, slope_y, falloff = (
        rng.uniform(0.72, 1.18),
        *rng.normal(0, (0.09, 0.07)),
        rng.uniform(0, 0.12),
    )
    gain = exposure * (1 + slope_x * x + slope_y * y) - falloff * (x**2 + y**2)  # (height, width)
    warmth, green = rng.normal(0, (0.045, 0.012))
    haze = rng.uniform(0, 14)
    tint = np.array([1 + warmth, 1 + green, 1 - warmth], dtype=np.float32) * (1 - haze / 255)
    added = np.full((height, width), haze, dtype=np.float32)
    if rng.random() < 0.15:
        (left, top), size = rng.uniform((-0.5, -0.7), 0.5), rng.uniform(0.1, 0.25)
        added += 150 * np.exp(-((x - left) ** 2 + (y - top) ** 2) / size**2)
    if rng.random() < 0.5:
        added += rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(2, 8)
    gain = gain.astype(np.float32)
    # Plane by plane: broadcasting over a last axis of three is several times slower.
    planes = [
        np.clip(np.asarray(plane) * (gain * factor) + added, 0, 255).astype(np.uint8)
        for plane, factor in zip(photo.split(), tint, strict=True)
    ]
    return Image.merge('RGB', [Image.fromarray(plane) for plane in planes])
