"""Estimate memory and time of a run: python tools/plan.py [--config FILE [FILE ...]] [--SECTION_KEY VALUE ...]

Computes memory, traffic and time of a training step on the hardware described by PLAN, without having it. Trains
nothing and writes nothing.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_config
from lib.runtime.log import print_lines

DESCRIPTION = (
    'Compute the memory that a training step needs per device, and which strategy fits: the whole batch at once, a '
    'chunked classifier, micro-batches, a sharded classifier, sampled classes.'
)


def main() -> None:
    cfg = read_config(sys.argv[1:], program='tools/plan.py', description=DESCRIPTION, trains=True)
    from lib.commands.plan import make_plan

    print_lines(make_plan(cfg))


if __name__ == '__main__':
    cli_main(main, alone='it computes for hardware that it does not use (PLAN.DEVICES)')
