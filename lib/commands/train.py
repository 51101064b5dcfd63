"""A whole training run out of a config: data, model, loss, optimiser, and where it starts from."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.data import open_training_data
from lib.builders.device import build_device
from lib.builders.loader import build_eval_loader
from lib.builders.model import class_names, finetuned_model, held_classes, model_of, new_model, start_from_class_means
from lib.builders.split import TrainingData, without_quarantined
from lib.builders.trainer import build_learner
from lib.config.defaults import Config
from lib.config.yaml_text import as_node, as_text, as_values
from lib.dataset.index import ClassIndex
from lib.dataset.loader import EvalLoader
from lib.distributed.parallel import sync_buffers
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.distributed.rank_info import was_restarted
from lib.errors import UserError
from lib.inference.run import Evaluation, evaluate, evaluate_sharded
from lib.model import Recognizer
from lib.runtime.device import Device
from lib.runtime.files import lock_folder
from lib.runtime.log import LOGGER, log_to
from lib.trainer.checkpointing.state import TrainingSet, TrainProgress, versions
from lib.trainer.resume import ResumePlan, ResumeRequest, plan_resume
from lib.trainer.run_folder import BadImages, RunFolder, set_aside, write_bad_images
from lib.trainer.step import Learner
from lib.trainer.trainer import FitPlan, restore

# What decides the weights; MAX_EPOCH may grow, so it is not among them.
_RECIPE_SECTIONS = ('MODEL', 'LOSS', 'MIX', 'SAMPLER', 'OPTIMIZER', 'SCHEDULE', 'INPUT')
_RECIPE_KEYS = (
    'TRAIN.BATCH_SIZE',
    'TRAIN.EMA_DECAY',
    'SEED',
    'DATASET.HEAD_CAP',
    'DATASET.COLOR_SPACE',
    'DATASET.CACHE',
)

# What decides how they are computed, not what they are.
_NO_RECIPE = ('MODEL.CLASSIFIER_SHARDED', 'LOSS.CHUNK_IMAGES')


@dataclass
class Training:
    """Everything that fit() and the report need."""

    cfg: Config
    data: TrainingData
    device: Device
    learner: Learner
    plan: FitPlan
    progress: TrainProgress
    folder: RunFolder
    bad_images: BadImages
    valid_loader: EvalLoader | None
    group: ProcessGroup = SINGLE_PROCESS

    def validate(self, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return the metrics of the model, images_per_second and seconds too; {} without a valid split.

        Where weights are averaged, it is the average that is looked at. `check` is called after each batch; what it
        raises ends the pass.
        """
        if not self.data.valid:
            return {}
        started = time.perf_counter()
        average = self.learner.average
        with nullcontext() if average is None else average.swapped():
            sync_buffers(self.learner.model, self.group)
            metrics = self.evaluate(self.learner.model, check).metrics
        seconds = time.perf_counter() - started
        return {**metrics, 'images_per_second': len(self.data.valid) / seconds, 'seconds': seconds}

    def evaluate(self, model: Recognizer, check: Callable[[], None] = lambda: None) -> Evaluation:
        """Evaluate a model on the validation split, and list images that could not be decoded."""
        train_counts = self.plan.training_set.class_counts
        if self.cfg.MODEL.CLASSIFIER_SHARDED and self.group.world_size > 1:
            found = evaluate_sharded(model, self.valid_loader, train_counts=train_counts, group=self.group)
        else:
            found = evaluate(
                model,
                self.valid_loader,
                num_classes=self.data.train.num_classes,
                train_counts=train_counts,
                look_at=lambda *_: check(),
                group=self.group,
            )
        if not self.group.is_main:
            return found
        bad = {self.data.valid.names[row].as_py(): reason for row, reason in found.bad}
        write_bad_images(self.folder.path, 'valid', bad)
        return found


@contextmanager
def prepared_training(cfg: Config, group: ProcessGroup = SINGLE_PROCESS) -> Iterator[Training]:
    """Build a run and hold its folder. Nothing is written before everything is built and checked.

    Every rank builds the same; the main one alone writes.

    Raises:
        UserError: any mistake in config, data or checkpoint; the folder is in use or used.
    """
    device = build_device(cfg, group)
    with group.main_first():
        data = without_quarantined(open_training_data(cfg), cfg.DATASET.QUARANTINE)
    start = plan_resume(_wanted(cfg, data, group))
    cfg = as_node({**as_values(cfg), 'NAME': start.folder.name})
    index = data.index().capped(cfg.DATASET.HEAD_CAP, cfg.SEED)
    with group.main_first():
        model, training_set, new_classes = _model(cfg, data, index, device, start, group)
    learner = build_learner(cfg, data, index, model, device, group)
    place = TrainProgress()
    if start.kind == 'continue':
        place = restore(learner, start.checkpoint.with_rows(held_classes(cfg, data.train.num_classes, group)))
    # All ranks have read what they need of the folder by now.
    group.barrier()
    with _folder(cfg, start, device, group) as folder:
        group.barrier()  # nobody saves into it before it is in order
        LOGGER.info('%s: %s', folder.path, start.reason)
        _tell(data, index, new_classes, device, group)
        yield Training(
            cfg=cfg,
            data=data,
            device=device,
            learner=learner,
            plan=_fit_plan(cfg, data, training_set),
            progress=place,
            folder=folder,
            bad_images=BadImages(
                folder, lambda row: data.train.names[row].as_py(), len(index), cfg.DATASET.MAX_BAD_FRACTION
            ),
            valid_loader=build_eval_loader(cfg, data.valid, device, group) if data.valid else None,
            group=group,
        )


