"""Emblems for labels, such as a leaf or a sun, and colors."""

import math
from collections.abc import Callable
from functools import partial

from PIL import ImageColor, ImageDraw

Color = tuple[int, int, int]
Draw = ImageDraw.ImageDraw


def rgb(color: str) -> Color:
    """Parse a color such as '#1f9ad6'."""
    red, green, blue = ImageColor.getrgb(color)[:3]
    return red, green, blue


def mix(first: Color, second: Color, weight: float) -> Color:
    """Blend two colors; `weight` is that of the second, in [0, 1]."""
    red, green, blue = (round(a + (b - a) * weight) for a, b in zip(first, second, strict=True))
    return red, green, blue


def contrast(color: Color) -> Color:
    """Return the text color that is readable on `color`."""
    luminance = (0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]) / 255
    return (36, 32, 30) if luminance > 0.6 else (255, 255, 255)


def draw_emblem(draw: Draw, kind: str, x: float, y: float, radius: float, color: Color) -> None:
    """Draw the emblem `kind` (a key of EMBLEMS) in shades of `color`, centered at (x, y), pixels."""
    EMBLEMS[kind](draw, x, y, radius, color)


def _disc(draw: Draw, x: float, y: float, a: float, color: Color, b: float | None = None) -> None:
    b = a if b is None else b
    draw.ellipse((x - a, y - b, x + a, y + b), fill=color)


def _lens(x: float, y: float, length: float, width: float, angle: float) -> list[tuple[float, float]]:
    """Return the outline of a leaf along `angle` (radians): two arcs with common ends."""
    steps = [i / 12 for i in range(13)]
    side = [(length * (t - 0.5), width / 2 * math.sin(math.pi * t)) for t in steps]
    outline = side + [(u, -v) for u, v in reversed(side)]
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in outline]


def _leaf(draw: Draw, x: float, y: float, r: float, color: Color, angle: float = -0.8, length: float = 2.0) -> None:
    draw.polygon(_lens(x, y, length * r, 0.9 * r, angle), fill=color)
    dx, dy = 0.42 * length * r * math.cos(angle), 0.42 * length * r * math.sin(angle)
    vein = mix(color, (255, 255, 255), 0.55)
    draw.line((x - dx, y - dy, x + dx, y + dy), fill=vein, width=max(2, round(r / 12)))


