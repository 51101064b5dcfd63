"""Write the report of a trained model anew: python tools/report.py --RESUME_MODEL log/NAME/best_model.pth [...]

Measures it on its valid split, through features that are kept. --REPORT_JSON True writes the figures for programs too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command

DESCRIPTION = 'Measure a trained model on its valid split and write report.html beside it.'


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/report.py', description=DESCRIPTION, needs_model=True)
    from lib.commands.loaded_model import load_model
    from lib.commands.report import trained_report
    from lib.runtime.log import LOGGER

    LOGGER.info('report: %s', trained_report(load_model(command)))


if __name__ == '__main__':
    cli_main(main)
