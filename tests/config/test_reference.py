"""docs/configuration.md is the page that the keys give."""

from pathlib import Path

from lib.config.defaults import KEYS
from lib.config.options import option_of
from lib.config.reference import reference_page

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'configuration.md'


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding='utf-8') == reference_page(), 'the options changed: run python tools/options.py'


def test_every_option_has_one_row():
    rows = [line.split(' | ')[0].strip('| `') for line in reference_page().splitlines() if line.startswith('| `--')]
    assert rows == [option_of(name) for name in KEYS]


def test_tables_have_four_columns():
    for line in reference_page().splitlines():
        if line.startswith('|'):
            assert line.replace('\\|', '').count('|') == 5, line
