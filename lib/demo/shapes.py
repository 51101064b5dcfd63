"""Fronts of packs: the label on a can, bottle, jar, tube, box, flask or pouch, with shading."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from lib.demo.artwork import draw_label
from lib.demo.catalog import Product
from lib.demo.emblems import Color, mix, rgb

# Packs are drawn at twice the size and reduced: Pillow's polygons are not antialiased.
OVERSAMPLING = 2
# (top, bottom, color or None for the label), heights as fractions of the height of the pack.
Part = tuple[float, float, Color | None]


def draw_front(product: Product) -> Image.Image:
    """Draw the pack front of `product`: RGBA, about 250 pixels high, with a transparent margin of 2 pixels."""
    drawn = SHAPES[product.family.shape](product)
    box = drawn.getchannel('A').getbbox()
    assert box is not None
    left, top, right, bottom = box
    # With the margin a projection blends the edge of the pack with the background.
    margin = 2 * OVERSAMPLING
    return drawn.crop((left - margin, top - margin, right + margin, bottom + margin)).reduce(OVERSAMPLING)


def _content(product: Product) -> Color:
    return rgb(product.variant.content or product.family.body or product.variant.color)


def _cap(product: Product) -> Color:
    return rgb(product.family.cap or product.variant.color)


def _wrap(
    texture: Image.Image, profile: list[tuple[float, float]], width: int, *, gloss: float, curve: float = 0.06
) -> Image.Image:
    """Wrap an unrolled texture on a body of revolution, seen slightly from above.

    Args:
        texture: texture of half the circumference and the height of the pack.
        profile: (height from the top, half width), fractions of the height and of half of `width`, top to bottom.
        width: width of the pack, pixels.
        gloss: strength of the highlights, 0 to 1.
        curve: sag of horizontal lines in the middle, as a fraction of the width.
    """
    height = texture.height
    levels, reach = np.array(profile).T
    half = np.interp(np.arange(height), levels * height, reach * width / 2).astype(np.float32)  # (height,)
    across = (np.arange(width) - (width - 1) / 2)[None, :] / half[:, None]
    across = across.astype(np.float32)  # (height, width), -1 to 1 on the pack
    inside = np.abs(across) <= 1
    across = np.clip(across, -1, 1)
    sag = curve * 2 * half[:, None] * np.sqrt(1 - across**2)
    row = np.arange(height, dtype=np.float32)[:, None] - sag
    inside &= row >= -curve * half[0] * 2
    inside &= row <= height - 1 - curve * half[-1] * 2
    rows = np.clip(row, 0, height - 1).astype(np.int32)
    columns = ((np.arcsin(across) / np.pi + 0.5) * (texture.width - 1)).astype(np.int32)
    flat = np.asarray(texture)[rows, columns]  # (height, width, 3), uint8
    shade = 0.42 + 0.58 * np.sqrt(1 - (0.96 * across) ** 2) - 0.06 * across
    shine = gloss * (0.55 * _bump(across, -0.52, 0.1) + 0.2 * _bump(across, 0.68, 0.07))
    return _shaded(flat, shade, shine, inside)


def _bump(x: np.ndarray, center: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - center) / width) ** 2)


def _shaded(flat: np.ndarray, shade: np.ndarray, shine: np.ndarray, inside: np.ndarray) -> Image.Image:
    """Darken by `shade`, lighten by `shine` (both (height, width)), and make pixels outside transparent."""
    shine = np.clip(shine, 0, 1)
    gain, added = shade * (1 - shine), 255 * shine
    pixels = np.empty((*inside.shape, 4), np.uint8)
    for channel in range(3):  # broadcasting over a last axis of three is several times slower
        pixels[..., channel] = np.clip(flat[..., channel] * gain + added, 0, 255)
    pixels[..., 3] = 255 * inside
    return Image.fromarray(pixels)


def _unrolled_texture(product: Product, width: int, height: int, parts: list[Part]) -> Image.Image:
    """Paint the unrolled surface of a pack, from top to bottom."""
    around = round(width * np.pi / 2)
    texture = Image.new('RGB', (around, height))
    draw = ImageDraw.Draw(texture)
    for top, bottom, color in parts:
        if color is None:
            size = (around, round((bottom - top) * height))
            texture.paste(draw_label(product, *size, safe=0.86 * width), (0, round(top * height)))
        else:
            draw.rectangle((0, top * height, around, bottom * height), fill=color)
    return texture


def _can(product: Product) -> Image.Image:
    metal, seam = (206, 209, 213), (120, 124, 130)
    parts: list[Part] = [
        (0, 0.035, metal),
        (0.035, 0.045, seam),
        (0.045, 0.08, metal),
        (0.08, 0.94, None),
        (0.94, 1, metal),
    ]
    profile = [(0, 0.8), (0.03, 0.82), (0.045, 0.8), (0.12, 1), (0.92, 1), (0.975, 0.86), (1, 0.8)]
    return _wrap(_unrolled_texture(product, 280, 510, parts), profile, 280, gloss=0.75)


def _bottle(product: Product) -> Image.Image:
    glass, cap = _content(product), _cap(product)
    neck, dark = mix(glass, (255, 255, 255), 0.25), mix(cap, (0, 0, 0), 0.35)
    parts: list[Part] = [
        *((0, 0.075, cap), (0.075, 0.085, dark), (0.085, 0.17, neck), (0.17, 0.4, glass)),
        *((0.4, 0.86, None), (0.86, 1, glass)),
    ]
    profile = [
        *((0, 0.4), (0.085, 0.42), (0.09, 0.36), (0.17, 0.37), (0.23, 0.5), (0.29, 0.78), (0.35, 0.95)),
        *((0.4, 1), (0.95, 1), (0.985, 0.95), (1, 0.86)),
    ]
    return _wrap(_unrolled_texture(product, 210, 560, parts), profile, 210, gloss=0.9, curve=0.05)


def _jar(product: Product) -> Image.Image:
    content, lid = _content(product), _cap(product)
    rim = mix(lid, (0, 0, 0), 0.3)
    parts: list[Part] = [
        *((0, 0.13, lid), (0.13, 0.15, rim), (0.15, 0.19, mix(content, (255, 255, 255), 0.45))),
        *((0.19, 0.3, content), (0.3, 0.88, None), (0.88, 1, content)),
    ]
    profile = [(0, 0.84), (0.02, 0.88), (0.15, 0.88), (0.16, 0.8), (0.24, 1), (0.94, 1), (1, 0.88)]
    return _wrap(_unrolled_texture(product, 320, 410, parts), profile, 320, gloss=0.9, curve=0.045)


def _tube(product: Product) -> Image.Image:
    body, cap = rgb(product.family.body), _cap(product)
    crimp = mix(body, (0, 0, 0), 0.12)
    parts: list[Part] = [
        (0, 0.05, crimp),
        (0.05, 0.06, mix(crimp, (0, 0, 0), 0.2)),
        (0.06, 0.83, None),
        (0.83, 0.86, body),
    ]
    parts += [(0.86, 0.87, mix(cap, (0, 0, 0), 0.4)), (0.87, 1, cap)]
    profile = [(0, 1), (0.06, 0.99), (0.8, 0.8), (0.845, 0.76), (0.86, 0.6), (0.87, 0.62), (1, 0.58)]
    return _wrap(_unrolled_texture(product, 240, 550, parts), profile, 240, gloss=0.5, curve=0.02)


def _flask(product: Product) -> Image.Image:
    body, cap = _content(product), _cap(product)
    closed = mix(cap, (0, 0, 0), 0.45)
    parts: list[Part] = [(0, 0.12, closed), (0.12, 0.13, mix(closed, (0, 0, 0), 0.5)), (0.13, 0.28, body)]
    parts += [(0.28, 0.9, None), (0.9, 1, body)]
    profile = [
        *((0, 0.46), (0.02, 0.5), (0.12, 0.52), (0.13, 0.5), (0.17, 0.72), (0.22, 0.9), (0.3, 1)),
        *((0.9, 0.96), (0.97, 0.92), (1, 0.8)),
    ]
    return _wrap(_unrolled_texture(product, 260, 540, parts), profile, 260, gloss=0.6, curve=0.03)


def _box(product: Product) -> Image.Image:
    """Draw a carton, turned slightly so that one side is visible."""
    width, height, depth = 330, 470, 44
    front = np.asarray(draw_label(product, width, height, safe=0.86 * width), dtype=np.float32)
    side = mix(rgb(product.family.body), rgb(product.variant.color), 0.35)
    flat = np.empty((height, width + depth, 3), np.float32)
    flat[:, :width], flat[:, width:] = front, side
    down, along = np.mgrid[0:height, 0 : width + depth].astype(np.float32)
    beyond = np.clip((along - width) / depth, 0, None)  # 0 on the front, up to 1 over the side
    shade = np.where(along < width, 1.0 - 0.1 * down / height - 0.05 * along / width, 0.62 - 0.1 * beyond)
    crease = 0.25 * _bump(along, width, 1.6) + 0.12 * _bump(down, 0, 3)
    inside = (down >= 0.035 * height * beyond) & (down <= height * (1 - 0.035 * beyond))
    return _shaded(flat, shade, crease, inside)


def _pouch(product: Product) -> Image.Image:
    """Draw a bag with seals at both ends and folds that start from the seals."""
    width, height = 340, 470
    flat = np.asarray(draw_label(product, width, height, safe=0.74 * width), dtype=np.float32).copy()
    down, along = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = 2 * along / (width - 1) - 1, down / (height - 1)
    from_seal = np.minimum(y, 1 - y)
    half = 0.93 + 0.07 * np.exp(-from_seal / 0.05) - 0.03 * np.cos(2 * np.pi * y)
    tooth = 4 * (np.abs((along / 9) % 2 - 1))  # the cut of the seal, pixels
    inside = (np.abs(x) <= half) & (down >= tooth) & (down <= height - 1 - tooth)
    sealed = from_seal < 0.055
    bulge = np.sqrt(np.clip(1 - (0.9 * x / half) ** 2, 0, 1)) * (1 - np.exp(-from_seal / 0.09))
    folds = np.sin(17 * x + 5 * np.sin(3 * y)) * np.exp(-from_seal / 0.13) + 0.5 * np.sin(9 * y + 4 * x) * np.abs(x)
    shade = np.where(sealed, 0.82 + 0.1 * np.sin(down * 1.7), 0.62 + 0.38 * bulge + 0.07 * folds)
    glint = 0.3 * _bump(x + 0.12 * np.sin(5 * y), -0.55, 0.1) + 0.12 * _bump(x - 0.1 * np.sin(6 * y), 0.6, 0.08)
    return _shaded(flat, shade, np.where(sealed, 0.08, glint * bulge), inside)


SHAPES: dict[str, Callable[[Product], Image.Image]] = {
    'bottle': _bottle,
    'box': _box,
    'can': _can,
    'flask': _flask,
    'jar': _jar,
    'pouch': _pouch,
    'tube': _tube,
}
