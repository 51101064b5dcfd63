"""Compare methods: python tools/grid.py --base demo --methods ce,ldam_drw,crt --seeds 3 [--help]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main
from lib.experiments.command import parse, run_grid

if __name__ == '__main__':
    cli_main(lambda: run_grid(parse(sys.argv[1:])), alone='it starts the runs itself (--jobs)')
