"""Checkpoints of a few bytes."""

from pathlib import Path

import numpy as np
import torch

from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, TrainProgress
from lib.trainer.selection import Selection

RECIPE = {'MODEL.BACKBONE': 'res32_cifar', 'OPTIMIZER.LR': 0.1, 'SEED': 0, 'TRAIN.BATCH_SIZE': 8}
SELECTION = Selection('top1', 'the same validation images', 1, 0.5, np.array([True, False]), 1, 1, 0.5)
DIGEST = 'the same images'


def small_checkpoint(*, epoch: int = 2, step: int = 0, digest: str = DIGEST, **recipe: object) -> Checkpoint:
    """Return a checkpoint of a run of three classes, at a position."""
    return Checkpoint(
        state_dict={
            'backbone.weight': torch.arange(6.0).reshape(3, 2),
            'classifier.weight': torch.ones(3, 2),
            'classifier.bias': torch.tensor([0.1, 0.2, 0.3]),
        },
        config='NAME: run\n',
        recipe=RECIPE | recipe,
        progress=TrainProgress(epoch=epoch, step=step, loss_sum=1.25, num_right=3, num_images=8),
        selection=SELECTION,
        training_set=TrainingSet(digest, np.array([120, 30, 4]), ['cola', 'tea', 'milk'], [['Drink'], ['Drink'], []]),
        optimizer={'state': {0: {'momentum_buffer': torch.ones(2)}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]},
    )


def save(path: Path, **position: object) -> Path:
    """Write such a checkpoint; best_model.pth holds only what prediction needs."""
    checkpoint = small_checkpoint(**position)
    write_checkpoint(path, checkpoint.for_prediction() if path.name == 'best_model.pth' else checkpoint)
    return path


def save_original(path: Path) -> Path:
    """Write a checkpoint like those of the original entry."""
    state = {f'module.{name}': value for name, value in small_checkpoint().state_dict.items()}
    torch.save({'state_dict': state, 'epoch': 57, 'best_result': 90.05, 'scheduler': {}, 'optimizer': {}}, path)
    return path
