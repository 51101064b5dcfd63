"""Checkpoints: plain tensors, numbers and text, so that reading one never runs code."""

import os
import pickle
import platform
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from lib.errors import UserError
from lib.trainer.checkpointing.io import exported_metadata, read_exported, write_torch
from lib.trainer.checkpointing.sharded import PREFIX, HeadRows, num_classes_of, put_rows, read_rows

# The original's files may hold its accuracy as a NumPy scalar. These names build a number and nothing else.
_NUMPY_SCALARS = [
    (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
    (np._core.multiarray.scalar, 'numpy._core.multiarray.scalar'),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]


@dataclass
class TrainProgress:
    """How far a run has come.

    Attributes:
        epoch: finished epochs.
        step: steps done in the epoch under way; all of them when it is still to be validated.
        loss_sum, num_right, num_images, seconds: running sums over those steps.
        best_result: best value so far of TRAIN.SELECT_BY, None before the first validation.
        best_epoch: finished epochs when it was reached.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_right: int = 0
    num_images: int = 0
    seconds: float = 0.0
    best_result: float | None = None
    best_epoch: int = 0

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step: of two places in a run, the larger one is further on."""
        return self.epoch, self.step

    def next_epoch(self) -> None:
        """Begin the epoch after this one."""
        self.epoch += 1
        self.step, self.loss_sum, self.num_right, self.num_images, self.seconds = 0, 0.0, 0, 0, 0.0


@dataclass
class TrainingSet:
    """What a checkpoint remembers of the images it was trained on.

    Attributes:
        digest: of paths and labels: two sets are the same when their digests are.
        class_counts: (num_classes,) int64 images a class in the original training set, before any cap.
        class_names, class_parents: as in classes.json; empty when unknown.
    """

    digest: str
    class_counts: np.ndarray
    class_names: list[str] = field(default_factory=list)
    class_parents: list[list[str]] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_counts)


@dataclass
class Checkpoint:
    """Everything that training goes on from and prediction needs.

    Attributes:
        state_dict: parameters and buffers by name (`backbone.*`, `classifier.*`), without any `module.` prefix: those
            that predict, so of a run that averages its weights the average.
        config: the run's config as YAML; '' in checkpoints of the original entry.
        recipe: the config's keys that decide the weights, for telling whether another run has the same.
        progress, training_set: None in checkpoints of the original entry.
        optimizer: its state, None where there is none to go on from.
        training_state: where the average predicts, the weights that are trained; else None.
        scaler: state of the loss's scaler, None where there is none.
        history: the objects of metrics.jsonl; None in older checkpoints.
        bad_images: images that could not be decoded, {split: {name: reason}}; None in older checkpoints.
        rng, versions: state of torch's generator and versions(), both of when it was made; None: of when it is written.
        head: the rows of the classifier that this rank holds, taken out of the others: they are written apart.
        head_folder: where the rows of all ranks lie, when they were not put back yet.
        path: where it was read from.
    """

    state_dict: dict[str, torch.Tensor]
    config: str = ''
    recipe: dict[str, Any] = field(default_factory=dict)
    progress: TrainProgress | None = None
    training_set: TrainingSet | None = None
    optimizer: dict[str, Any] | None = None
    training_state: dict[str, torch.Tensor] | None = None
    scaler: dict[str, Any] | None = None
    history: list[dict[str, Any]] | None = None
    bad_images: dict[str, dict[str, str]] | None = None
    rng: torch.Tensor | None = None
    versions: dict[str, str] | None = None
    head: HeadRows | None = None
    head_folder: Path | None = None
    path: Path | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, by the classifier's weight."""
        if self.head is not None:
            return self.head.num_classes
        return num_classes_of(self.head_folder) if self.head_folder else self.state_dict['classifier.weight'].shape[0]

    def with_rows(self, classes: range | None = None) -> 'Checkpoint':
        """Return it with the classifier's rows of `classes` (None: all), whether or not ranks have written them apart.

        The optimiser's state of a classifier that was written whole stays whole.

        Raises:
            UserError: they cannot be read.
        """
        if self.head_folder is None:
            return (
                self
                if classes is None
                else replace(
                    self,
                    state_dict=_rows_of(self.state_dict, classes),
                    training_state=_rows_of(self.training_state, classes),
                )
            )
        put = put_rows(self.state_dict, self.training_state, self.optimizer, read_rows(self.head_folder, classes))
        state, training, optimizer = put
        return replace(self, state_dict=state, training_state=training, optimizer=optimizer, head_folder=None)


def write_checkpoint(path: Path, checkpoint: Checkpoint, abandoned: Callable[[], bool] = lambda: False) -> None:
    """Write a checkpoint atomically; the file keeps the keys that the original entry's files have.

    `abandoned`: asked every few megabytes; once it says yes, the rest is not written.

    Raises:
        OSError: for example no space left; a file that was at `path` is then still the old one.
    """
    write_torch(path, _as_content(checkpoint), abandoned)


def header_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what a safetensors file of the checkpoint's state_dict says in its header, for read_checkpoint."""
    return exported_metadata(_as_content(checkpoint))


