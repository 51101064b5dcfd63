"""tools/merge.py: merge a checkpoint with a sharded classifier into one file."""

from pathlib import Path

from lib.errors import UserError
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint


def merge(path: Path, output: Path | None = None, *, overwrite: bool = False) -> list[str]:
    """Write a checkpoint that contains all rows of its classifier, and return the lines to print.

    Memory: the rest of the checkpoint, and the rows once.

    Args:
        path: path of the checkpoint; its folder head-EPOCH-STEP is in the same folder.
        output: file to write; None: in the folder of `path`, with _merged in its name.
        overwrite: replace an existing file, atomically.

    Raises:
        UserError: no such checkpoint, or one that is not sharded; shards are missing or damaged; `output` exists.
    """
    output = output or path.with_name(f'{path.stem}_merged.pth')
    checkpoint = read_checkpoint(path, with_rows=False, option='RESUME_MODEL')
    shard_folder = checkpoint.shard_folder
    if shard_folder is None:
        raise UserError(f'RESUME_MODEL {path}: its classifier is not sharded, so it needs no merge: use it as it is')
    if output.is_dir():
        raise UserError(f'--output {output}: is a folder; set a file name')
    if output.exists() and not overwrite:
        raise UserError(
            f'{output} exists already: set --OVERWRITE True to replace it, or --output FILE to write another file'
        )
    write_checkpoint(output, checkpoint.with_rows())
    return [
        f'{path}: {checkpoint.num_classes:,} classes, rows from {shard_folder}',
        f'wrote {output} ({output.stat().st_size / 1e9:.3g} GB)',
    ]
