"""What a run needs, before it is started: python tools/plan.py [--config FILE [FILE ...]] [--SECTION_KEY VALUE ...]

Computes memory, traffic and time of a training step on PLAN's hardware, which need not be at hand. Trains nothing and
writes nothing.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_config

DESCRIPTION = (
    'Compute what a training step needs of each device, and which way of taking it fits: the whole batch at once, the '
    'classifier in chunks, the batch in parts, the classes over the devices, a sample of the classes.'
)


def main() -> None:
    cfg = read_config(sys.argv[1:], program='tools/plan.py', description=DESCRIPTION)
    from lib.commands.plan import make_plan

    print('\n'.join(make_plan(cfg)))


if __name__ == '__main__':
    cli_main(main)
