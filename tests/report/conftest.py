"""Headless Chromium for the tests of reports."""

import os
import shutil
from collections.abc import Iterator

import pytest

NAMES = ('chromium', 'chromium-browser', 'google-chrome')


@pytest.fixture(scope='session')
def browser() -> Iterator:
    """Headless Chromium; `make test` installs it if possible."""
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f'no Chromium on this machine ({", ".join(NAMES)}); on Debian: apt-get install chromium')
    # Chromium's sandbox does not work for root, as in containers.
    options = ['--no-sandbox'] if hasattr(os, 'getuid') and os.getuid() == 0 else []
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=options)
        yield started
        started.close()
