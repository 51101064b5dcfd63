"""Train: python main.py [--config FILE [FILE ...]] [--SECTION_KEY VALUE ...]"""

import sys

from lib.commands.cli import cli_main, read_config

DESCRIPTION = 'Train a product recogniser. `python main.py --config configs/demo.yaml` runs at once.'


def main() -> int:
    cfg = read_config(sys.argv[1:], program='main.py', description=DESCRIPTION)
    # torch is imported only now that there is work to do.
    from lib.commands.report import training_report
    from lib.commands.train import prepared_training
    from lib.distributed.process_group import join_process_group
    from lib.runtime.log import LOGGER
    from lib.trainer.trainer import fit

    with join_process_group() as group, prepared_training(cfg, group) as run:
        ended_by = fit(run.learner, run.plan, run.progress, run.folder, run.validate, run.bad_images)
        if ended_by:
            LOGGER.info('stopped and saved; to go on: add --RESUME_MODEL last (NAME %s)', run.cfg.NAME)
            return 128 + ended_by
        report = training_report(run)
        LOGGER.info('best model: %s', run.folder.path / 'best_model.pth')
        LOGGER.info('report:     %s', report)
    return 0


if __name__ == '__main__':
    cli_main(main)
