"""How pages are made: from the templates in this folder, with everything escaped."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_FOLDER = Path(__file__).parent


def page_environment() -> Environment:
    """Return what renders a template; a name that it does not know is an error."""
    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def inline_script(name: str) -> tuple[Markup, str]:
    """Return a script of this folder to stand between <script> tags, and what a Content-Security-Policy calls it.

    The browser runs nothing but text with this very hash, whatever else finds its way into the page.
    """
    text = (_FOLDER / name).read_text(encoding='utf-8')  # with \n alone, as the browser reads it
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')
    return Markup(text), f"'sha256-{digest}'"
