"""Find the checkpoints of a run folder, and the latest of them."""

from contextlib import suppress
from pathlib import Path

from lib.errors import UserError
from lib.runtime.uploads import refresh
from lib.trainer.checkpointing.io import load_content, read_checkpoint
from lib.trainer.checkpointing.sharded import check_shards
from lib.trainer.checkpointing.state import Checkpoint


def latest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the latest readable checkpoint of a run folder (None: there is none) and why others cannot be read.

    One that cannot be resumed, such as best_model.pth, is returned if there is no other. The rows of a sharded
    classifier stay on the disk.
    """
    errors: list[str] = []
    latest, latest_position = None, (False, -1, -1)
    for path in sorted(checkpoints_in(folder), key=lambda path: path.name != 'last.pth'):
        try:
            checkpoint = read_checkpoint(path, with_rows=False)
            if checkpoint.shard_folder is not None:
                check_shards(checkpoint.shard_folder)
        except UserError as error:
            errors.append(str(error))
            continue
        if path.name == 'last.pth':
            return checkpoint, errors
        # The modification times of a copied folder mean nothing, so the positions in the checkpoints count.
        position = (checkpoint.is_resumable, *(checkpoint.progress.position if checkpoint.progress else (-1, 0)))
        if position > latest_position:
            latest, latest_position = checkpoint, position
    return latest, errors


def position_of(path: Path) -> tuple[int, int] | None:
    """Return epoch and step of a checkpoint; None: there is none that can be read."""
    try:
        progress = read_checkpoint(path, with_rows=False, mmap=True).progress if path.exists() else None
    except UserError:
        return None
    return progress.position if progress else None


def find_epoch(checkpoint: Checkpoint, epoch: int) -> Checkpoint | None:
    """Return a checkpoint of the end of an epoch: `checkpoint`, or one beside it; None: there is none."""
    if checkpoint.progress is not None and checkpoint.progress.position == (epoch, 0):
        return checkpoint
    folder = checkpoint.path.parent if checkpoint.path else None
    for path in (folder / 'best_model.pth', folder / f'epoch_{epoch}.pth') if folder else ():
        if position_of(path) == (epoch, 0):
            with suppress(UserError):  # damaged
                return read_checkpoint(path, with_rows=False)
    return None


def shard_folder_of(path: Path) -> Path | None:
    """Return the folder of a checkpoint's classifier rows without reading its tensors.

    None: its classifier is not sharded, or the file is no checkpoint of this project.
    """
    try:
        name = load_content(path, mmap=True)['head']
    except Exception:  # damaged files raise errors of any type; those of the original entry are among them
        return None
    return path.parent / Path(name).name if isinstance(name, str) else None


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run folder; from a bucket, the folder is brought up to date first."""
    refresh(folder)
    return [path for path in sorted(folder.glob('*.pth')) if not path.name.startswith('.')]
