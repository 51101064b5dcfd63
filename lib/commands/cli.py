"""What every script does first: read the command line, and say what came of it. Imports nothing heavy."""

from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from lib.config.load import Loaded, load_config
from lib.distributed.rank_info import place
from lib.errors import UserError
from lib.runtime.log import LOGGER, start_console


def start(argv: Sequence[str], *, program: str, description: str, needs_checkpoint: bool = False) -> CfgNode:
    """Return the frozen config.

    Raises:
        UserError: a mistake in options or files; no RESUME_MODEL although the script needs one.
    """
    loaded = read_options(argv, program=program, description=description)
    if needs_checkpoint and not loaded.cfg.RESUME_MODEL:
        raise UserError(
            f'{program} needs a trained model: --RESUME_MODEL ./log/NAME/best_model.pth, '
            "or --RESUME_MODEL last with the run's --NAME; python main.py trains one"
        )
    start_console(speaks=place().rank == 0)
    for note in loaded.notes:
        LOGGER.info('%s', note)
    return loaded.cfg


def read_options(argv: Sequence[str], *, program: str = '', description: str = '') -> Loaded:
    """Return the frozen config of a command line, that of the checkpoint it names worked in, and what to say of it."""
    return load_config(argv, program=program, description=description, find_checkpoint_config=_checkpoint_config)


def _checkpoint_config(resume_model: str, folder: Path) -> str | None:
    from lib.trainer.checkpointing.latest import newest_checkpoint
    from lib.trainer.checkpointing.state import read_checkpoint

    if resume_model == 'last':
        checkpoint, _ = newest_checkpoint(folder)
        return checkpoint and checkpoint.config
    return read_checkpoint(resume_model, with_rows=False).config
