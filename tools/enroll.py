"""Add classes without training: python tools/enroll.py --RESUME_MODEL FILE --ENROLL_IMAGES FOLDER [--SECTION_KEY ...]

Adds a class to a trained model for each sub-folder of FOLDER, from a few images each, and reports the accuracy of old
and new classes before and after.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command
from lib.runtime.log import print_lines

DESCRIPTION = (
    'Add classes to a trained model from a few images each (weight imprinting), without training. The scale of new '
    'classifier rows is chosen on the validation split so that accuracy on the old classes falls by at most '
    'ENROLL.MAX_LOSS; metrics are cross-fitted.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/enroll.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only after the command line is checked.
    from lib.commands.enroll import enroll
    from lib.commands.loaded_model import load_model
    from lib.report.describe import describe_enrolled

    done = enroll(load_model(command))
    print_lines([*describe_enrolled(done.metrics), *(f'wrote {path}' for path in done.files)])


if __name__ == '__main__':
    cli_main(main)
