"""Pack a data set: python tools/pack.py [--config FILE [FILE ...]] --PACK_OUT FOLDER [--SECTION_KEY VALUE ...]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_config
from lib.runtime.log import print_lines

DESCRIPTION = (
    'Write the images of DATASET to a few large tar files (WebDataset shards) with an index, for --DATASET_SHARDS. '
    'After an interruption, the same command resumes.'
)


def main() -> None:
    cfg = read_config(sys.argv[1:], program='tools/pack.py', description=DESCRIPTION, trains=True)
    from lib.commands.pack import next_command, pack
    from lib.distributed.process_group import join_process_group

    with join_process_group() as group:
        print_lines(pack(cfg, group))
        print_lines(['', 'Train on the shards:', f'  {next_command(sys.argv[1:], cfg.PACK.OUT)}'])


if __name__ == '__main__':
    cli_main(main)
