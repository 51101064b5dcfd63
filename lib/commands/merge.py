"""tools/merge.py's work: one file out of a checkpoint whose classifier was written in parts by ranks."""

from pathlib import Path

from lib.errors import UserError
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint


def merge(path: Path, output: Path | None = None, *, overwrite: bool = False) -> list[str]:
    """Write a checkpoint with all rows of its classifier in it, and return what to say of it.

    Beside the rest of the checkpoint, memory holds the rows once.

    Args:
        path: of the checkpoint; its head-EPOCH-STEP folder lies beside it.
        output: where to; None: beside `path`, with _merged in its name.
        overwrite: whether a file that is there is replaced. In any case it stays whole until the new one is.

    Raises:
        UserError: no such checkpoint, or one that is whole already; parts are missing or damaged; `output` is there.
    """
    output = output or path.with_name(f'{path.stem}_merged.pth')
    checkpoint = read_checkpoint(path, with_rows=False, option='RESUME_MODEL')
    head = checkpoint.shard_folder
    if head is None:
        raise UserError(f'RESUME_MODEL {path}: is an ordinary checkpoint already, so there is nothing to merge')
    if output.is_dir():
        raise UserError(f'--output {output}: is a folder; name a file in it')
    if output.exists() and not overwrite:
        raise UserError(
            f'{output} is there already: --OVERWRITE True replaces it, and --output FILE writes another file'
        )
    write_checkpoint(output, checkpoint.with_rows())
    return [
        f'{path}: {checkpoint.num_classes:,} classes, their rows from {head}',
        f'wrote {output} ({output.stat().st_size / 1e9:.3g} GB)',
    ]