def _citrus(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    _disc(draw, x, y, r, color)
    _disc(draw, x, y, 0.86 * r, (255, 250, 235))
    for i in range(8):
        pulp = mix(color, (255, 255, 255), 0.18)
        draw.pieslice((x - 0.8 * r, y - 0.8 * r, x + 0.8 * r, y + 0.8 * r), 45 * i + 4, 45 * i + 41, fill=pulp)
    _disc(draw, x, y, 0.12 * r, (255, 250, 235))


def _berry(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    for i, (u, v) in enumerate([(-0.5, -0.2), (0, -0.25), (0.5, -0.2), (-0.27, 0.2), (0.27, 0.2), (0, 0.6)]):
        _disc(draw, x + u * r, y + v * r, 0.36 * r, mix(color, (0, 0, 0), 0.08 * (i % 3)))
        _disc(draw, x + (u - 0.1) * r, y + (v - 0.1) * r, 0.1 * r, mix(color, (255, 255, 255), 0.6))
    for angle in (-2.3, -0.85):
        leaf_x, leaf_y = x + 0.4 * r * math.cos(angle), y + (-0.4 + 0.4 * math.sin(angle)) * r
        _leaf(draw, leaf_x, leaf_y, 0.45 * r, (74, 138, 52), angle)


def _cherry(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    stem = (74, 110, 42)
    for u in (-0.5, 0.45):
        draw.line((x + u * r, y + 0.3 * r, x + 0.1 * r, y - 0.9 * r), fill=stem, width=max(2, round(r / 10)))
        _disc(draw, x + u * r, y + 0.45 * r, 0.45 * r, color)
        _disc(draw, x + (u - 0.14) * r, y + 0.3 * r, 0.12 * r, mix(color, (255, 255, 255), 0.7))
    _leaf(draw, x + 0.45 * r, y - 0.75 * r, 0.4 * r, (84, 148, 60), 0.3)


def _apple(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    _disc(draw, x - 0.33 * r, y + 0.12 * r, 0.6 * r, color, 0.78 * r)
    _disc(draw, x + 0.33 * r, y + 0.12 * r, 0.6 * r, mix(color, (0, 0, 0), 0.1), 0.78 * r)
    _disc(draw, x - 0.45 * r, y - 0.2 * r, 0.14 * r, mix(color, (255, 255, 255), 0.6), 0.2 * r)
    draw.line((x, y - 0.5 * r, x + 0.1 * r, y - 0.95 * r), fill=(90, 60, 30), width=max(2, round(r / 9)))
    _leaf(draw, x + 0.42 * r, y - 0.78 * r, 0.35 * r, (84, 148, 60), -0.4)


def _olive(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    _leaf(draw, x + 0.25 * r, y - 0.55 * r, 0.5 * r, mix(color, (40, 90, 30), 0.5), -0.3, 2.4)
    _leaf(draw, x - 0.55 * r, y - 0.4 * r, 0.45 * r, mix(color, (40, 90, 30), 0.6), -2.2, 2.0)
    for u, v in ((-0.35, 0.35), (0.4, 0.4)):
        _disc(draw, x + u * r, y + v * r, 0.36 * r, color, 0.5 * r)
        _disc(draw, x + (u - 0.1) * r, y + (v - 0.15) * r, 0.09 * r, mix(color, (255, 255, 255), 0.7))


def _wave(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    for row, v in enumerate((-0.5, 0.0, 0.5)):
        line = [(x + r * (i / 16 - 1), y + r * (v + 0.2 * math.sin(i / 32 * 4 * math.pi))) for i in range(33)]
        draw.line(line, fill=mix(color, (255, 255, 255), 0.2 * row), width=max(3, round(r / 4)), joint='curve')


def _rays(draw: Draw, x: float, y: float, r: float, color: Color, count: int, inner: float) -> None:
    points = []
    for i in range(2 * count):
        reach, angle = (r if i % 2 == 0 else inner * r), math.pi * i / count - math.pi / 2
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    draw.polygon(points, fill=color)


def _sun(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    _rays(draw, x, y, r, color, 14, 0.66)
    _disc(draw, x, y, 0.56 * r, mix(color, (255, 255, 255), 0.35))
    _disc(draw, x, y, 0.46 * r, color)


def _drop(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    draw.polygon([(x, y - r), (x - 0.56 * r, y + 0.14 * r), (x + 0.56 * r, y + 0.14 * r)], fill=color)
    _disc(draw, x, y + 0.36 * r, 0.62 * r, color)
    _disc(draw, x - 0.22 * r, y + 0.3 * r, 0.14 * r, mix(color, (255, 255, 255), 0.7), 0.24 * r)


def _nut(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    for u, v in ((0.42, 0.2), (-0.3, -0.05)):
        cx, cy = x + u * r, y + v * r
        _disc(draw, cx, cy + 0.08 * r, 0.5 * r, mix(color, (255, 225, 170), 0.25), 0.66 * r)
        draw.chord((cx - 0.56 * r, cy - 0.66 * r, cx + 0.56 * r, cy + 0.3 * r), 180, 360, fill=color)
        draw.line((cx, cy - 0.2 * r, cx, cy + 0.6 * r), fill=color, width=max(2, round(r / 14)))


def _bean(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    for u, v, tilt in ((-0.32, -0.22, -1.0), (0.36, 0.3, -0.6)):
        cx, cy = x + u * r, y + v * r
        draw.polygon(_lens(cx, cy, 1.35 * r, 1.15 * r, tilt), fill=color)
        _disc(draw, cx, cy, 0.5 * r, color)
        crease = _lens(cx, cy, 1.15 * r, 0.16 * r, tilt)
        draw.polygon(crease, fill=mix(color, (0, 0, 0), 0.45))


def _wheat(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    draw.line((x, y - 0.7 * r, x, y + r), fill=color, width=max(3, round(r / 10)))
    for v in (-0.55, -0.2, 0.15, 0.5):
        for side in (-1, 1):
            ear = _lens(x + side * 0.28 * r, y + v * r, 0.62 * r, 0.32 * r, -side * 0.9)
            draw.polygon(ear, fill=color)
    draw.polygon(_lens(x, y - 0.82 * r, 0.6 * r, 0.3 * r, math.pi / 2), fill=color)


def _fish(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    draw.polygon(_lens(x - 0.15 * r, y, 1.7 * r, 1.3 * r, 0), fill=color)
    draw.polygon([(x + 0.45 * r, y), (x + r, y - 0.5 * r), (x + r, y + 0.5 * r)], fill=color)
    _disc(draw, x - 0.6 * r, y - 0.1 * r, 0.1 * r, (255, 255, 255))
    draw.arc((x - 0.7 * r, y - 0.4 * r, x - 0.1 * r, y + 0.4 * r), -60, 60, fill=(255, 255, 255), width=3)


def _paw(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    _disc(draw, x, y + 0.4 * r, 0.52 * r, color, 0.44 * r)
    for u, v in ((-0.68, -0.1), (-0.26, -0.52), (0.26, -0.52), (0.68, -0.1)):
        _disc(draw, x + u * r, y + v * r, 0.22 * r, color, 0.3 * r)


def _flower(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    for i in range(8):
        angle = math.pi * i / 4
        petal = _lens(x + 0.56 * r * math.cos(angle), y + 0.56 * r * math.sin(angle), 0.95 * r, 0.5 * r, angle)
        draw.polygon(petal, fill=mix(color, (255, 255, 255), 0.25 * (i % 2)))
    _disc(draw, x, y, 0.27 * r, mix(color, (120, 70, 10), 0.6))


def _chilli(draw: Draw, x: float, y: float, r: float, color: Color) -> None:
    top = [(x + r * (0.75 - 1.5 * t), y + r * (-0.5 + 1.1 * t**1.6)) for t in (i / 12 for i in range(13))]
    low = [(px + 0.14 * r * (1 - i / 12), py + 0.5 * r * (1 - i / 12)) for i, (px, py) in enumerate(top)]
    draw.polygon(top + low[::-1], fill=color)
    stem = (74, 120, 42)
    _disc(draw, x + 0.78 * r, y - 0.24 * r, 0.2 * r, stem, 0.3 * r)
    draw.line((x + 0.8 * r, y - 0.4 * r, x + r, y - 0.85 * r), fill=stem, width=max(3, round(r / 7)))


EMBLEMS: dict[str, Callable[..., None]] = {
    'apple': _apple,
    'bean': _bean,
    'berry': _berry,
    'cherry': _cherry,
    'chilli': _chilli,
    'citrus': _citrus,
    'drop': _drop,
    'fish': _fish,
    'flower': _flower,
    'leaf': _leaf,
    'nut': _nut,
    'olive': _olive,
    'paw': _paw,
    'star': partial(_rays, count=5, inner=0.42),
    'sun': _sun,
    'wave': _wave,
    'wheat': _wheat,
}
