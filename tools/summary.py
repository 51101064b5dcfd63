"""Show a run: python tools/summary.py [--config FILE [FILE ...]] [--NAME RUN] [--SECTION_KEY VALUE ...]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_config
from lib.runtime.log import print_lines

DESCRIPTION = 'Print the metrics of a run, its predictions and its re-balancing in one table.'


def main() -> None:
    cfg = read_config(sys.argv[1:], program='tools/summary.py', description=DESCRIPTION)
    from lib.commands.summary import summarize

    print_lines(summarize(cfg))


if __name__ == '__main__':
    cli_main(main, alone='it reads results')
