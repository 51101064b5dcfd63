"""Write docs/configuration.md, the reference of all options: python tools/options.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main
from lib.config.reference import reference_page
from lib.runtime.files import write_text

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'configuration.md'


def main() -> None:
    write_text(PAGE, reference_page())
    print(f'wrote {PAGE}')


if __name__ == '__main__':
    cli_main(main, alone='it writes one page')
