"""Compare post-hoc methods on a trained model: python tools/posthoc.py --RESUME_MODEL ./log/NAME/best_model.pth

Fits methods that need no training (tau-normalization, logit adjustment, class scales, prototypes, prior shift,
temperatures) on cached features, evaluates each on images that it was not fitted on, and writes posthoc.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command

DESCRIPTION = (
    'Re-balance and calibrate a trained model with several methods on cached features; each is evaluated on images '
    'that it was not fitted on.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/posthoc.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only after the command line is checked.
    from lib.commands.loaded_model import load_model
    from lib.commands.posthoc import run_posthoc
    from lib.distributed.process_group import join_process_group
    from lib.runtime.log import LOGGER

    with join_process_group() as group:
        lines, files = run_posthoc(load_model(command, group))
        for line in [*lines, *(f'wrote {path}' for path in files)]:
            LOGGER.info('%s', line)


if __name__ == '__main__':
    cli_main(main)
