"""Models side by side on the same images.

python tools/compare.py RUN RUN [RUN ...] [--output STEM] [--SECTION_KEY VALUE ...]

A RUN is a run folder (its best_model.pth counts) or a checkpoint. Each is measured on its valid split, through features
that are kept, and compared with the first image by image. Writes STEM.json and STEM.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main
from lib.config.options import Formatter, Parser

DESCRIPTION = (
    'Compare models on the same images: mean class error with an interval, the groups, calibration, and for each the '
    "difference to the first one, with an interval and McNemar's test."
)


def main() -> None:
    """Run the command line."""
    parser = Parser(
        prog='tools/compare.py',
        description=DESCRIPTION,
        epilog='Options of the scripts follow, such as --RUN_DEVICE cpu.',
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument('runs', metavar='RUN', nargs='+', help='A run folder, or a checkpoint.')
    parser.add_argument(
        '--output',
        metavar='STEM',
        type=Path,
        default=Path('log/comparison'),
        help='Where to write: STEM.json and STEM.png.\nDefault: log/comparison',
    )
    found, options = parser.parse_known_args()
    # torch is imported only now that there is work to do.
    from lib.commands.compare import compare_runs

    print('\n'.join(compare_runs(found.runs, options, found.output)))


if __name__ == '__main__':
    cli_main(main)