def _as_content(checkpoint: Checkpoint) -> dict[str, Any]:
    place, training_set = checkpoint.progress or TrainProgress(), checkpoint.training_set
    return {
        'state_dict': checkpoint.state_dict,
        'training_state_dict': checkpoint.training_state,
        'optimizer': checkpoint.optimizer,
        'scaler': checkpoint.scaler,
        'scheduler': {'epoch': place.epoch, 'step': place.step},
        'epoch': place.epoch,
        'best_result': place.best_result,
        'place': asdict(place),
        'history': checkpoint.history,
        'bad_images': checkpoint.bad_images,
        'config': checkpoint.config,
        'recipe': checkpoint.recipe,
        'num_classes': checkpoint.num_classes,
        **(_training_set_as_content(training_set) if training_set else {}),
        'rng': {'torch': torch.get_rng_state() if checkpoint.rng is None else checkpoint.rng},
        'versions': checkpoint.versions or versions(),
        'head': None if checkpoint.head is None else head_name(place),
    }


def head_name(place: TrainProgress) -> str:
    """Return the folder, beside the checkpoint, of the classifier's rows at a place."""
    return f'head-{place.epoch}-{place.step}'


def read_checkpoint(path: str | Path, *, with_rows: bool = True) -> Checkpoint:
    """Read a checkpoint, this project's or the original entry's (`module.` prefix, no config).

    Args:
        with_rows: False: where ranks have written their rows of the classifier apart, leave them there for now.

    Raises:
        UserError: no such file, cut short, no checkpoint, or one that would have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        others = ', '.join(sorted(str(other) for other in path.parent.glob('*.pth'))[:5])
        raise UserError(f'RESUME_MODEL {path}: no such file' + (f'; there are {others}' if others else ''))
    try:
        content = read_exported(path) if path.suffix == '.safetensors' else _load(path)
    except pickle.UnpicklingError:
        raise UserError(
            f'RESUME_MODEL {path}: holds more than tensors, numbers and text, so it is not read (it could run code), '
            'or it is no checkpoint at all'
        ) from None
    except Exception as error:  # bytes that are no checkpoint make the unpickler fail in every way there is
        raise _unreadable(path, error) from None
    try:
        checkpoint = _as_checkpoint(content, path)
        return checkpoint.with_rows() if with_rows else checkpoint
    except (KeyError, TypeError, AttributeError) as error:  # the keys of our files, but not what ours hold
        raise _unreadable(path, error) from None


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch remarks on odd pickles; the error of the caller says it all
        return torch.load(path, map_location='cpu', weights_only=True)


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [''])[0]
    return UserError(f'RESUME_MODEL {path}: cannot be read as a checkpoint ({type(error).__name__}: {reason})')


def _as_checkpoint(content: Any, path: Path) -> Checkpoint:
    state = content.get('state_dict') if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise UserError(f'RESUME_MODEL {path}: holds no state_dict, so it is no checkpoint of this project')
    state = {name.removeprefix('module.'): value for name, value in state.items()}
    head = content.get('head')
    if head is None and state.get('classifier.weight', torch.empty(0)).ndim != 2:
        raise UserError(
            f'RESUME_MODEL {path}: its state_dict has no classifier.weight of two dimensions; '
            'backbone weights alone are given by MODEL.PRETRAINED'
        )
    if not isinstance(content.get('place'), dict):
        return Checkpoint(state, path=path)
    return Checkpoint(
        state,
        config=content['config'],
        recipe=content['recipe'],
        progress=TrainProgress(**content['place']),
        training_set=_training_set_of(content) if 'train_digest' in content else None,
        optimizer=content['optimizer'],
        training_state=content.get('training_state_dict'),
        scaler=content.get('scaler'),
        history=content.get('history'),
        bad_images=content.get('bad_images'),
        rng=(content.get('rng') or {}).get('torch'),
        versions=content.get('versions'),
        head_folder=None if head is None else path.parent / Path(head).name,
        path=path,
    )


def _training_set_as_content(training_set: TrainingSet) -> dict[str, Any]:
    return {
        'train_digest': training_set.digest,
        'class_counts': torch.from_numpy(training_set.class_counts),
        'class_names': training_set.class_names,
        'class_parents': training_set.class_parents,
    }


def _training_set_of(content: dict[str, Any]) -> TrainingSet:
    counts = content['class_counts'].numpy()
    return TrainingSet(content['train_digest'], counts, content['class_names'], content['class_parents'])


def _rows_of(state: dict[str, torch.Tensor] | None, classes: range) -> dict[str, torch.Tensor] | None:
    rows = slice(classes.start, classes.stop)
    return state and {name: tensor[rows] if name.startswith(PREFIX) else tensor for name, tensor in state.items()}


def versions() -> dict[str, str]:
    """Return the versions that results may depend on."""
    return {
        'python': platform.python_version(),
        'torch': str(torch.__version__),
        'torchvision': str(torchvision.__version__),
        'numpy': np.__version__,
        'system': platform.platform(),
        'threads': str(torch.get_num_threads()),
        'cpus': str(os.cpu_count()),
    }
