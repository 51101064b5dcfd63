"""Predict: python test.py --RESUME_MODEL ./log/NAME/best_model.pth [--SECTION_KEY VALUE ...]"""

import sys

from lib.commands.cli import cli_main, read_command

DESCRIPTION = 'Predict images with a trained model: one CSV row per image, and metrics if there are labels.'


def main() -> None:
    command = read_command(sys.argv[1:], program='test.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only after the command line is checked.
    from lib.commands.loaded_model import load_model
    from lib.commands.next_steps import after_prediction
    from lib.commands.predict import predict
    from lib.distributed.process_group import join_process_group
    from lib.report.describe import describe_prediction
    from lib.runtime.log import LOGGER

    with join_process_group() as group:
        predicted = predict(load_model(command, group))
        for line in [*predicted.lines, *describe_prediction(predicted.metrics, predicted.plain)]:
            LOGGER.info('%s', line)
        for path in predicted.files:
            LOGGER.info('wrote %s', path)
        for line in after_prediction(command.cfg, predicted):
            LOGGER.info('%s', line)


if __name__ == '__main__':
    cli_main(main)
