"""The checkpoints of a run folder, and the newest of them."""

from pathlib import Path

import torch

from lib.errors import UserError
from lib.trainer.checkpointing.sharded import read_rows
from lib.trainer.checkpointing.state import Checkpoint, read_checkpoint


def latest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the furthest readable checkpoint of a run folder (None if there is none), and what could not be read.

    The classifier's rows are left where they are, if ranks have written them apart.
    """
    faults: list[str] = []
    furthest, reached = None, (-1, -1)
    for path in sorted(checkpoints_in(folder), key=lambda path: path.name != 'last.pth'):
        try:
            checkpoint = read_checkpoint(path, with_rows=False)
            if checkpoint.head_folder is not None:
                read_rows(checkpoint.head_folder, range(0))  # whether they are all there
        except UserError as error:
            faults.append(str(error))
            continue
        if path.name == 'last.pth':
            return checkpoint, faults
        # Times of files say nothing once a folder was copied, so the checkpoints themselves are asked.
        place = checkpoint.progress.position if checkpoint.progress else (-1, 0)
        if place > reached:
            furthest, reached = checkpoint, place
    return furthest, faults


def head_folder_of(path: Path) -> Path | None:
    """Return the folder of a checkpoint's rows, without reading its tensors; None: it has none, or is no checkpoint."""
    try:
        head = torch.load(path, map_location='cpu', weights_only=True, mmap=True)['head']
    except Exception:  # as when it is read, in every way there is; the original entry's files are among them
        return None
    return None if head is None else path.parent / Path(head).name


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run folder."""
    return [path for path in sorted(folder.glob('*.pth')) if not path.name.startswith('.')]
