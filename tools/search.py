"""Search images by features: python tools/search.py --RESUME_MODEL ./log/NAME/best_model.pth [--SECTION_KEY VALUE ...]

Prints retrieval metrics of the validation images, and the error of nearest-neighbor classification.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command
from lib.runtime.log import print_lines

DESCRIPTION = (
    'Compare the features of validation images with those of training images: retrieval metrics (recall@k, '
    'R-precision, mAP@R), and the mean class error of k nearest neighbors and of the classifier. '
    'SEARCH.CSV lists the nearest images of each test image.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/search.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only after the command line is checked.
    from lib.commands.loaded_model import load_model
    from lib.commands.search import search
    from lib.distributed.process_group import join_process_group

    with join_process_group() as group:
        print_lines(search(load_model(command, group)))


if __name__ == '__main__':
    cli_main(main)
