"""Add classes without training: python tools/enroll.py --RESUME_MODEL FILE --ENROLL_IMAGES FOLDER [--SECTION_KEY ...]

Each sub-folder of FOLDER becomes a class of the trained model, from a few images, or has further images of a class that
it knows. --ENROLL_RETIRE NAMES removes classes. Reports the accuracy of old and new classes before and after.
--ENROLL_PROPOSE FOLDER clusters photos of unknown products into proposals for new classes, and writes a page on which
they are named; its decisions.json is taken by --ENROLL_IMAGES.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command
from lib.runtime.log import print_lines

DESCRIPTION = (
    'Add classes to a trained model from a few images each (weight imprinting), add images to known classes, or remove '
    'classes, without training. The scale of new classifier rows is chosen on the validation split so that accuracy on '
    'the old classes falls by at most ENROLL.MAX_LOSS; metrics are cross-fitted. Photos of unknown products are '
    'clustered into proposals for new classes.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/enroll.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only after the command line is checked.
    from lib.commands.enroll import enroll, propose_classes
    from lib.commands.loaded_model import load_model
    from lib.distributed.process_group import join_process_group
    from lib.report.describe import describe_enrolled

    with join_process_group() as group:
        trained = load_model(command, group)
        if command.cfg.ENROLL.PROPOSE:
            print_lines(propose_classes(trained))
            return
        done = enroll(trained)
        print_lines([*describe_enrolled(done.metrics), *(f'wrote {path}' for path in done.files), *done.lines])


if __name__ == '__main__':
    cli_main(main)
