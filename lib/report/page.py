"""HTML pages from the templates in this folder, escaped by default, and the number formats that they use."""

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_FOLDER = Path(__file__).parent
# CSS variable of the page -> color on white. The colors differ in lightness and in hue, for color-blind readers.
PALETTE = {
    'card': '#ffffff',
    'ink': '#1d2733',
    'muted': '#6b7684',
    'line': '#dfe4ea',
    'valid': '#0067a5',
    'top1': '#b8508f',
    'train': '#8b95a1',
    'many': '#00806a',
    'medium': '#c48f00',
    'few': '#c8440b',
}


def page_environment(*folders: Path) -> Environment:
    """Return the Jinja environment of the pages: it escapes everything, and an undefined name is an error.

    Args:
        folders: further ones with templates.
    """
    return Environment(
        loader=FileSystemLoader([_FOLDER, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def inline_script(*names: str | Path) -> tuple[Markup, str]:
    """Return the text of scripts for one <script> tag, and its hash for the Content-Security-Policy.

    Names are those of files in this folder, or full paths. The browser runs no other script than one with this hash.
    """
    text = ''.join(
        (_FOLDER / name).read_text(encoding='utf-8') for name in names
    )  # with \n line ends, as the browser hashes it
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')
    return Markup(text), f"'sha256-{digest}'"


def percent(value: float | None) -> str:
    """Format a fraction as a percentage with one decimal; None and non-finite numbers as a dash."""
    return f'{100 * value:.1f}\u202f%' if value is not None and math.isfinite(value) else '–'


def between(ends: Sequence[float]) -> str:
    """Format an interval of fractions in percent, with one decimal."""
    return f'{100 * ends[0]:.1f}–{100 * ends[1]:.1f}\u202f%'


def points(difference: float) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    text = f'{100 * difference:+.1f}'
    return '0.0' if text[1:] == '0.0' else text.replace('-', '−')


def thousands(value: float) -> str:
    """Format a count with thin spaces between thousands."""
    return f'{value:,.0f}'.replace(',', '\u202f')
