"""Flat artwork of product labels: brand, emblem, words, and a layout in the color of the variant."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from lib.demo.catalog import Product
from lib.demo.emblems import Color, contrast, draw_emblem, mix, rgb


@dataclass(frozen=True, slots=True)
class LabelCanvas:
    """Canvas of width x height pixels for the label of a product."""

    draw: ImageDraw.ImageDraw
    product: Product
    width: int
    height: int
    safe: float  # width for words, pixels: on a cylinder only the middle is readable
    base: Color
    ink: Color
    accent: Color

    def write(
        self, text: str, top: float, bottom: float, color: Color, *, fraction: float = 1.0, bold: float = 0.0
    ) -> None:
        """Write `text` centered between two heights (fractions), at most `fraction` of the safe width wide."""
        box = (self.safe * fraction, (bottom - top) * self.height)
        left, upper, right, lower = _font(100).getbbox(text)
        size = max(6, int(100 * min(box[0] / (right - left + 100 * bold), box[1] / (lower - upper))))
        middle = (self.width / 2, (top + bottom) / 2 * self.height)
        stroke = round(size * bold / 2)
        self.draw.text(middle, text, fill=color, font=_font(size), anchor='mm', stroke_width=stroke, stroke_fill=color)

    @property
    def unit(self) -> float:
        """Unit of length for emblems and discs, pixels; they fit tall and wide labels."""
        return min(self.safe, 0.68 * self.height)

    def emblem(self, y: float, radius: float, color: Color) -> None:
        """Draw the emblem of the variant; `y` is a fraction of the height, `radius` one of the unit."""
        kind = self.product.variant.emblem
        draw_emblem(self.draw, kind, self.width / 2, y * self.height, radius * self.unit, color)

    def strip(self, top: float, bottom: float, color: Color) -> None:
        """Fill a strip over the whole width, between two heights (fractions)."""
        self.draw.rectangle((0, top * self.height, self.width, bottom * self.height), fill=color)

    def disc(self, y: float, radius: float, color: Color) -> None:
        """Fill a centered disc; units as in `emblem`."""
        x, y, r = self.width / 2, y * self.height, radius * self.unit
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def draw_label(product: Product, width: int, height: int, safe: float) -> Image.Image:
    """Draw the flat label of `product` as an RGB image of width x height pixels."""
    family, accent = product.family, rgb(product.variant.color)
    base = rgb(family.base) if family.base else accent
    image = Image.new('RGB', (width, height), base)
    draw = ImageDraw.Draw(image)
    LAYOUTS[family.layout](LabelCanvas(draw, product, width, height, safe, base, rgb(family.ink), accent))
    return image


def _brand(canvas: LabelCanvas, top: float, bottom: float, color: Color) -> None:
    """Write the brand in bold and the product line below it."""
    edge = top + 0.66 * (bottom - top)
    canvas.write(canvas.product.family.brand.upper(), top, edge, color, bold=0.07)
    canvas.write(canvas.product.family.line, edge + 0.02, bottom, color, fraction=0.6, bold=0.02)


def _band(canvas: LabelCanvas) -> None:
    """Draw a wide band in the color of the variant, with its word."""
    canvas.strip(0, 0.035, canvas.accent)
    _brand(canvas, 0.08, 0.32, canvas.ink)
    canvas.emblem(0.49, 0.2, canvas.accent)
    canvas.strip(0.655, 0.675, mix(canvas.accent, (0, 0, 0), 0.3))
    canvas.strip(0.675, 0.85, canvas.accent)
    canvas.write(canvas.product.variant.word, 0.7, 0.825, contrast(canvas.accent), fraction=0.9, bold=0.04)
    canvas.write(canvas.product.family.size, 0.89, 0.96, canvas.ink, fraction=0.4)


def _seal(canvas: LabelCanvas) -> None:
    """Draw a round seal in the color of the variant, with the emblem."""
    for edge in (0.02, 0.93):
        canvas.strip(edge, edge + 0.03, canvas.accent)
    _brand(canvas, 0.09, 0.3, canvas.ink)
    canvas.disc(0.53, 0.325, mix(canvas.accent, (0, 0, 0), 0.35))
    canvas.disc(0.53, 0.31, canvas.accent)
    canvas.disc(0.53, 0.245, mix(canvas.accent, (255, 255, 255), 0.82))
    canvas.emblem(0.53, 0.19, canvas.accent)
    canvas.write(canvas.product.variant.word, 0.76, 0.845, canvas.ink, fraction=0.92, bold=0.04)
    canvas.write(canvas.product.family.size, 0.87, 0.91, canvas.ink, fraction=0.35)


def _split(canvas: LabelCanvas) -> None:
    """Fill the lower half with the color of the variant, below an arc."""
    width, height = canvas.width, canvas.height
    for drop, color in ((0.0, mix(canvas.accent, (255, 255, 255), 0.5)), (0.03, canvas.accent)):
        canvas.draw.ellipse((-0.4 * width, (0.5 + drop) * height, 1.4 * width, 1.6 * height), fill=color)
    _brand(canvas, 0.08, 0.32, canvas.ink)
    canvas.disc(0.53, 0.2, mix(canvas.base, (255, 255, 255), 0.9))
    canvas.emblem(0.53, 0.155, mix(canvas.accent, (0, 0, 0), 0.1))
    canvas.write(canvas.product.variant.word, 0.71, 0.83, contrast(canvas.accent), fraction=0.95, bold=0.05)
    canvas.write(canvas.product.family.size, 0.89, 0.95, contrast(canvas.accent), fraction=0.35)


def _frame(canvas: LabelCanvas) -> None:
    """Draw a frame with fine lines, and stripes in the color of the variant above and below."""
    for top in (0.0, 0.87):
        canvas.strip(top, top + 0.13, canvas.accent)
        canvas.strip(top + 0.055, top + 0.075, mix(canvas.accent, (255, 255, 255), 0.65))
    left = (canvas.width - canvas.safe) / 2
    box = (left, 0.16 * canvas.height, canvas.width - left, 0.84 * canvas.height)
    canvas.draw.rounded_rectangle(box, 0.06 * canvas.safe, outline=canvas.accent, width=round(0.018 * canvas.safe) + 2)
    canvas.write(canvas.product.family.brand.upper(), 0.2, 0.33, canvas.ink, fraction=0.86, bold=0.06)
    canvas.write(canvas.product.family.line, 0.35, 0.42, canvas.ink, fraction=0.5)
    canvas.emblem(0.545, 0.165, canvas.accent)
    canvas.write(canvas.product.variant.word, 0.69, 0.8, mix(canvas.accent, (0, 0, 0), 0.3), fraction=0.86, bold=0.05)


def _wave(canvas: LabelCanvas) -> None:
    """Draw waves in the color of the variant around the pack."""
    width, height = canvas.width, canvas.height
    for lift, tint in ((0.0, 0.55), (0.035, 0.25), (0.07, 0.0)):
        steps = range(0, width + 8, 8)
        crest = [(x, height * (0.5 + lift + 0.045 * math.sin(2 * math.pi * x / width * 1.5 + 9 * lift))) for x in steps]
        swell = [*crest, (width, height), (0, height)]
        canvas.draw.polygon(swell, fill=mix(canvas.accent, canvas.base, tint))
    _brand(canvas, 0.1, 0.38, canvas.ink)
    ink = contrast(canvas.accent)
    canvas.emblem(0.67, 0.13, mix(canvas.accent, ink, 0.75))
    canvas.write(canvas.product.variant.word, 0.785, 0.875, ink, fraction=0.85, bold=0.05)
    canvas.write(canvas.product.family.size, 0.905, 0.945, ink, fraction=0.3)


def _burst(canvas: LabelCanvas) -> None:
    """Draw rays from a bright center, and the brand on a slanted ribbon."""
    width, height = canvas.width, canvas.height
    x, y, reach = width / 2, 0.56 * height, 1.2 * (width + height)
    for i in range(18):
        first, second = math.pi * i / 9, math.pi * (i + 0.5) / 9
        corners = [(x + reach * math.cos(a), y + reach * math.sin(a)) for a in (first, second)]
        canvas.draw.polygon([(x, y), *corners], fill=mix(canvas.base, (255, 255, 255), 0.22))
    canvas.disc(0.56, 0.34, mix(canvas.base, (255, 255, 255), 0.85))
    canvas.emblem(0.56, 0.25, canvas.accent)
    ribbon = canvas.ink if canvas.base != canvas.accent else mix(canvas.accent, (0, 0, 0), 0.45)
    canvas.draw.polygon(
        [(0, 0.1 * height), (width, 0.07 * height), (width, 0.27 * height), (0, 0.3 * height)], fill=ribbon
    )
    canvas.write(canvas.product.family.brand.upper(), 0.12, 0.25, contrast(ribbon), fraction=0.88, bold=0.07)
    canvas.write(canvas.product.family.line, 0.315, 0.375, contrast(canvas.base), fraction=0.5, bold=0.03)
    canvas.strip(0.79, 0.93, mix(canvas.accent, (0, 0, 0), 0.15))
    canvas.write(canvas.product.variant.word, 0.81, 0.91, contrast(canvas.accent), fraction=0.85, bold=0.05)


LAYOUTS: dict[str, Callable[[LabelCanvas], None]] = {
    'band': _band,
    'burst': _burst,
    'frame': _frame,
    'seal': _seal,
    'split': _split,
    'wave': _wave,
}
