"""What RESUME_MODEL means for a run: a new one, the same one going on, or fine-tuning. Nothing is lost silently."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.checkpointing.latest import checkpoints_in, latest_checkpoint
from lib.trainer.checkpointing.state import Checkpoint


@dataclass(frozen=True)
class ResumeRequest:
    """What the user asked for.

    Attributes:
        folder: LOG_ROOT/NAME.
        resume_model, resume_mode, overwrite: the keys of these names.
        recipe: keys that decide the weights, with their values.
        train_digest: of the training set.
        max_epoch: epochs to train.
    """

    folder: Path
    resume_model: str
    resume_mode: str
    overwrite: bool
    recipe: dict[str, Any]
    train_digest: str
    max_epoch: int


@dataclass(frozen=True)
class ResumePlan:
    """What will be done: `kind` is 'new', 'continue' or 'finetune'; `reason` says why, for the log."""

    kind: str
    folder: Path
    checkpoint: Checkpoint | None
    reason: str
    set_aside: bool = False


def plan_resume(wanted: ResumeRequest) -> ResumePlan:
    """Apply the table of resuming. Reads checkpoints, writes nothing.

    Raises:
        UserError: going on would overwrite something, or cannot be what is meant; the ways on are named.
    """
    if wanted.overwrite and wanted.resume_model == 'last':
        raise UserError('OVERWRITE True starts anew, RESUME_MODEL last goes on: give one of them')
    used = bool(checkpoints_in(wanted.folder)) and not wanted.overwrite
    set_aside = wanted.overwrite and wanted.folder.exists()
    if not wanted.resume_model:
        if used:
            raise UserError(
                f'{wanted.folder} holds the checkpoints of an earlier run: go on with --RESUME_MODEL last, '
                'start another with --NAME, or anew with --OVERWRITE True (the old folder is renamed, not deleted)'
            )
        return ResumePlan('new', wanted.folder, None, 'a new run', set_aside)
    if wanted.resume_model == 'last':
        return _start_from_last(wanted)
    return _start_from_path(
        wanted, read_checkpoint(wanted.resume_model, with_rows=False, option='RESUME_MODEL'), used, set_aside
    )


def _start_from_last(wanted: ResumeRequest) -> ResumePlan:
    checkpoint, faults = latest_checkpoint(wanted.folder)
    if checkpoint is None and faults:
        raise UserError(f'{wanted.folder}: not one checkpoint can be read; {faults[0]}')
    if checkpoint is None:
        return ResumePlan('new', wanted.folder, None, f'a new run: {wanted.folder} holds no checkpoint yet')
    if checkpoint.progress is None or checkpoint.training_set is None:
        raise UserError(
            f'{checkpoint.path}: says nothing of how far it was trained; give its path to fine-tune from it'
        )
    if checkpoint.training_set.digest != wanted.train_digest:
        raise UserError(
            f'{checkpoint.path} was trained on another training set, so that run cannot go on; '
            f'to fine-tune from it: --RESUME_MODEL {checkpoint.path}'
        )
    reason = f'going on from {checkpoint.path}, {_how_far(checkpoint)}'
    changed = _changed(checkpoint.recipe, wanted.recipe)
    if changed:
        reason += f'; with another recipe than before: {changed}'
    if faults:
        reason += f'; newer, but unreadable: {"; ".join(faults)}'
    return ResumePlan('continue', wanted.folder, checkpoint, reason)


def _start_from_path(wanted: ResumeRequest, checkpoint: Checkpoint, used: bool, set_aside: bool) -> ResumePlan:
    inside = checkpoint.path.resolve().parent == wanted.folder.resolve()
    if inside and wanted.overwrite:
        raise UserError(f'OVERWRITE True would put aside {wanted.folder}, which holds RESUME_MODEL {checkpoint.path}')
    obstacle = _cannot_continue(wanted, checkpoint)
    if wanted.resume_mode == 'continue' and obstacle:
        raise UserError(f'RESUME_MODE continue is not possible from {checkpoint.path}: {obstacle}')
    if wanted.resume_mode == 'finetune' or obstacle:
        folder = _free_folder(wanted.folder) if used else wanted.folder
        reason = f'fine-tuning from {checkpoint.path} into {folder}: {obstacle or "RESUME_MODE finetune"}'
        return ResumePlan('finetune', folder, checkpoint, reason, set_aside)
    if used and not inside:
        raise UserError(
            f'{checkpoint.path} could go on in {wanted.folder}, but that holds the checkpoints of another run: '
            'give another --NAME'
        )
    last = _newer_last(wanted.folder, checkpoint) if inside else None
    if last:
        newer = _how_far(read_checkpoint(last, with_rows=False))
        raise UserError(
            f'{last} is newer ({newer}) than {checkpoint.path} ({_how_far(checkpoint)}): '
            'go on from it with --RESUME_MODEL last, fine-tune with --RESUME_MODE finetune, or go on from the older '
            'one under another --NAME'
        )
    reason = f'going on from {checkpoint.path}, {_how_far(checkpoint)}: same training set and recipe'
    return ResumePlan('continue', wanted.folder, checkpoint, reason, set_aside)


def _cannot_continue(wanted: ResumeRequest, checkpoint: Checkpoint) -> str:
    """Say why this run is not the checkpoint's going on; '' when it is."""
    if checkpoint.progress is None or checkpoint.training_set is None or checkpoint.optimizer is None:
        return 'the checkpoint holds weights only'
    if checkpoint.training_set.digest != wanted.train_digest:
        return 'another training set'
    changed = _changed(checkpoint.recipe, wanted.recipe)
    if changed:
        return f'another recipe: {changed}'
    if wanted.max_epoch == 0:
        return 'no epochs, so it is evaluated and saved as it is'
    if checkpoint.progress.epoch >= wanted.max_epoch:
        return f'all {wanted.max_epoch} epochs are done'
    return ''


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Name the keys that differ. One that only one side knows belongs to another version, and had its default."""
    changes = [f'{name} {before[name]} -> {now[name]}' for name in now if name in before and before[name] != now[name]]
    return ', '.join(changes[:5]) + (', ...' if len(changes) > 5 else '')


def _newer_last(folder: Path, checkpoint: Checkpoint) -> Path | None:
    last = folder / 'last.pth'
    if not last.exists() or checkpoint.path.resolve() == last.resolve():
        return None
    try:
        place = read_checkpoint(last, with_rows=False).progress
    except UserError:
        return None
    return last if place and place.position > checkpoint.progress.position else None


def _free_folder(folder: Path) -> Path:
    """Return folder_finetune, or folder_finetune_2, ... whichever is not there yet."""
    number = 1
    while True:
        candidate = folder.with_name(f'{folder.name}_finetune' + (f'_{number}' if number > 1 else ''))
        if not candidate.exists():
            return candidate
        number += 1


def _how_far(checkpoint: Checkpoint) -> str:
    place = checkpoint.progress
    if place is None:
        return 'an unknown number of epochs'
    return f'{place.epoch} epochs' + (f' and {place.step} steps' if place.step else '')
