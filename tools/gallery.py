"""Write docs/methods.md from the method list, published errors and measured ones: python tools/gallery.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main
from lib.experiments.gallery import main

if __name__ == '__main__':
    cli_main(main, alone='it writes one page')
