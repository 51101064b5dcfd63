"""Merge a checkpoint with a sharded classifier into one file.

python tools/merge.py --RESUME_MODEL log/NAME/best_model.pth [--output FILE] [--OVERWRITE True]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main
from lib.config.defaults import KEYS
from lib.config.options import Formatter, Parser, local_path
from lib.runtime.log import print_lines

DESCRIPTION = (
    'Merge a checkpoint of a run with MODEL.CLASSIFIER_SHARDED True and the classifier files of its ranks into one '
    'ordinary checkpoint, for prediction, re-balancing, resuming or fine-tuning.'
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises: UserError."""
    parser = Parser(prog='tools/merge.py', description=DESCRIPTION, formatter_class=Formatter, allow_abbrev=False)
    parser.add_argument(
        '--RESUME_MODEL',
        metavar='FILE',
        type=local_path,
        required=True,
        help='The checkpoint; its folder head-EPOCH-STEP must be in the same folder.',
    )
    parser.add_argument(
        '--output',
        metavar='FILE',
        type=local_path,
        help='File to write.\nDefault: best_model_merged.pth for best_model.pth, in the same folder',
    )
    parser.add_argument(
        '--OVERWRITE', metavar='BOOL', default='False', help='Replace an existing FILE.\nDefault: False'
    )
    options = parser.parse_args(argv)
    options.OVERWRITE = KEYS['OVERWRITE'].accept('--OVERWRITE', options.OVERWRITE)
    return options


def main() -> None:
    """Run the command line."""
    options = parse(sys.argv[1:])
    # torch is imported only after the command line is checked.
    from lib.commands.merge import merge

    print_lines(merge(options.RESUME_MODEL, options.output, overwrite=options.OVERWRITE))


if __name__ == '__main__':
    cli_main(main, alone='it writes one model')
