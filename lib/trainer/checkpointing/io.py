"""Read and write checkpoint files: torch.save with `weights_only` loading, and safetensors for exported weights.

Reading a checkpoint never runs code; writing one is atomic and can be canceled.
"""

import errno
import importlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from safetensors import safe_open

from lib.backbone.pretrained import fault_of
from lib.backbone.tuning import BaseWeights
from lib.backbone.weights_file import WeightsFileError, read_weights_file
from lib.errors import UserError
from lib.runtime.files import replace_atomically
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, TrainProgress, shard_folder_name, versions
from lib.trainer.selection import Selection

# Checkpoints of the original entry may hold the accuracy as a NumPy scalar. These names only build a number.
_scalar = importlib.import_module('numpy._core.multiarray').scalar
_NUMPY_SCALARS: list[Any] = [
    (_scalar, 'numpy.core.multiarray.scalar'),
    (_scalar, 'numpy._core.multiarray.scalar'),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]
_CHUNK_BYTES = 1 << 24
_FORMER_KEYS = ('best_result', 'best_epoch')  # of 'place', now in 'selection'


def write_checkpoint(path: Path, checkpoint: Checkpoint, canceled: Callable[[], bool] = lambda: False) -> None:
    """Write a checkpoint atomically; the file has the keys of the original entry's files and more.

    Args:
        canceled: polled every few megabytes; once it returns True, writing stops.

    Raises:
        OSError: for example no space left, or canceled; an earlier file at `path` is unchanged.
    """
    write_torch(path, _to_content(checkpoint), canceled)


def read_checkpoint(path: str | Path, *, with_rows: bool = True, mmap: bool = False, option: str = '') -> Checkpoint:
    """Read a checkpoint of this project or of the original entry (`module.` prefix, no config).

    Args:
        with_rows: False: leave the rows of a sharded classifier on the disk for now.
        mmap: map the file, so that only the tensors used are read; a reader of progress or config needs none.
        option: the option that names the file, for error messages.

    Raises:
        UserError: no such file, truncated, not a checkpoint, or a file that would have to run code to be read.
    """
    path = Path(path)
    name = f'{option} {path}'.lstrip()
    if not path.is_file():
        others = ', '.join(sorted(str(other) for other in path.parent.glob('*.pth'))[:5])
        raise UserError(f'{name}: no such file' + (f'; there are {others}' if others else ''))
    try:
        content = read_exported(path) if path.suffix == '.safetensors' else _load(path, mmap=mmap)
    except pickle.UnpicklingError:
        raise UserError(f'{name}: {_foreign(path)}') from None
    except Exception as error:  # damaged bytes make the unpickler raise errors of any type
        raise _unreadable(name, error) from None
    try:
        checkpoint = _from_content(content, path, name)
        return checkpoint.with_rows() if with_rows else checkpoint
    except (KeyError, TypeError, AttributeError) as error:  # the expected keys with unexpected values
        raise _unreadable(name, error) from None


def safetensors_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the header of a safetensors file of the checkpoint's state_dict, as read_checkpoint expects it."""
    content = _to_content(checkpoint)
    keys = ('place', 'config', 'recipe', 'train_digest', 'class_names', 'class_parents')
    header = {key: content[key] for key in keys if key in content}
    if 'class_counts' in content:
        header['class_counts'] = content['class_counts'].tolist()
    return {'checkpoint': json.dumps(header, ensure_ascii=False)}


