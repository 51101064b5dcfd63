"""Write the report of a trained model: python tools/report.py --RESUME_MODEL log/NAME/best_model.pth [...]

Evaluates it on its validation split, with cached features. --REPORT_JSON True also writes the metrics as JSON.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command

DESCRIPTION = 'Evaluate a trained model on its validation split and write report.html to its folder.'


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/report.py', description=DESCRIPTION, needs_model=True)
    from lib.commands.loaded_model import load_model
    from lib.commands.report import trained_report
    from lib.distributed.process_group import join_process_group
    from lib.runtime.log import LOGGER

    with join_process_group() as group:
        LOGGER.info('report: %s', trained_report(load_model(command, group)))


if __name__ == '__main__':
    cli_main(main)
