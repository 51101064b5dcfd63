"""Build the catalog of product search: python tools/index.py --RESUME_MODEL ./log/NAME/best_model.pth [--KEY VALUE ...]

The catalog holds the features of the training images, or of a folder of products (--INDEX_ADD FOLDER). Products are
added, replaced and removed (--INDEX_REMOVE NAMES) without building it again. tools/search.py searches it
(--SEARCH_INDEX FOLDER).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command
from lib.runtime.log import print_lines

DESCRIPTION = (
    'Build a catalog of products from the features of their photos, add photos to it, or remove products. Large '
    'catalogs are searched approximately (IVF-PQ or HNSW; pip install -r requirements-search.txt). '
    'A catalog belongs to a backbone and its preprocessing; classes may be enrolled and retired.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/index.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only after the command line is checked.
    from lib.commands.index import index
    from lib.commands.loaded_model import load_model
    from lib.distributed.process_group import join_process_group

    with join_process_group() as group:
        print_lines(index(load_model(command, group)))


if __name__ == '__main__':
    cli_main(main)
