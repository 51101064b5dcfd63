"""A resolved command line: the config of a command, and the checkpoint that it names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lib.config.defaults import Config

if TYPE_CHECKING:  # torch is imported only where there is a checkpoint to read
    from lib.trainer.checkpointing.state import Checkpoint


class Command(NamedTuple):
    """A command line, resolved.

    Attributes:
        cfg: the frozen config.
        checkpoint: the one that RESUME_MODEL names, read once, the rows of a sharded classifier still on the disk; None
            if RESUME_MODEL is empty, or 'last' in a run folder without readable checkpoints.
        errors: for RESUME_MODEL last, why other checkpoints of the run folder cannot be read.
    """

    cfg: Config
    checkpoint: 'Checkpoint | None'
    errors: Sequence[str] = ()
