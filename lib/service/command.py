"""tools/serve.py: the service of a command line."""

from collections.abc import Callable
from pathlib import Path

import torch

from lib.api import Model
from lib.catalog.catalog import open_catalog
from lib.commands.command import Command
from lib.commands.index import version_of
from lib.commands.loaded_model import load_model
from lib.config.defaults import Config
from lib.errors import UserError, shown
from lib.runtime.log import LOGGER
from lib.runtime.read_file import KB, read_bytes, reason_of
from lib.service.feedback import FeedbackStore
from lib.service.interface import Served
from lib.service.page import build_page
from lib.service.server import serve
from lib.service.service import ServiceOptions
from lib.service.train_photos import TrainPhotos

_SHORTEST_TOKEN = 16  # characters


def serve_command(command: Command, read_again: Callable[[], Command]) -> None:
    """Serve the model of a command until it is stopped.

    Args:
        read_again: reads the command line again, with the checkpoint that replaces the one of `command`.

    Raises:
        UserError: a mistake in the options, the checkpoint, the token file or the folder for feedback.
    """
    cfg = command.cfg.SERVE
    assert command.checkpoint is not None
    path = command.checkpoint.path
    assert path is not None
    token = _read_token(cfg.TOKEN_FILE) if cfg.TOKEN_FILE else ''
    if not token and cfg.HOST not in ('127.0.0.1', 'localhost', '::1'):
        LOGGER.warning('SERVE.TOKEN_FILE is empty: everyone who can reach %s may use it', cfg.HOST)
    options = ServiceOptions(
        batch_size=cfg.BATCH_SIZE,
        batch_seconds=cfg.BATCH_MS / 1000,
        queue=cfg.QUEUE,
        max_bytes=round(cfg.MAX_MB * 1e6),
        seconds=cfg.SECONDS,
        token=token,
    )
    feedback = FeedbackStore(cfg.FEEDBACK) if cfg.FEEDBACK else None
    page = build_page(
        title=command.cfg.NAME,
        max_bytes=options.max_bytes,
        feedback=feedback is not None,
        num_neighbors=max(cfg.NEIGHBORS, 1),
    )
    serve(_Loader(command, read_again), path, options, host=cfg.HOST, port=cfg.PORT, page=page, feedback=feedback)


class _Loader:
    """Loads the model of the command line, as its checkpoint is now."""

    def __init__(self, command: Command, read_again: Callable[[], Command]) -> None:
        self._command: Command | None = command
        self._read_again = read_again
        self._threads = torch.get_num_threads()  # here: another thread would get the number of the batcher's threads

    def __call__(self) -> Served:
        """Return the model, ready to compute."""
        command, self._command = self._command or self._read_again(), None
        cfg: Config = command.cfg
        trained = load_model(command)
        catalog = open_catalog(Path(cfg.SERVE.INDEX), version_of(trained)) if cfg.SERVE.INDEX else None
        photos = TrainPhotos(trained, cfg.SERVE.NEIGHBORS) if cfg.SERVE.NEIGHBORS else None
        model = Model(trained, threads=self._threads)  # with the threshold that test.py has chosen, if it has
        size = model.image_size
        model.features_of_pixels(torch.zeros(cfg.SERVE.BATCH_SIZE, size, size, 3, dtype=torch.uint8))  # warms up
        return Served(model, photos, catalog)


def _read_token(path: str) -> str:
    """Return the secret in a file. Raises: UserError."""
    try:
        token = read_bytes(path, max_bytes=4 * KB).decode('ascii').strip()
    except OSError as error:
        raise UserError(f'SERVE.TOKEN_FILE {shown(path)}: {reason_of(error)}') from None
    except UnicodeDecodeError:
        token = ''
    if len(token) < _SHORTEST_TOKEN or not token.isprintable() or ' ' in token:
        raise UserError(
            f'SERVE.TOKEN_FILE {shown(path)} must contain one word of at least {_SHORTEST_TOKEN} ASCII characters: '
            'openssl rand -hex 32 > FILE'
        )
    return token
