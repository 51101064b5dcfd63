"""The flat artwork of a label: brand, band or seal in the variant's colour, emblem, words."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from lib.demo.catalog import Product
from lib.demo.emblems import Color, contrast, draw_emblem, mix, rgb


@dataclass(frozen=True, slots=True)
class Sheet:
    """A label being drawn: its canvas (width x height pixels) and how much of the width faces the viewer."""

    draw: ImageDraw.ImageDraw
    product: Product
    width: int
    height: int
    safe: float  # width for words, pixels: on a cylinder only the middle can be read
    base: Color
    ink: Color
    accent: Color

    def write(self, text: str, top: float, bottom: float, color: Color, *, share=1.0, bold=0.0) -> None:
        """Write `text` centred between two heights (shares), no wider than `share` of the safe width."""
        room = (self.safe * share, (bottom - top) * self.height)
        left, upper, right, lower = _font(100).getbbox(text)
        size = max(6, int(100 * min(room[0] / (right - left + 100 * bold), room[1] / (lower - upper))))
        middle = (self.width / 2, (top + bottom) / 2 * self.height)
        stroke = round(size * bold / 2)
        self.draw.text(middle, text, fill=color, font=_font(size), anchor='mm', stroke_width=stroke, stroke_fill=color)

    @property
    def unit(self) -> float:
        """The size by which round things are measured: they must fit a tall label and a wide one."""
        return min(self.safe, 0.68 * self.height)

    def emblem(self, y: float, radius: float, color: Color) -> None:
        """Draw the variant's emblem; `y` is a share of the height, `radius` of the unit."""
        kind = self.product.variant.emblem
        draw_emblem(self.draw, kind, self.width / 2, y * self.height, radius * self.unit, color)

    def strip(self, top: float, bottom: float, color: Color) -> None:
        """Fill a strip over the whole width, between two heights (shares)."""
        self.draw.rectangle((0, top * self.height, self.width, bottom * self.height), fill=color)

    def disc(self, y: float, radius: float, color: Color) -> None:
        """Fill a centred disc; units as in `emblem`."""
        x, y, r = self.width / 2, y * self.height, radius * self.unit
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def draw_label(product: Product, width: int, height: int, safe: float) -> Image.Image:
    """Draw the flat label of `product` as an RGB image of width x height pixels."""
    family, accent = product.family, rgb(product.variant.color)
    base = rgb(family.base) if family.base else accent
    image = Image.new('RGB', (width, height), base)
    draw = ImageDraw.Draw(image)
    LAYOUTS[family.layout](Sheet(draw, product, width, height, safe, base, rgb(family.ink), accent))
    return image


def _brand(sheet: Sheet, top: float, bottom: float, color: Color) -> None:
    """Brand in bold, the product line small beneath it."""
    edge = top + 0.66 * (bottom - top)
    sheet.write(sheet.product.family.brand.upper(), top, edge, color, bold=0.07)
    sheet.write(sheet.product.family.line, edge + 0.02, bottom, color, share=0.6, bold=0.02)


def _band(sheet: Sheet) -> None:
    """A wide band in the variant's colour carries the word."""
    sheet.strip(0, 0.035, sheet.accent)
    _brand(sheet, 0.08, 0.32, sheet.ink)
    sheet.emblem(0.49, 0.2, sheet.accent)
    sheet.strip(0.655, 0.675, mix(sheet.accent, (0, 0, 0), 0.3))
    sheet.strip(0.675, 0.85, sheet.accent)
    sheet.write(sheet.product.variant.word, 0.7, 0.825, contrast(sheet.accent), share=0.9, bold=0.04)
    sheet.write(sheet.product.family.size, 0.89, 0.96, sheet.ink, share=0.4)


def _seal(sheet: Sheet) -> None:
    """A round seal in the variant's colour frames the emblem."""
    for edge in (0.02, 0.93):
        sheet.strip(edge, edge + 0.03, sheet.accent)
    _brand(sheet, 0.09, 0.3, sheet.ink)
    sheet.disc(0.53, 0.325, mix(sheet.accent, (0, 0, 0), 0.35))
    sheet.disc(0.53, 0.31, sheet.accent)
    sheet.disc(0.53, 0.245, mix(sheet.accent, (255, 255, 255), 0.82))
    sheet.emblem(0.53, 0.19, sheet.accent)
    sheet.write(sheet.product.variant.word, 0.76, 0.845, sheet.ink, share=0.92, bold=0.04)
    sheet.write(sheet.product.family.size, 0.87, 0.91, sheet.ink, share=0.35)


