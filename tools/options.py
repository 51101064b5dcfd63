"""Write docs/configuration.md, the reference of all options: python tools/options.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main
from lib.config.reference import reference_page

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'configuration.md'


def main() -> None:
    PAGE.write_text(reference_page(), encoding='utf-8')
    print(f'wrote {PAGE}')


if __name__ == '__main__':
    cli_main(main)
