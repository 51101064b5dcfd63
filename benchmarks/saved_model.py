"""Shared by benchmarks of prediction: a model that was saved as after training, and test.py on a list of photos."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.training import config_of
from lib.builders.model import new_model
from lib.commands.cli import read_command
from lib.commands.loaded_model import load_model
from lib.commands.predict import predict
from lib.config.yaml_text import as_text
from lib.runtime.device import pick_device
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint


def save_model(
    folder: Path, options: Sequence[str], num_classes: int, weights: Mapping[str, torch.Tensor] | None = None
) -> Checkpoint:
    """Write folder/run/best_model.pth with the initial weights of a model, and return the checkpoint.

    Args:
        options: of main.py, as on the command line.
        weights: replace those of the same names.
    """
    cfg = config_of([*options, '--LOG_ROOT', str(folder), '--NAME', 'run', '--RUN_DEVICE', 'cpu'])
    state = new_model(cfg, num_classes, pick_device('cpu')).state_dict()
    path = folder / 'run' / 'best_model.pth'
    checkpoint = Checkpoint({**state, **(weights or {})}, config=as_text(cfg), path=path)
    write_checkpoint(path, checkpoint)
    (path.parent / 'config.yaml').write_text(as_text(cfg), encoding='utf-8')
    return checkpoint


def prediction_of(model: Path, photos: Sequence[Path], *options: str) -> Callable[[], int]:
    """Return a function that does what test.py does with a list of photos, and returns their number."""
    listed = model.with_name('photos.txt')
    listed.write_text('\n'.join(map(str, photos)), encoding='utf-8')
    argv = ['--RESUME_MODEL', str(model), '--LOG_ROOT', str(model.parents[1]), '--TEST_IMAGES', str(listed)]

    def run() -> int:
        predict(load_model(read_command([*argv, '--RUN_DEVICE', 'cpu', *options])))
        return len(photos)

    return run
