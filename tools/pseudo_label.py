"""Turn confident predictions on unlabeled photos into training images:
python tools/pseudo_label.py --RESUME_MODEL ./log/NAME/best_model.pth --PSEUDO_IMAGES FOLDER"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command

DESCRIPTION = (
    'Write a training JSON with the confident predictions on unlabeled photos as labels, each with the weight of its '
    'calibrated probability. The threshold is chosen on the validation split so that at most PSEUDO.ERROR of the '
    'accepted predictions are wrong.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/pseudo_label.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only after the command line is checked.
    from lib.commands.loaded_model import load_model
    from lib.commands.pseudo_label import pseudo_label
    from lib.distributed.process_group import join_process_group
    from lib.runtime.log import LOGGER

    with join_process_group() as group:
        for line in pseudo_label(load_model(command, group)):
            LOGGER.info('%s', line)


if __name__ == '__main__':
    cli_main(main)
