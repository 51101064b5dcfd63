"""The last points without training again: python tools/posthoc.py --RESUME_MODEL ./log/NAME/best_model.pth

Fits what needs no training (tau-normalisation, logit adjustment, scales of classes, prototypes, class shares,
temperatures) on kept features, measures each on images that it was not fitted on, and writes posthoc.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command

DESCRIPTION = (
    'Re-balance and calibrate a trained model in several ways, on features that are looked at once; each is measured '
    'on images that it was not fitted on.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/posthoc.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only now that there is work to do.
    from lib.commands.loaded_model import load_model
    from lib.commands.posthoc import run_posthoc
    from lib.runtime.log import LOGGER

    lines, files = run_posthoc(load_model(command))
    for line in [*lines, *(f'wrote {path}' for path in files)]:
        LOGGER.info('%s', line)


if __name__ == '__main__':
    cli_main(main)
