"""RESUME_MODEL, RESUME_MODE and OVERWRITE -> a new run, a resumed run or fine-tuning. Nothing is lost silently."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.optim.schedule import warmup_epochs
from lib.runtime.folders import holds_others
from lib.runtime.text import count_of
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.checkpointing.latest import checkpoints_in, latest_checkpoint, position_of
from lib.trainer.checkpointing.state import Checkpoint

_NO_OPTIMIZER = 'no optimizer state'
_FILES_OF_START = re.compile(
    r'(log|environment)\.txt|config\.yaml|classes\.json|metrics\.jsonl|bad_images\.csv|events\.out\.tfevents\..*'
)


@dataclass(frozen=True)
class ResumeRequest:
    """The options of the user, and the properties of the run that decide about resuming.

    Attributes:
        folder: LOG_ROOT/NAME.
        resume_model, resume_mode, overwrite: the keys of these names.
        recipe: keys that determine the weights, with their values.
        train_digest: fingerprint of the training set.
        max_epoch: epochs to train.
        checkpoint: that of `resume_model` if it was read already; None: it is read when needed.
        errors: for `resume_model` last, why later checkpoints cannot be read.
    """

    folder: Path
    resume_model: str
    resume_mode: str
    overwrite: bool
    recipe: dict[str, Any]
    train_digest: str
    max_epoch: int
    checkpoint: Checkpoint | None = None
    errors: Sequence[str] = ()


@dataclass(frozen=True)
class ResumePlan:
    """How a run starts.

    Attributes:
        kind: 'new', 'continue' or 'finetune'.
        folder: folder of the run.
        checkpoint: checkpoint to start from; None for a new run.
        reason: explanation for the log.
        set_aside: rename the existing folder first.
    """

    kind: str
    folder: Path
    checkpoint: Checkpoint | None
    reason: str
    set_aside: bool = False


def plan_resume(request: ResumeRequest) -> ResumePlan:
    """Decide how a run starts. Reads checkpoints, writes nothing.

    Raises:
        UserError: the run would overwrite files, or the options contradict each other; the message lists what to type.
    """
    if request.overwrite and request.resume_model == 'last':
        raise UserError('OVERWRITE True starts a new run, RESUME_MODEL last resumes one: give one of them')
    used = bool(checkpoints_in(request.folder)) and not request.overwrite
    set_aside = request.overwrite and request.folder.exists()
    if not request.resume_model:
        if used:
            raise UserError(
                f'{request.folder} holds the checkpoints of an earlier run: resume it with --RESUME_MODEL last, '
                'start another with --NAME, or a new one with --OVERWRITE True (the old folder is renamed, not deleted)'
            )
        return ResumePlan('new', request.folder, None, 'new run', set_aside)
    if request.resume_model == 'last':
        return _plan_from_last(request)
    checkpoint = request.checkpoint
    if checkpoint is None:
        checkpoint = read_checkpoint(request.resume_model, with_rows=False, option='RESUME_MODEL')
    return _plan_from_path(request, checkpoint, used, set_aside)


def is_set_aside(plan: ResumePlan) -> bool:
    """Return whether the folder of a run is to be renamed. Call it while holding the lock of the folder.

    Raises:
        UserError: since the plan was made, another run has saved checkpoints into the folder.
    """
    if plan.set_aside:
        # A start without a checkpoint is used again, as it is without OVERWRITE.
        of_start = {path.name for path in plan.folder.iterdir() if _FILES_OF_START.fullmatch(path.name)}
        return holds_others(plan.folder, of_start, last='last.pth')
    resumed = plan.checkpoint if plan.kind == 'continue' else None
    # A run that was resumed in its folder has found the latest checkpoint there, any other run has found none.
    latest = None
    if resumed is not None and resumed.path is not None and resumed.path.resolve().parent == plan.folder.resolve():
        latest = resumed.progress.position if resumed.progress else None
    # A kill between the two may leave an epoch_N.pth that is newer than last.pth, which is resumed.
    last = plan.folder / 'last.pth'
    for path in [last] if last.exists() else checkpoints_in(plan.folder):
        if latest is None or (position_of(path) or latest) > latest:
            raise UserError(
                f'{plan.folder}: another run has saved {path.name} there since this one was started; to resume it: '
                '--RESUME_MODEL last, or give another --NAME'
            )
    return False


def _plan_from_last(request: ResumeRequest) -> ResumePlan:
    checkpoint, errors = request.checkpoint, request.errors
    if checkpoint is None and not errors:
        checkpoint, errors = latest_checkpoint(request.folder)
    if checkpoint is None and errors:
        raise UserError(f'{request.folder}: no checkpoint can be read; {errors[0]}')
    if checkpoint is None:
        return ResumePlan('new', request.folder, None, f'new run: {request.folder} holds no checkpoint')
    if checkpoint.progress is None or checkpoint.training_set is None:
        raise UserError(f'{checkpoint.path}: its number of epochs is unknown; give its path to fine-tune from it')
    if not checkpoint.is_resumable:
        raise UserError(
            f'{request.folder} holds no checkpoint to resume: {checkpoint.path} holds {_NO_OPTIMIZER}; fine-tune from '
            f'it with --RESUME_MODEL {checkpoint.path}, or start a new run with --OVERWRITE True (the old folder is '
            'renamed, not deleted)'
        )
    if checkpoint.training_set.digest != request.train_digest:
        raise UserError(
            f'{checkpoint.path} was trained on another training set, so that run cannot be resumed; '
            f'to fine-tune from it: --RESUME_MODEL {checkpoint.path}'
        )
    reason = f'resuming from {checkpoint.path}, {_position_text(checkpoint)}'
    changes = _changes(checkpoint, request)
    if changes:
        reason += f'; with another recipe than before: {changes}'
    if errors:
        reason += f'; newer, but unreadable: {"; ".join(errors)}'
    return ResumePlan('continue', request.folder, checkpoint, reason)


def _plan_from_path(request: ResumeRequest, checkpoint: Checkpoint, used: bool, set_aside: bool) -> ResumePlan:
    assert checkpoint.path is not None
    inside = checkpoint.path.resolve().parent == request.folder.resolve()
    if inside and request.overwrite:
        raise UserError(f'OVERWRITE True would rename {request.folder}, which holds RESUME_MODEL {checkpoint.path}')
    obstacle = _obstacle(request, checkpoint)
    # best_model.pth of a run that could be resumed is more likely a mistake than meant for fine-tuning.
    if request.resume_mode == 'continue' or (request.resume_mode == 'auto' and inside and obstacle == _NO_OPTIMIZER):
        _check_optimizer(checkpoint)
    if request.resume_mode == 'continue' and obstacle:
        raise UserError(f'RESUME_MODE continue is not possible from {checkpoint.path}: {obstacle}')
    if request.resume_mode == 'finetune' or obstacle:
        folder = _unused_folder(request.folder) if used else request.folder
        reason = f'fine-tuning from {checkpoint.path} into {folder}: {obstacle or "RESUME_MODE finetune"}'
        return ResumePlan('finetune', folder, checkpoint, reason, set_aside)
    if used and not inside:
        raise UserError(
            f'{checkpoint.path} could be resumed in {request.folder}, but that holds the checkpoints of another run: '
            'give another --NAME'
        )
    last = _later_last(request.folder, checkpoint) if inside else None
    if last is not None:
        raise UserError(
            f'{last.path} is newer ({_position_text(last)}) than {checkpoint.path} ({_position_text(checkpoint)}): '
            'resume it with --RESUME_MODEL last, fine-tune with --RESUME_MODE finetune, or resume the older one under '
            'another --NAME'
        )
    reason = f'resuming from {checkpoint.path}, {_position_text(checkpoint)}: same training set and recipe'
    return ResumePlan('continue', request.folder, checkpoint, reason, set_aside)


def _obstacle(request: ResumeRequest, checkpoint: Checkpoint) -> str:
    """Return why the checkpoint cannot be resumed; '' if it can."""
    if checkpoint.progress is None or checkpoint.training_set is None:
        return 'the checkpoint holds weights only'
    if checkpoint.training_set.digest != request.train_digest:
        return 'another training set'
    changes = _changes(checkpoint, request)
    if changes:
        return f'another recipe: {changes}'
    if request.max_epoch == 0:
        return '0 epochs, so it is evaluated and saved unchanged'
    if checkpoint.progress.epoch >= request.max_epoch:
        return f'all {request.max_epoch} epochs are done'
    return '' if checkpoint.is_resumable else _NO_OPTIMIZER


def _check_optimizer(checkpoint: Checkpoint) -> None:
    if checkpoint.training_set is not None and not checkpoint.is_resumable:
        raise UserError(
            f'{checkpoint.path} holds {_NO_OPTIMIZER}, so its run cannot be resumed from it: resume from last.pth with '
            '--RESUME_MODEL last, or give the path of an epoch_N.pth; --RESUME_MODE finetune starts a new run from its '
            'weights'
        )


def _changes(checkpoint: Checkpoint, request: ResumeRequest) -> str:
    """Return the keys that differ. A key of one side only belongs to another version and had its default."""
    before, now = (_with_warmup(recipe, request.max_epoch) for recipe in (checkpoint.recipe, request.recipe))
    changes = [f'{name} {before[name]} -> {now[name]}' for name in now if name in before and before[name] != now[name]]
    return ', '.join(changes[:5]) + (', ...' if len(changes) > 5 else '')


def _with_warmup(recipe: dict[str, Any], max_epoch: int) -> dict[str, Any]:
    """Return a recipe with its warm-up in epochs: the same length may be given in epochs or as a fraction."""
    if 'SCHEDULE.WARMUP_EPOCHS' not in recipe:
        return recipe
    fraction = recipe.get('SCHEDULE.WARMUP_FRACTION', 0.0)  # older versions knew epochs only
    epochs = warmup_epochs(recipe['SCHEDULE.WARMUP_EPOCHS'], fraction, max_epoch)
    others = {name: value for name, value in recipe.items() if name != 'SCHEDULE.WARMUP_FRACTION'}
    return others | {'SCHEDULE.WARMUP_EPOCHS': round(epochs, 6)}


def _later_last(folder: Path, checkpoint: Checkpoint) -> Checkpoint | None:
    """Return last.pth if it is later in the run than `checkpoint`."""
    path = folder / 'last.pth'
    assert checkpoint.path is not None
    if not path.exists() or checkpoint.path.resolve() == path.resolve():
        return None
    try:
        last = read_checkpoint(path, with_rows=False, mmap=True)
    except UserError:
        return None
    if last.progress is None or checkpoint.progress is None:
        return None
    return last if last.progress.position > checkpoint.progress.position else None


def _unused_folder(folder: Path) -> Path:
    """Return folder_finetune, folder_finetune_2, ...: the first that does not exist."""
    number = 1
    while True:
        candidate = folder.with_name(f'{folder.name}_finetune' + (f'_{number}' if number > 1 else ''))
        if not candidate.exists():
            return candidate
        number += 1


def _position_text(checkpoint: Checkpoint) -> str:
    progress = checkpoint.progress
    if progress is None:
        return 'an unknown number of epochs'
    return count_of(progress.epoch, 'epoch') + (f' and {count_of(progress.step, "step")}' if progress.step else '')
