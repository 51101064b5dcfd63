"""The page of the service: one file without external resources, and the headers that let it run nothing else."""

import base64
import hashlib
import re
from pathlib import Path

from lib.report.page import PALETTE, inline_script, page_environment

_FOLDER = Path(__file__).parent


def build_page(*, title: str, max_bytes: int, feedback: bool, num_neighbors: int = 3) -> tuple[bytes, dict[str, str]]:
    """Return the page as HTML, and its HTTP headers.

    Args:
        title: name of the model.
        max_bytes: size of the largest photo that the service accepts; the page reduces larger ones.
        feedback: whether answers can be confirmed and corrected.
        num_neighbors: training photos of each answer.
    """
    template = page_environment(_FOLDER).get_template('photo_page.html')
    script, script_hash = inline_script('page.js', _FOLDER / 'photo_page.js')
    html = template.render(
        title=title,
        max_bytes=max_bytes,
        feedback=feedback,
        num_neighbors=num_neighbors,
        palette=PALETTE,
        script=script,
    )
    policy = {
        'default-src': "'none'",
        'script-src': script_hash,
        'style-src': _style_hash(html),
        'img-src': 'blob:',
        'connect-src': "'self'",
        'base-uri': "'none'",
        'form-action': "'none'",
        'frame-ancestors': "'none'",
    }
    headers = {
        'Content-Security-Policy': '; '.join(f'{name} {value}' for name, value in policy.items()),
        'Cache-Control': 'no-cache',
        'Cross-Origin-Opener-Policy': 'same-origin',
        'Permissions-Policy': 'camera=(), microphone=(), geolocation=()',
        'Referrer-Policy': 'no-referrer',
        'X-Content-Type-Options': 'nosniff',
    }
    return html.encode(), headers


def _style_hash(html: str) -> str:
    found = re.search('<style>(.*?)</style>', html, re.DOTALL)
    assert found is not None
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
