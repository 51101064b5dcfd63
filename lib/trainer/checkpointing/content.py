"""The dictionary in a checkpoint file, from and to a Checkpoint. Every value of a file is checked before it is used."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TypeGuard, TypeVar

import msgspec
import torch
from msgspec import Meta

from lib.backbone.tuning import BaseWeights
from lib.errors import UserError, shown
from lib.runtime.json_file import Count
from lib.trainer.checkpointing.state import (
    Checkpoint,
    MetricsEntry,
    TrainingSet,
    TrainProgress,
    history_fault,
    shard_folder_name,
    versions,
)
from lib.trainer.selection import Selection

Form = TypeVar('Form')
_Setting = str | int | float | bool | None
WEIGHTS_HINT = 'give backbone weights alone by --MODEL_PRETRAINED'
_FORMER_KEYS = ('best_result', 'best_epoch')  # of 'place', now in 'selection'


class InvalidContent(ValueError):
    """A value in a checkpoint file is missing, of another type or out of range; the message names it."""


class _Base(msgspec.Struct, forbid_unknown_fields=True):
    backbone: str
    pretrained: str
    image_size: Annotated[int, Meta(ge=1, le=1 << 16)]
    digest: str


class _ParameterGroup(msgspec.Struct):
    params: list[Count]


class _Optimizer(msgspec.Struct):
    state: dict[Count, dict[str, Any]] = {}
    param_groups: list[_ParameterGroup] = []
    rows: dict[str, Count] = {}


class _Corrections(msgspec.Struct):
    file: str
    digest: str
    counts: dict[str, Count]
    classes: list[tuple[str, Count, Count]]


class _Content(msgspec.Struct):
    """The entries of the dictionary of which the form is fixed; tensors are checked apart."""

    config: str
    recipe: dict[str, _Setting | list[_Setting | list[_Setting]]]
    optimizer: _Optimizer | None
    scaler: dict[str, float | int] | None = None
    history: list[MetricsEntry] | None = None
    bad_images: dict[str, dict[str, str]] | None = None
    versions: dict[str, str] | None = None
    step_format: dict[str, str] | None = None
    train_digest: str = ''
    class_names: list[str] = []
    class_parents: list[list[str]] = []
    corrections: dict[str, _Corrections] = {}
    base: _Base | None = None
    head: Annotated[str, Meta(pattern=r'^head-[0-9]+-[0-9]+\Z')] | None = None  # shard_folder_name


def to_content(checkpoint: Checkpoint) -> dict[str, Any]:
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
        'place': msgspec.structs.asdict(progress),
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
        'samples': checkpoint.samples,
        'head': shard_folder_name(progress) if checkpoint.is_sharded else None,
    }


def _training_set_to_content(training_set: TrainingSet) -> dict[str, Any]:
    return {
        'train_digest': training_set.digest,
        'class_counts': torch.from_numpy(training_set.class_counts),
        'class_names': training_set.class_names,
        'class_parents': training_set.class_parents,
        'corrections': training_set.corrections,
    }


def _selection_to_content(selection: Selection) -> dict[str, Any]:
    scores = selection.best_scores
    return {**vars(selection), 'best_scores': None if scores is None else torch.from_numpy(scores)}


def _is_state_dict(value: Any) -> TypeGuard[dict[str, torch.Tensor]]:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(entry, torch.Tensor) for key, entry in value.items()
    )


def from_content(content: Any, path: Path, name: str) -> Checkpoint:
    """Return the checkpoint of the dictionary in a file.

    Args:
        path: path of the file.
        name: name of the file in error messages.

    Raises:
        UserError: no checkpoint of this project.
        InvalidContent: damaged, or changed by hand.
    """
    state = content.get('state_dict') if isinstance(content, dict) else None
    if not _is_state_dict(state):
        found = 'holds weights alone' if content and _is_state_dict(content) else 'holds no state_dict'
        raise UserError(f'{name}: {found}, so it is no checkpoint of this project; {WEIGHTS_HINT}')
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    head = content.get('head')
    if head is None and state.get('classifier.weight', torch.empty(0)).ndim != 2:
        raise UserError(f'{name}: its state_dict has no classifier.weight of two dimensions; {WEIGHTS_HINT}')
    if not isinstance(content.get('place'), dict):
        return Checkpoint(state, path=path)
    _convert({key: content[key] for key in _Content.__struct_fields__ if key in content}, _Content, 'the file')
    _check_values(content, state)
    num_classes = None if head is not None else len(state['classifier.weight'])
    return Checkpoint(
        state,
        config=content['config'],
        recipe=content['recipe'],
        progress=_progress_of(content['place']),
        training_set=_training_set_of(content, num_classes) if 'train_digest' in content else None,
        selection=_selection_of(content),
        optimizer=content['optimizer'],
        training_state=content.get('training_state_dict'),
        scaler=content.get('scaler'),
        history=content.get('history'),
        bad_images=content.get('bad_images'),
        rng=(content.get('rng') or {}).get('torch'),
        versions=content.get('versions'),
        step_format=content.get('step_format'),
        base=None if content.get('base') is None else BaseWeights(**content['base']),
        samples=content.get('samples'),
        shard_folder=None if head is None else path.parent / Path(head).name,
        path=path,
    )


def _convert(value: Any, form: type[Form], name: str) -> Form:
    try:
        return msgspec.convert(_without_tensors(value), form)
    except msgspec.ValidationError as error:
        raise InvalidContent(f'{name}: {shown(error)}') from None


def _without_tensors(tree: Any) -> Any:
    """Return a tree with `...`, which no form but Any accepts, for tensors, which msgspec takes for dictionaries."""
    if isinstance(tree, dict):
        return {name: _without_tensors(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_tensors(value) for value in tree]
    return ... if isinstance(tree, torch.Tensor) else tree


def _check_values(content: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    for key, value in state.items():
        if key.startswith('classifier.') and not value.is_floating_point():
            raise InvalidContent(f'{shown(key)}: has {value.dtype}, not floating-point numbers')
    training = content.get('training_state_dict')
    if training is not None and (not isinstance(training, dict) or _shapes(training) != _shapes(state)):
        raise InvalidContent('training_state_dict: its tensors are not those of state_dict')
    if fault := history_fault(content.get('history') or []):
        raise InvalidContent(f'history: {fault}')
    rng = content.get('rng')
    if rng is not None and not (isinstance(rng, dict) and isinstance(rng.get('torch'), torch.Tensor | None)):
        raise InvalidContent('rng: is no state of a generator')
    if not all(math.isfinite(value) and value >= 0 for value in (content.get('scaler') or {}).values()):
        raise InvalidContent('scaler: has a number that is not positive and finite')


def _shapes(state: dict[Any, Any]) -> dict[Any, torch.Size | None]:
    return {key: getattr(value, 'shape', None) for key, value in state.items()}


def _progress_of(place: dict[str, Any]) -> TrainProgress:
    values = {key: value for key, value in place.items() if key not in _FORMER_KEYS}
    progress = _convert(values, TrainProgress, 'place')
    if not (math.isfinite(progress.loss_sum) and math.isfinite(progress.seconds)):
        raise InvalidContent('place: loss_sum or seconds is not finite')
    return progress


def _training_set_of(content: dict[str, Any], num_classes: int | None) -> TrainingSet:
    """Return the training set; `num_classes`: rows of the classifier, None if they are in other files."""
    counts, names, parents = (content.get(name) for name in ('class_counts', 'class_names', 'class_parents'))
    if not isinstance(counts, torch.Tensor) or counts.ndim != 1 or counts.is_floating_point() or counts.is_complex():
        raise InvalidContent('class_counts: is no list of whole numbers')
    if num_classes is not None and len(counts) != num_classes:
        raise InvalidContent(f'class_counts: has {len(counts)} numbers, but the classifier has {num_classes} rows')
    if bool((counts < 0).any()) or names is None or parents is None:
        raise InvalidContent('class_counts: has a negative number' if names is not None else 'class_names is missing')
    for name, values in (('class_names', names), ('class_parents', parents)):
        if len(values) not in (0, len(counts)):
            raise InvalidContent(f'{name}: has {len(values)} entries for {len(counts)} classes')
    corrections = content.get('corrections') or {}
    return TrainingSet(content['train_digest'], counts.to(torch.int64).numpy(), names, parents, corrections)


def _selection_of(content: dict[str, Any]) -> Selection:
    """Return the selection; files of earlier versions have the result of the best epoch only."""
    if 'selection' not in content:
        result, epoch = (content['place'].get(key) for key in _FORMER_KEYS)
        former = _convert({'best_epoch': epoch, 'best_result': result}, Selection, 'place')
        return Selection() if result is None else former
    values = content['selection']
    if not isinstance(values, dict):
        raise InvalidContent('selection: is no dictionary')
    scores = values.get('best_scores')
    if scores is not None and (not isinstance(scores, torch.Tensor) or scores.ndim != 1):
        raise InvalidContent('selection: best_scores is no list of numbers')
    selection = _convert({**values, 'best_scores': None}, Selection, 'selection')
    # Only a loss may have overflowed.
    results = (selection.best_result, selection.selected_result)
    if selection.metric != 'loss' and not all(result is None or math.isfinite(result) for result in results):
        raise InvalidContent('selection: a result is not finite')
    return replace(selection, best_scores=None if scores is None else scores.numpy())
