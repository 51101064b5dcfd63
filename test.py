"""Predict: python test.py --RESUME_MODEL ./log/NAME/best_model.pth [--SECTION_KEY VALUE ...]"""

import sys

from lib.commands.cli import start
from lib.commands.cli_main import run_script

DESCRIPTION = 'Predict a test split with a trained model: one CSV row an image, metrics where there are labels.'


def main() -> None:
    cfg = start(sys.argv[1:], program='test.py', description=DESCRIPTION, needs_checkpoint=True)
    # torch is imported only now that there is work to do.
    from lib.commands.loaded_model import load_trained
    from lib.commands.predict import predict
    from lib.distributed.process_group import joined_ranks
    from lib.report.describe import describe_prediction
    from lib.runtime.log import LOGGER

    with joined_ranks() as ranks:
        predicted = predict(load_trained(cfg, ranks))
        for line in [*predicted.lines, *describe_prediction(predicted.metrics, predicted.plain)]:
            LOGGER.info('%s', line)
        for path in predicted.files:
            LOGGER.info('wrote %s', path)


if __name__ == '__main__':
    run_script(main)