def read_exported(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint that was exported as safetensors; it cannot be resumed.

    Raises:
        SafetensorError, ValueError, KeyError: not a safetensors file, or not one of this project.
    """
    with safe_open(path, 'pt') as file:
        content = json.loads((file.metadata() or {})['checkpoint'])
        content['state_dict'] = {name: file.get_tensor(name) for name in list(file.keys())}
    if 'class_counts' in content:
        content['class_counts'] = torch.tensor(content['class_counts'], dtype=torch.int64)
    return {'optimizer': None, **content}


def write_torch(path: Path, content: Mapping[str, Any], canceled: Callable[[], bool] = lambda: False) -> None:
    """Replace the file at `path` by `content` in torch.save's format, atomically.

    Args:
        canceled: polled every few megabytes; once it returns True, writing stops.

    Raises:
        OSError: for example no space left, or canceled; an earlier file at `path` is unchanged.
    """
    with replace_atomically(path) as temporary:
        _check_space(path, content)
        # A file object of Python: with a file that torch opens itself, a full disk is an error without errno.
        try:
            with open(temporary, 'wb') as file:
                torch.save(content, cast(IO[bytes], _CancelableWriter(file, canceled)))
        except RuntimeError as error:
            # torch's writer raises its own error after the system's, which is more precise.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class _CancelableWriter:
    """The methods of a file that torch.save calls, writing in chunks until it is complete or canceled."""

    def __init__(self, file: BinaryIO, canceled: Callable[[], bool]) -> None:
        self._file, self._canceled = file, canceled

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK_BYTES):
            if self._canceled():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._file.write(view[start : start + _CHUNK_BYTES])
        return len(view)

    def flush(self) -> None:
        self._file.flush()


def _check_space(path: Path, content: Mapping[str, Any]) -> None:
    """Raise before the disk is full: log.txt and other runs keep writing to it."""
    disk = shutil.disk_usage(path.parent)
    if disk.total and disk.free < _num_bytes(content):  # some network disks report no space at all
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _num_bytes(tree: Any) -> int:
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return sum(_num_bytes(value) for value in values)


def _to_content(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the dictionary that is saved. Its keys are the file format; older code reads them."""
    progress, training_set = checkpoint.progress or TrainProgress(), checkpoint.training_set
    # A file that cannot be resumed needs no generator, whose state depends on what the process did before.
    rng = torch.get_rng_state() if checkpoint.rng is None and checkpoint.optimizer is not None else checkpoint.rng
    return {
        'state_dict': checkpoint.state_dict,
        'training_state_dict': checkpoint.training_state,
        'optimizer': checkpoint.optimizer,
        'scaler': checkpoint.scaler,
        'scheduler': {'epoch': progress.epoch, 'step': progress.step},
        'epoch': progress.epoch,
        'best_result': checkpoint.selection.best_result,
        'selection': _selection_to_content(checkpoint.selection),
        'place': asdict(progress),
        'history': checkpoint.history,
        'bad_images': checkpoint.bad_images,
        'config': checkpoint.config,
        'recipe': checkpoint.recipe,
        'num_classes': checkpoint.num_classes,
        **(_training_set_to_content(training_set) if training_set else {}),
        'rng': None if rng is None else {'torch': rng},
        'versions': checkpoint.versions or versions(),
        'step_format': checkpoint.step_format,
        'base': None if checkpoint.base is None else asdict(checkpoint.base),
        'head': shard_folder_name(progress) if checkpoint.is_sharded else None,
    }


def _training_set_to_content(training_set: TrainingSet) -> dict[str, Any]:
    return {
        'train_digest': training_set.digest,
        'class_counts': torch.from_numpy(training_set.class_counts),
        'class_names': training_set.class_names,
        'class_parents': training_set.class_parents,
    }


def _selection_to_content(selection: Selection) -> dict[str, Any]:
    scores = selection.best_scores
    return {**vars(selection), 'best_scores': None if scores is None else torch.from_numpy(scores)}


def _selection_from_content(content: dict[str, Any]) -> Selection:
    """Return the selection; files of earlier versions have the result of the best epoch only."""
    if 'selection' not in content:
        result = content['place'].get('best_result')
        return Selection(best_epoch=None if result is None else content['place'].get('best_epoch'), best_result=result)
    scores = content['selection']['best_scores']
    return Selection(**{**content['selection'], 'best_scores': None if scores is None else scores.numpy()})


def _load(path: Path, *, mmap: bool) -> Any:
    with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch warns about unusual pickles; read_checkpoint raises an error
        return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)


def _foreign(path: Path) -> str:
    try:
        skipped = read_weights_file(path).skipped
    except WeightsFileError as error:
        return f'is no checkpoint, or it is damaged: it {fault_of(path, error)}'
    classes = f' such as {skipped[0]}' if skipped else ''
    return (
        f'holds more than tensors, numbers and text{classes}, which could run code, so it is no checkpoint of this '
        'project; give backbone weights alone by --MODEL_PRETRAINED'
    )


def _unreadable(name: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [''])[0].split('. ')[0]
    return UserError(f'{name}: cannot be read as a checkpoint ({type(error).__name__}: {reason})')


def _from_content(content: Any, path: Path, name: str) -> Checkpoint:
    state = content.get('state_dict') if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise UserError(f'{name}: holds no state_dict, so it is no checkpoint of this project')
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    shard_folder = content.get('head')
    if shard_folder is None and state.get('classifier.weight', torch.empty(0)).ndim != 2:
        raise UserError(
            f'{name}: its state_dict has no classifier.weight of two dimensions; '
            'give backbone weights alone by MODEL.PRETRAINED'
        )
    if not isinstance(content.get('place'), dict):
        return Checkpoint(state, path=path)
    return Checkpoint(
        state,
        config=content['config'],
        recipe=content['recipe'],
        progress=TrainProgress(**{key: value for key, value in content['place'].items() if key not in _FORMER_KEYS}),
        training_set=_training_set_from_content(content) if 'train_digest' in content else None,
        selection=_selection_from_content(content),
        optimizer=content['optimizer'],
        training_state=content.get('training_state_dict'),
        scaler=content.get('scaler'),
        history=content.get('history'),
        bad_images=content.get('bad_images'),
        rng=(content.get('rng') or {}).get('torch'),
        versions=content.get('versions'),
        step_format=content.get('step_format'),
        base=None if content.get('base') is None else BaseWeights(**content['base']),
        shard_folder=None if shard_folder is None else path.parent / Path(shard_folder).name,
        path=path,
    )


def _training_set_from_content(content: dict[str, Any]) -> TrainingSet:
    counts = content['class_counts'].numpy()
    return TrainingSet(content['train_digest'], counts, content['class_names'], content['class_parents'])