def _split(sheet: Sheet) -> None:
    """The lower half in the variant's colour, under an arc."""
    width, height = sheet.width, sheet.height
    for drop, color in ((0.0, mix(sheet.accent, (255, 255, 255), 0.5)), (0.03, sheet.accent)):
        sheet.draw.ellipse((-0.4 * width, (0.5 + drop) * height, 1.4 * width, 1.6 * height), fill=color)
    _brand(sheet, 0.08, 0.32, sheet.ink)
    sheet.disc(0.53, 0.2, mix(sheet.base, (255, 255, 255), 0.9))
    sheet.emblem(0.53, 0.155, mix(sheet.accent, (0, 0, 0), 0.1))
    sheet.write(sheet.product.variant.word, 0.71, 0.83, contrast(sheet.accent), share=0.95, bold=0.05)
    sheet.write(sheet.product.family.size, 0.89, 0.95, contrast(sheet.accent), share=0.35)


def _frame(sheet: Sheet) -> None:
    """A framed panel with fine lines, stripes in the variant's colour above and below."""
    for top in (0.0, 0.87):
        sheet.strip(top, top + 0.13, sheet.accent)
        sheet.strip(top + 0.055, top + 0.075, mix(sheet.accent, (255, 255, 255), 0.65))
    left = (sheet.width - sheet.safe) / 2
    box = (left, 0.16 * sheet.height, sheet.width - left, 0.84 * sheet.height)
    sheet.draw.rounded_rectangle(box, 0.06 * sheet.safe, outline=sheet.accent, width=round(0.018 * sheet.safe) + 2)
    sheet.write(sheet.product.family.brand.upper(), 0.2, 0.33, sheet.ink, share=0.86, bold=0.06)
    sheet.write(sheet.product.family.line, 0.35, 0.42, sheet.ink, share=0.5)
    sheet.emblem(0.545, 0.165, sheet.accent)
    sheet.write(sheet.product.variant.word, 0.69, 0.8, mix(sheet.accent, (0, 0, 0), 0.3), share=0.86, bold=0.05)


def _wave(sheet: Sheet) -> None:
    """Swells in the variant's colour run round the pack."""
    width, height = sheet.width, sheet.height
    for lift, tint in ((0.0, 0.55), (0.035, 0.25), (0.07, 0.0)):
        steps = range(0, width + 8, 8)
        crest = [(x, height * (0.5 + lift + 0.045 * math.sin(2 * math.pi * x / width * 1.5 + 9 * lift))) for x in steps]
        swell = [*crest, (width, height), (0, height)]
        sheet.draw.polygon(swell, fill=mix(sheet.accent, sheet.base, tint))
    _brand(sheet, 0.1, 0.38, sheet.ink)
    ink = contrast(sheet.accent)
    sheet.emblem(0.67, 0.13, mix(sheet.accent, ink, 0.75))
    sheet.write(sheet.product.variant.word, 0.785, 0.875, ink, share=0.85, bold=0.05)
    sheet.write(sheet.product.family.size, 0.905, 0.945, ink, share=0.3)


def _burst(sheet: Sheet) -> None:
    """Rays from a bright centre, the brand on a slanted ribbon."""
    width, height = sheet.width, sheet.height
    x, y, reach = width / 2, 0.56 * height, 1.2 * (width + height)
    for i in range(18):
        first, second = math.pi * i / 9, math.pi * (i + 0.5) / 9
        corners = [(x + reach * math.cos(a), y + reach * math.sin(a)) for a in (first, second)]
        sheet.draw.polygon([(x, y), *corners], fill=mix(sheet.base, (255, 255, 255), 0.22))
    sheet.disc(0.56, 0.34, mix(sheet.base, (255, 255, 255), 0.85))
    sheet.emblem(0.56, 0.25, sheet.accent)
    ribbon = sheet.ink if sheet.base != sheet.accent else mix(sheet.accent, (0, 0, 0), 0.45)
    sheet.draw.polygon(
        [(0, 0.1 * height), (width, 0.07 * height), (width, 0.27 * height), (0, 0.3 * height)], fill=ribbon
    )
    sheet.write(sheet.product.family.brand.upper(), 0.12, 0.25, contrast(ribbon), share=0.88, bold=0.07)
    sheet.write(sheet.product.family.line, 0.315, 0.375, contrast(sheet.base), share=0.5, bold=0.03)
    sheet.strip(0.79, 0.93, mix(sheet.accent, (0, 0, 0), 0.15))
    sheet.write(sheet.product.variant.word, 0.81, 0.91, contrast(sheet.accent), share=0.85, bold=0.05)


LAYOUTS: dict[str, Callable[[Sheet], None]] = {
    'band': _band,
    'burst': _burst,
    'frame': _frame,
    'seal': _seal,
    'split': _split,
    'wave': _wave,
}
