"""Shared by benchmarks of training: runs like those of main.py, epochs, synthetic photos and synthetic batches."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lib.builders.preprocessing import resolve_preprocessing
from lib.commands.command import Command
from lib.commands.train import TrainingRun, prepare_training
from lib.config.defaults import Config
from lib.config.load import load_config
from lib.dataset.loader import Batch
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.formats.converted import ConvertedDataset
from lib.formats.imagefolder import convert_image_folder
from lib.formats.write import write_converted
from lib.trainer.checkpointing.state import TrainProgress
from lib.trainer.epoch import train_epoch
from lib.trainer.run_log import RunLength, RunLog
from lib.trainer.stop_signal import StopController

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'AiProducts.yaml'
# The original's recipe; the learning rate has no influence on speed. Momentum: the optimizer has state from step 1 on.
RECIPE = {
    'LOSS_TYPE': 'cross_entropy',
    'MODEL_CLASSIFIER': 'linear',
    'OPTIMIZER_LR': 0.01,
    'OPTIMIZER_MOMENTUM': 0.9,
    'OPTIMIZER_WEIGHT_DECAY': 1e-4,
    'SCHEDULE_TYPE': 'cosine',
    'RUN_MEMORY_FORMAT': 'channels_last',  # that of both sides
}


def write_photos(folder: Path, num_classes: int, each: int, size: int) -> Path:
    """Write folder/{train,validation}/CLASS/NUMBER.jpg, smooth noise of size x size pixels; return `folder`.

    There are `each` training photos per class, and one validation photo of the first class.
    """
    generator = np.random.default_rng(0)
    for label in range(num_classes):
        for number in range(each + (label == 0)):
            coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            split = 'train' if number < each else 'validation'
            path = folder / split / f'{label:05d}' / f'{number}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def converted_photos(photos: Path) -> ConvertedDataset:
    """Return the training split of a folder of write_photos()."""
    dataset = convert_image_folder(photos)
    return ConvertedDataset({'train': dataset.splits['train']}, dataset.names, None, dataset.root)


def options_of(**changes: object) -> list[str]:
    """Return RECIPE with changes as command-line options, such as ['--TRAIN_BATCH_SIZE', '32'].

    They name a config, so that a small set of photos is not fine-tuned from pretrained weights.
    """
    return ['--config', str(CONFIG)] + [
        part for name, value in {**RECIPE, **changes}.items() for part in (f'--{name}', str(value))
    ]


def config_of(options: list[str]) -> Config:
    """Return the config of main.py for these command-line options."""
    loaded = load_config(options, program='benchmark', description='', find_checkpoint_config=lambda *_: None)
    return resolve_preprocessing(loaded.cfg)


@contextmanager
def training(
    converted: ConvertedDataset, options: list[str], group: ProcessGroup = SINGLE_PROCESS
) -> Iterator[TrainingRun]:
    """Prepare a run like main.py, on converted data, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_converted(converted, Path(folder, 'data'))
        cfg = config_of([*options, '--DATASET_ROOT', f'{folder}/data', '--LOG_ROOT', folder])
        with prepare_training(Command(cfg, None), group) as run:
            yield run


def epoch_of(run: TrainingRun) -> Callable[[], int]:
    """Return a function that trains one epoch and returns its number of images."""

    def epoch() -> int:
        trainer = run.trainer
        trainer.state.progress = TrainProgress()
        train_epoch(
            trainer.step,
            trainer.loader,
            trainer.mixer,
            log_every_steps=10**9,
            stop=StopController(),
            save=lambda: None,
            on_bad_images=lambda bad: None,
            log=RunLog(RunLength(1, trainer.loader.steps_per_epoch), None),
        )
        return trainer.progress.num_images

    return epoch


class ReadyBatches:
    """A fake TrainLoader with two alternating batches of noise on the device, to time the training step alone."""

    def __init__(
        self,
        device: torch.device,
        *,
        batch_size: int,
        size: int,
        num_classes: int,
        steps: int,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self._memory_format = memory_format
        self.batch_size = self.local_batch_size = batch_size
        self.steps_per_epoch = steps
        generator = torch.Generator().manual_seed(0)
        self.pairs = [
            (
                torch.randn(batch_size, 3, size, size, generator=generator).to(device),
                torch.randint(num_classes, (batch_size,), generator=generator).to(device),
            )
            for _ in range(2)
        ]
        self._batches = [self._batch(*pair) for pair in self.pairs]

    def _batch(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        rows = torch.arange(len(labels))
        readable = torch.ones_like(labels, dtype=torch.bool)
        return Batch(images.contiguous(memory_format=self._memory_format), labels, readable, rows)

    def plain(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return an iterator over the images (in the default memory format) and labels of an epoch."""
        return (self.pairs[step % 2] for step in range(self.steps_per_epoch))

    def first_slot(self, step: int) -> int:
        """Return the first slot of a step."""
        return step * self.batch_size

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Return an iterator over the batches of an epoch, as TrainLoader does."""
        return (self._batches[step % 2] for step in range(first_step, self.steps_per_epoch))