@contextmanager
def _folder(cfg: Config, start: ResumePlan, device: Device, group: ProcessGroup) -> Iterator[RunFolder]:
    """Hold the run folder; on other ranks than the main one, stand by."""
    keep = {'save_every': cfg.TRAIN.SAVE_EVERY_EPOCHS, 'keep': cfg.TRAIN.KEEP_EPOCHS}
    if not group.is_main:
        yield RunFolder(start.folder, **keep, writes=False)
        return
    if start.set_aside:
        LOGGER.info('the earlier run is kept as %s', set_aside(start.folder))
    with lock_folder(start.folder):
        folder = RunFolder(start.folder, **keep)
        folder.start_from(start.checkpoint if start.kind == 'continue' else None)
        log_to(folder.path / 'log.txt')
        folder.write_about(as_text(cfg), {'device': _describe(device, group), **versions()})
        yield folder


def _describe(device: Device, group: ProcessGroup) -> str:
    on_each = device.describe(training=True)
    return f'{group.world_size} ranks, each on {on_each}' if group.world_size > 1 else on_each


def recipe_of(cfg: Config) -> dict[str, Any]:
    """Return the keys that decide the weights of a run."""
    return {
        name: value
        for name, value in as_values(cfg).items()
        if name in _RECIPE_KEYS or (name.split('.')[0] in _RECIPE_SECTIONS and name not in _NO_RECIPE)
    }


def _wanted(cfg: Config, data: TrainingData, group: ProcessGroup) -> ResumeRequest:
    # What the first start put aside or began is gone on with, though the command line is that of the first start.
    # Machines count their restarts for themselves, so the ranks may know different ones.
    restarted = any(group.all_gather_objects(was_restarted()))
    goes_on = restarted and not cfg.RESUME_MODEL
    return ResumeRequest(
        folder=Path(cfg.LOG_ROOT, cfg.NAME),
        resume_model='last' if goes_on else cfg.RESUME_MODEL,
        resume_mode=cfg.RESUME_MODE,
        overwrite=cfg.OVERWRITE and not restarted,
        recipe=recipe_of(cfg),
        train_digest=data.train_digest(),
        max_epoch=cfg.TRAIN.MAX_EPOCH,
    )


def _model(
    cfg: Config, data: TrainingData, index: ClassIndex, device: Device, start: ResumePlan, group: ProcessGroup
) -> tuple[Recognizer, TrainingSet, list[str] | None]:
    """Return the model, what its checkpoints say of the training set, and which classes are new to it."""
    names, parents = data.class_names, data.classes.parents if data.classes else []
    counts = np.bincount(data.train.labels, minlength=data.train.num_classes)
    own = TrainingSet(data.train_digest(), counts, names, parents)
    classes = held_classes(cfg, data.train.num_classes, group)
    if start.kind == 'new':
        return new_model(cfg, data.train.num_classes, device, classes=classes), own, None
    known = start.checkpoint.training_set
    if start.kind == 'continue':
        return model_of(start.checkpoint, cfg, device, classes=classes), known, None
    model, new = finetuned_model(start.checkpoint, cfg, device, names, classes=classes)
    if cfg.MODEL.CLASSIFIER_INIT == 'class_means':
        start_from_class_means(cfg, model, data.train, index, device)
    if known:
        # Many, medium and few stay what they were in the original training set; new classes bring their own counts.
        before = dict(zip(class_names(start.checkpoint), known.class_counts, strict=True))
        own.class_counts = np.array([before.get(name, count) for name, count in zip(names, counts, strict=True)])
    return model, own, new


def _fit_plan(cfg: Config, data: TrainingData, training_set: TrainingSet) -> FitPlan:
    select_by = cfg.TRAIN.SELECT_BY
    shared = data.shares_images()
    if data.valid is None:
        LOGGER.warning('no validation split: the last epoch is kept as best')
        select_by = 'last'
    elif shared:
        LOGGER.warning(
            '%d of %d validation images are training images too, so their figures say nothing of new photos; '
            'the last epoch is kept as best', shared, len(data.valid),
        )  # fmt: skip
        select_by = 'last'
    return FitPlan(
        max_epoch=cfg.TRAIN.MAX_EPOCH,
        valid_every=cfg.TRAIN.VALID_EVERY_EPOCHS,
        log_every=cfg.TRAIN.LOG_EVERY_STEPS,
        save_minutes=cfg.TRAIN.CHECKPOINT_MINUTES,
        select_by=select_by,
        config=as_text(cfg),
        recipe=recipe_of(cfg),
        training_set=training_set,
    )


def _tell(
    data: TrainingData, index: ClassIndex, new_classes: list[str] | None, device: Device, group: ProcessGroup
) -> None:
    counts = index.class_counts[index.class_counts > 0]
    uncapped = len(data.train if data.kept is None else data.kept)
    capped = f' (of {uncapped}, by DATASET.HEAD_CAP)' if len(index) < uncapped else ''
    LOGGER.info(
        '%d classes, %d to %d training images each, %d in all%s; %s for validation; %s',
        data.train.num_classes, counts.min(), counts.max(), len(index), capped,
        len(data.valid) if data.valid else 'none', _describe(device, group),
    )  # fmt: skip
    if new_classes:
        shown = ', '.join(new_classes[:10]) + (', ...' if len(new_classes) > 10 else '')
        LOGGER.info('%d classes are new to the checkpoint: %s', len(new_classes), shown)
    if not len(index):
        raise UserError('the training set has no images')
