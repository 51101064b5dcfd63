"""Re-balance a classifier: python tau_norm.py --RESUME_MODEL ./log/NAME/best_model.pth [--SECTION_KEY VALUE ...]"""

import sys

from lib.commands.cli import cli_main, read_command

DESCRIPTION = (
    'Re-balance the classifier of a trained model by tau-normalization; tau is chosen on the validation split.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tau_norm.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only after the command line is checked.
    from lib.commands.loaded_model import load_model
    from lib.commands.next_steps import after_rebalancing
    from lib.commands.tau_norm import rebalance
    from lib.distributed.process_group import join_process_group
    from lib.report.describe import describe_metrics, describe_tau
    from lib.runtime.log import LOGGER

    with join_process_group() as group:
        result = rebalance(load_model(command, group))
        for line in describe_tau(result.tau):
            LOGGER.info('%s', line)
        for line in describe_metrics({'before': result.tau['before'], 'after': result.tau['after']}):
            LOGGER.info('%s', line)
        for path in result.files:
            LOGGER.info('wrote %s', path)
        for line in after_rebalancing(command.cfg, result.files):
            LOGGER.info('%s', line)


if __name__ == '__main__':
    cli_main(main)
