"""Train: python main.py [--config FILE [FILE ...]] [--SECTION_KEY VALUE ...]"""

import sys

from lib.commands.cli import cli_main, read_command

DESCRIPTION = 'Train an image classifier. Without data of your own: python main.py --config configs/demo.yaml'


def main() -> int:
    command = read_command(sys.argv[1:], program='main.py', description=DESCRIPTION, trains=True)
    # torch is imported only after the command line is checked.
    from lib.commands.next_steps import after_training
    from lib.commands.train import prepare_training
    from lib.distributed.process_group import join_process_group
    from lib.runtime.log import LOGGER

    with join_process_group() as group, prepare_training(command, group) as run:
        # Imported here: charts take a second, and a mistake in the data ends the command before.
        from lib.commands.report import training_report

        stopped_by = run.trainer.fit()
        if stopped_by:
            LOGGER.info('stopped and saved; to resume: --RESUME_MODEL last (NAME %s)', run.cfg.NAME)
            group.barrier()  # launchers end the other ranks soon after the first one: none ends before rank 0 has saved
            return 128 + stopped_by
        report = training_report(run)
        for line in after_training(run, report):
            LOGGER.info('%s', line)
    return 0


if __name__ == '__main__':
    cli_main(main)
