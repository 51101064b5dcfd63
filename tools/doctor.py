"""Check images and labels of a data set: python tools/doctor.py [--config FILE [FILE ...]] [--SECTION_KEY VALUE ...]

Writes doctor.json, doctor.html and quarantine.json to DOCTOR.OUT (LOG_ROOT/NAME_doctor). No image is changed, moved or
deleted. The exit code is 0 whether or not there are findings.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_config
from lib.runtime.log import print_lines

DESCRIPTION = 'Decode every image; list unreadable, suspicious and duplicate images, leaks and contradictory labels.'


def main() -> None:
    cfg = read_config(sys.argv[1:], program='tools/doctor.py', description=DESCRIPTION, trains=True)
    from lib.commands.doctor import audit_dataset
    from lib.distributed.process_group import join_process_group

    with join_process_group() as group:
        print_lines(audit_dataset(cfg, group))


if __name__ == '__main__':
    cli_main(main)
