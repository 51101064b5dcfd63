"""New products without training: python tools/enroll.py --RESUME_MODEL FILE --ENROLL_IMAGES FOLDER [--SECTION_KEY ...]

Adds a class for each sub-folder of FOLDER to a trained model, from the few images there, and shows the accuracy of old
and new classes before and after.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command

DESCRIPTION = (
    'Add classes to a trained model from a few images each (weight imprinting), without training. The new rows are '
    'weighed against the old classes on the validation split, so that these lose at most ENROLL.MAX_LOSS; what is '
    'chosen on images is not measured on the same ones.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/enroll.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only now that there is work to do.
    from lib.commands.enroll import enroll
    from lib.commands.loaded_model import load_model
    from lib.report.describe import describe_enrolled

    done = enroll(load_model(command))
    print('\n'.join([*describe_enrolled(done.figures), *(f'wrote {path}' for path in done.files)]))


if __name__ == '__main__':
    cli_main(main)
