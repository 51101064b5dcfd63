"""Find wrong labels: python tools/clean.py --DATASET_ROOT my_photos, or --RESUME_MODEL ./log/NAME/best_model.pth

Writes suspects.csv, clean.json and the review page clean.html; with CLEAN.APPLY, decisions.json as well. No image and
no annotation is changed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command

DESCRIPTION = (
    'Find training images whose label is probably wrong, each judged by a classifier that was not fitted to it, on the '
    'features of a trained model (RESUME_MODEL) or of pretrained weights; write a list and a page to review them.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/clean.py', description=DESCRIPTION, trains=True)
    # torch is imported only after the command line is checked.
    from lib.commands.clean import clean_labels
    from lib.distributed.process_group import join_process_group
    from lib.runtime.log import LOGGER

    with join_process_group() as group:
        for line in clean_labels(command, group):
            LOGGER.info('%s', line)


if __name__ == '__main__':
    cli_main(main)
