"""One photo of a pack: placed in a scene, shadowed, partly covered, lit, saved as JPEG."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lib.demo.scenes import draw_scene

SKIN = ((236, 188, 160), (198, 140, 104), (122, 80, 56))


def photograph(front: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator) -> bytes:
    """Take a photo of a pack.

    Args:
        front: the pack's RGBA front.
        others: two more fronts, which may show beside it.
        rng: decides everything.

    Returns:
        A JPEG, 160 to 200 pixels wide and high.
    """
    width, height = (int(n) for n in rng.integers(160, 201, 2))
    photo, ground = draw_scene(width, height, others, rng)
    pack, corner = _placed(front, width, height, ground, rng)
    box = (*corner, corner[0] + pack.width, corner[1] + pack.height)
    _cast_shadow(photo, pack, box, rng)
    photo.paste(pack, corner, pack)
    if rng.random() < 0.25:
        _cover(photo, others[0], box, rng)
    photo = _exposed(_focused(photo, rng), rng)
    file = io.BytesIO()
    photo.save(file, 'JPEG', quality=int(rng.integers(45, 93)))
    return file.getvalue()


def _placed(
    front: Image.Image, width: int, height: int, ground: float, rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, int]]:
    """Project the front into the picture: an RGBA layer, and where its upper left corner goes."""
    scale = min(height * rng.uniform(0.6, 0.85) / front.height, width * rng.uniform(0.7, 0.85) / front.width)
    half_width, tall = scale * front.width / 2, scale * front.height
    yaw, pitch = rng.uniform(-0.09, 0.09), rng.uniform(-0.06, 0.06)
    half_width *= 1 - 1.4 * abs(yaw)
    # Corners around the middle of the bottom edge: the side turned away is lower, the tilted end narrower.
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
        front = front.reduce(2)  # a projection does not average: fine print would crumble
    source = np.array([[0, front.width, front.width, 0], [0, 0, front.height, front.height]], dtype=float)
    coefficients = _homography((quad - corner[:, None]).T, source.T)
    layer = front.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return layer, (int(corner[0]), int(corner[1]))


def _homography(target: np.ndarray, source: np.ndarray) -> list[float]:
    """Solve for Pillow's eight coefficients: they map four points (4, 2) of the output to the input's."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values)).tolist()


def _cast_shadow(
    photo: Image.Image, pack: Image.Image, box: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    """Darken where the pack stands (contact) and, to one side, where it keeps the light away."""
    coarse = 4  # shadows are soft, so a quarter of the size will do
    shadow = Image.new('L', [-(-side // coarse) for side in photo.size])
    deep, lean = rng.uniform(0.1, 0.4), rng.choice([-1, 1]) * rng.uniform(0.05, 0.2) * pack.width
    cast = pack.getchannel('A').reduce(coarse)
    place = (round((box[0] + lean) / coarse), round((box[1] + rng.uniform(0, 6)) / coarse))
    shadow.paste(round(255 * deep), place, cast)
    shadow = shadow.filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5)))
    reach = pack.width / coarse
    left, bottom = box[0] / coarse, box[3] / coarse
    contact = (left - 0.5, bottom - 0.05 * reach - 0.5, left + reach + 0.5, bottom + 0.04 * reach + 0.5)
    ImageDraw.Draw(shadow).ellipse(contact, fill=int(rng.uniform(100, 170)))
    shadow = shadow.filter(ImageFilter.BoxBlur(0.7)).resize(photo.size, Image.Resampling.BILINEAR)
    photo.paste((18, 16, 20), (0, 0), shadow)


def _cover(photo: Image.Image, other: Image.Image, box: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    """Hide up to about a sixth of the pack by a finger, a sticker, or another pack nearer to the lens."""
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


def _focused(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Out of focus a little, or a shaky hand, or sharp."""
    kind = rng.random()
    if kind < 0.5:
        return photo.filter(ImageFilter.BoxBlur(rng.uniform(0.1, 1.1)))
    if kind < 0.6:
        return photo.filter(ImageFilter.BoxBlur((1.2, 0) if rng.random() < 0.5 else (0, 1.2)))
    return photo


def _exposed(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Exposure, warm or cool light, light from one side, now and then a reflection, haze, sensor noise."""
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
        np.clip(np.asarray(plane) * (gain * share) + added, 0, 255).astype(np.uint8)
        for plane, share in zip(photo.split(), tint, strict=True)
    ]
    return Image.merge('RGB', [Image.fromarray(plane) for plane in planes])
