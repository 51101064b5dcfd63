"""The steps of main.py: open the data, plan how the run starts, build the trainer, train into the run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.builders.base_weights import describe_tuning
from lib.builders.classifier_init import init_classifier
from lib.builders.data import open_training_data
from lib.builders.device import build_device
from lib.builders.features import NO_FEATURES, cached_features
from lib.builders.loader import build_train_loader
from lib.builders.model import class_names, class_shard, finetuned_model, model_of, new_model
from lib.builders.precision import choose_precision
from lib.builders.recipe import describe_recipe, random_weights_advice, resolve_recipe
from lib.builders.trainer import build_trainer, recipe_of, unreached_epochs
from lib.builders.training_data import TrainingData
from lib.commands.command import Command
from lib.commands.resume import ResumePlan, ResumeRequest, is_set_aside, plan_resume
from lib.config.command_help import COMMANDS
from lib.config.defaults import KEYS, Config
from lib.config.yaml_text import as_node, as_text, as_values
from lib.dataset.images import MissingImage
from lib.dataset.index import ClassIndex
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.distributed.rank_info import was_restarted
from lib.errors import UserError, shown
from lib.model import Recognizer
from lib.runtime.device import Device
from lib.runtime.folders import fresh_folder
from lib.runtime.log import LOGGER, log_to
from lib.runtime.mirror import is_mirrored
from lib.runtime.text import count_of, few_names, name_warnings
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, versions
from lib.trainer.epoch import NotFinite
from lib.trainer.mixing.stages import StageError
from lib.trainer.run_folder import RunFolder, TooManyBadImages
from lib.trainer.selection import Selection
from lib.trainer.step import SingleValueBatchNorm
from lib.trainer.train_state import OptimizerMismatch, TrainState
from lib.trainer.trainer import Trainer

# What to type after an error in lib/trainer, which does not know the options.
_ADVICE: dict[type[UserError], str] = {
    NotFinite: 'a lower OPTIMIZER.LR or a longer warm-up (SCHEDULE.WARMUP_FRACTION) helps most often',
    SingleValueBatchNorm: 'give a larger TRAIN.BATCH_SIZE or INPUT.SIZE, or a MODEL.BACKBONE without BatchNorm',
    MissingImage: 'compare DATASET.ROOT with the folder of the images; tools/doctor.py lists all that are missing',
    TooManyBadImages: 'repair the images, or raise DATASET.MAX_BAD_FRACTION',
    StageError: 'leave the stage out of MIX.STAGES, or choose another MODEL.BACKBONE',
}


@dataclass(frozen=True)
class TrainingRun:
    """A trainer that is ready, and what its report needs."""

    cfg: Config
    data: TrainingData
    device: Device
    trainer: Trainer


@contextmanager
def prepare_training(command: Command, group: ProcessGroup = SINGLE_PROCESS) -> Iterator[TrainingRun]:
    """Build a run and hold its folder. Nothing is written before everything is built and checked.

    Every rank builds the same; only the main rank writes.

    Raises:
        UserError: any mistake in config, data or checkpoint; the folder is in use or holds another run.
    """
    cfg = command.cfg
    device = build_device(cfg, group)
    with group.main_first():
        data = open_training_data(cfg)
    index = data.index().capped(cfg.DATASET.HEAD_CAP, cfg.SEED)
    if not len(index):
        raise UserError(f'{data.train.source}: no images, so there is nothing to train on')
    given, cfg = cfg, resolve_recipe(cfg, len(index))
    if cfg is not given:
        LOGGER.info('%s', describe_recipe(cfg, len(index)))
    plan = plan_resume(_resume_request(command._replace(cfg=cfg), data, group))
    cfg = as_node({**as_values(cfg), 'NAME': plan.folder.name})
    with group.main_first():
        model, training_set, new_classes = _build_model(cfg, data, device, plan, group)
    resumed = plan.checkpoint if plan.kind == 'continue' else None
    device, timing = choose_precision(cfg, model, device, len(index), resumed, group)
    features = cached_features(cfg, data, model, device, group) if cfg.TRAIN.FEATURES == 'cached' else NO_FEATURES
    if resumed is None:
        with group.main_first():
            init_classifier(cfg, model, data, index, device, features.train)
    names = data.classes.names if data.classes else ()
    loader = build_train_loader(cfg, data.train, index, device, group, names, features.train)
    folder = RunFolder(
        plan.folder, save_every=cfg.TRAIN.SAVE_EVERY_EPOCHS, keep=cfg.TRAIN.KEEP_EPOCHS, writes=group.is_main
    )
    trainer = build_trainer(cfg, data, index, model, training_set, loader, folder, device, group, features.valid)
    if resumed is not None:
        _restore(trainer.state, resumed.with_rows(class_shard(cfg, data.train.num_classes, group)))
    # All ranks have read what they need from the folder.
    group.barrier()
    with _open_folder(folder, cfg, plan, device, group), _advice():
        if plan.kind == 'continue':
            _check_selection(trainer, folder, group)
        folder.write_classes(training_set.class_names, training_set.class_parents)
        group.barrier()  # no rank saves into the folder before it is ready
        LOGGER.info('%s: %s', folder.path, plan.reason)
        _log_data(data, index, new_classes, device, group)
        advice = None if plan.checkpoint else random_weights_advice(cfg, len(index))
        for line in filter(None, (advice, _packing_advice(cfg), timing)):
            LOGGER.info('%s', line)
        for line in describe_tuning(trainer.state.model, cfg):
            LOGGER.info('%s', line)
        for line in unreached_epochs(cfg):
            LOGGER.warning('%s', line)
        with trainer.trackers.recording(cfg.NAME, _parameters(cfg)):
            yield TrainingRun(cfg, data, device, trainer)


def _resume_request(command: Command, data: TrainingData, group: ProcessGroup) -> ResumeRequest:
    cfg = command.cfg
    # After a restart by torchrun the command line is still that of the first start; the run is resumed.
    # Each machine counts its restarts, so the ranks may know different numbers.
    restarted = any(group.all_gather_objects(was_restarted()))
    return ResumeRequest(
        folder=Path(cfg.LOG_ROOT, cfg.NAME),
        resume_model='last' if restarted and not cfg.RESUME_MODEL else cfg.RESUME_MODEL,
        resume_mode=cfg.RESUME_MODE,
        overwrite=cfg.OVERWRITE and not restarted,
        recipe=recipe_of(cfg),
        train_digest=data.train_digest(),
        max_epoch=cfg.TRAIN.MAX_EPOCH,
        checkpoint=command.checkpoint,
        errors=command.errors,
    )


def _build_model(
    cfg: Config, data: TrainingData, device: Device, plan: ResumePlan, group: ProcessGroup
) -> tuple[Recognizer, TrainingSet, list[str]]:
    """Return the model, the training set as its checkpoints describe it, and the classes that are new to it."""
    names, parents = data.class_names, data.classes.parents if data.classes else []
    counts = data.original_class_counts()
    training_set = TrainingSet(data.train_digest(), counts, names, parents, data.corrections)
    classes = class_shard(cfg, data.train.num_classes, group)
    checkpoint = plan.checkpoint
    if checkpoint is None:
        return new_model(cfg, data.train.num_classes, device, classes=classes), training_set, []
    original = checkpoint.training_set
    if plan.kind == 'continue':
        assert original is not None
        return model_of(checkpoint, cfg, device, classes=classes), original, []
    model, new_classes = finetuned_model(checkpoint, cfg, device, names, classes=classes)
    for warning in name_warnings(new_classes, known=class_names(checkpoint)):
        LOGGER.warning('%s: %s', checkpoint.path, warning)
    if original is not None:
        # Many, medium and few remain those of the original training set; new classes have their own counts.
        before: dict[str, int] = {}
        for name, count in zip(class_names(checkpoint), original.class_counts, strict=True):
            before[name] = before.get(name, 0) + count  # two spellings of a name were two classes once
        merged = [before.get(name, count) for name, count in zip(names, counts, strict=True)]
        training_set.class_counts = np.array(merged)
    return model, training_set, new_classes


def _restore(state: TrainState, checkpoint: Checkpoint) -> None:
    try:
        state.restore(checkpoint)
    except OptimizerMismatch as error:
        raise UserError(
            f'{error} OPTIMIZER.TYPE, OPTIMIZER.DECAY_NORM_AND_BIAS, OPTIMIZER.LAYER_DECAY, MODEL.TUNE or '
            'MODEL.FREEZE_BACKBONE; give these their former values, or load the weights alone: '
            f'--RESUME_MODEL {checkpoint.path} --RESUME_MODE finetune'
        ) from None


def _check_selection(trainer: Trainer, folder: RunFolder, group: ProcessGroup) -> None:
    """Select among the newest epoch and those to come where no file has the selected one."""
    epoch, now = trainer.state.selection.selected_epoch, trainer.progress.position
    is_lost, has_newest = group.broadcast_object(
        (epoch is not None and not folder.has_best_of(epoch), folder.has_best_of(now[0]) and now[1] == 0)
        if group.is_main
        else (False, False)
    )
    if is_lost:
        LOGGER.warning('no file has the selected epoch %d: selection starts again', epoch)
        trainer.state.selection = Selection(selected_epoch=now[0] if has_newest else None)


@contextmanager
def _open_folder(
    folder: RunFolder, cfg: Config, plan: ResumePlan, device: Device, group: ProcessGroup
) -> Iterator[None]:
    """Lock the run folder on the main rank and prepare its files."""
    if not folder.writes:
        yield
        return
    with fresh_folder(folder.path, 'NAME', lambda: is_set_aside(plan)):
        folder.start_from(plan.checkpoint if plan.kind == 'continue' else None)
        log_to(folder.path / 'log.txt')
        folder.write_environment(as_text(cfg), {'device': _device_text(device, group), **versions()})
        yield


@contextmanager
def _advice() -> Iterator[None]:
    """Add what to type to errors of lib/trainer."""
    try:
        yield
    except tuple(_ADVICE) as error:
        raise UserError(f'{shown(error)}; {_ADVICE[type(error)]}') from None


def _parameters(cfg: Config) -> dict[str, bool | float | str]:
    """Return the keys that main.py uses, for experiment trackers, without those of a single start."""
    sections = COMMANDS['main.py'].sections
    return {
        name: ', '.join(map(str, value)) if isinstance(value, tuple) else KEYS[name].plain(value)
        for name, value in as_values(cfg).items()
        if name.partition('.')[0] in sections or name in ('NAME', 'LOG_ROOT', 'SEED')
    }


def _packing_advice(cfg: Config) -> str:
    """Return a log line for photos of a bucket that are not packed; '' for others."""
    is_listed = cfg.DATASET.NAME == 'annotations' and not cfg.DATASET.SHARDS
    if not (is_listed and is_mirrored(cfg.DATASET.ROOT)):
        return ''
    return f'{cfg.DATASET.ROOT}: one request per photo; packing is faster: tools/pack.py'


def _device_text(device: Device, group: ProcessGroup) -> str:
    text = device.describe(training=True)
    return f'{group.world_size} ranks, each on {text}' if group.world_size > 1 else text


def _log_data(
    data: TrainingData, index: ClassIndex, new_classes: list[str], device: Device, group: ProcessGroup
) -> None:
    counts = index.class_counts[index.class_counts > 0]
    uncapped = len(data.train) if data.train_rows is None else len(data.train_rows)
    images = count_of(len(index), 'image') + f' (of {uncapped:,}, by DATASET.HEAD_CAP)' * (len(index) < uncapped)
    classes = count_of(data.train.num_classes, 'class', 'classes')
    LOGGER.info('train: %s of %s, %d to %d per class', images, classes, counts.min(), counts.max())
    if len(counts) == 1:
        LOGGER.warning('all training images are of one class: the model learns to predict it for every image')
    num_valid = len(data.valid) if data.valid else 0
    LOGGER.info('valid: %s', count_of(num_valid, 'image') if num_valid else 'none')
    LOGGER.info('device: %s', _device_text(device, group))
    if new_classes:
        number = count_of(len(new_classes), 'class', 'classes')
        LOGGER.info('%s new to the checkpoint: %s', number, few_names(new_classes))
