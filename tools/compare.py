"""Compare models on the same images.

python tools/compare.py RUN RUN [RUN ...] [--output STEM] [--SECTION_KEY VALUE ...]

A RUN is a run folder (its best_model.pth is used) or a checkpoint. Each is evaluated on its validation split, with
cached features, and compared with the first one image by image. Writes STEM.json and STEM.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main
from lib.config.options import Formatter, Parser, local_path
from lib.runtime.log import print_lines

DESCRIPTION = (
    'Compare models on the same images: mean class error with a confidence interval, errors of many, medium and few, '
    "calibration, and the difference from the first model with an interval and McNemar's test."
)


def main() -> None:
    """Run the command line."""
    parser = Parser(
        prog='tools/compare.py',
        description=DESCRIPTION,
        epilog='Options of test.py may follow, such as --RUN_DEVICE cpu.',
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument('runs', metavar='RUN', nargs='+', type=local_path, help='A run folder or a checkpoint.')
    parser.add_argument(
        '--output',
        metavar='STEM',
        type=local_path,
        default=Path('log/comparison'),
        help='Write STEM.json and STEM.png.\nDefault: log/comparison',
    )
    found, options = parser.parse_known_args()
    # torch is imported only after the command line is checked.
    from lib.commands.compare import compare_runs
    from lib.distributed.process_group import join_process_group

    with join_process_group() as group:
        print_lines(compare_runs(found.runs, options, found.output, group))


if __name__ == '__main__':
    cli_main(main)
