"""A whole training run out of a config: data, model, loss, optimiser, and where it starts from."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from lib.build.classifier_init import start_from_class_means
from lib.build.data import open_training_data
from lib.build.loader import build_eval_loader, build_train_loader
from lib.build.mixing import build_mixed_stages, build_mixer
from lib.build.model import class_names, finetuned_model, model_of, new_model
from lib.build.objective import build_objective
from lib.build.optim import build_optimizer, build_schedule
from lib.build.split import TrainingData, without_quarantined
from lib.config.yaml_text import as_node, as_text, as_values
from lib.dataset.index import ProductIndex
from lib.dataset.loader import EvalLoader
from lib.errors import UserError
from lib.evaluation.evaluate import Evaluation, evaluate
from lib.model import Recognizer
from lib.runtime.device import Device, pick_device
from lib.runtime.lock import locked
from lib.runtime.log import LOGGER, log_to
from lib.trainer.bad_images import BadImages
from lib.trainer.checkpoint import Place, TrainingSet, versions
from lib.trainer.fit import FitPlan, restore
from lib.trainer.forward import TrainingForward
from lib.trainer.resume import Start, Wanted, decide_start
from lib.trainer.run_folder import RunFolder, set_aside, write_bad_images
from lib.trainer.step import Learner

# What decides the weights; MAX_EPOCH may grow, so it is not among them.
_RECIPE_SECTIONS = ('MODEL', 'LOSS', 'MIX', 'SAMPLER', 'OPTIMIZER', 'SCHEDULE', 'INPUT')
_RECIPE_KEYS = ('TRAIN.BATCH_SIZE', 'SEED', 'DATASET.HEAD_CAP', 'DATASET.COLOR_SPACE', 'DATASET.CACHE')


@dataclass
class Training:
    """Everything that fit() and the report need."""

    cfg: CfgNode
    data: TrainingData
    device: Device
    learner: Learner
    plan: FitPlan
    place: Place
    folder: RunFolder
    bad_images: BadImages
    valid_loader: EvalLoader | None

    def validate(self, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return the metrics of the model as it is, images_per_second and seconds too; {} without a valid split.

        `check` is called after each batch; what it raises ends the pass.
        """
        if not self.data.valid:
            return {}
        started = time.perf_counter()
        metrics = self.evaluate(self.learner.model, check).metrics
        seconds = time.perf_counter() - started
        return {**metrics, 'images_per_second': len(self.data.valid) / seconds, 'seconds': seconds}

    def evaluate(self, model: Recognizer, check: Callable[[], None] = lambda: None) -> Evaluation:
        """Evaluate a model on the validation split, and list images that could not be decoded."""
        found = evaluate(
            model,
            self.valid_loader,
            num_classes=self.data.train.num_classes,
            train_counts=self.plan.training_set.class_counts,
            look_at=lambda *_: check(),
        )
        bad = {self.data.valid.names[row].as_py(): reason for row, reason in found.bad}
        write_bad_images(self.folder.path, 'valid', bad)
        return found


@contextmanager
def prepared_training(cfg: CfgNode) -> Iterator[Training]:
    """Build a run and hold its folder. Nothing is written before everything is built and checked.

    Raises:
        UserError: any mistake in config, data or checkpoint; the folder is in use or used.
    """
    device = pick_device(cfg.RUN.DEVICE, cfg.RUN.PRECISION)
    data = without_quarantined(open_training_data(cfg), cfg.DATASET.QUARANTINE)
    start = decide_start(_wanted(cfg, data))
    cfg = as_node({**as_values(cfg), 'NAME': start.folder.name})
    index = data.index().capped(cfg.DATASET.HEAD_CAP, cfg.SEED)
    model, training_set, new_classes = _model(cfg, data, index, device, start)
    loader = build_train_loader(cfg, data.train, index, device)
    stages = build_mixed_stages(cfg, model.backbone, batch_size=loader.batch_size, num_replicas=len(device.replicas))
    learner = Learner(
        model=model,
        forward=device.parallel(TrainingForward(model, stages)),
        objective=build_objective(cfg, index.class_counts, model, device, data.class_names),
        mixer=build_mixer(cfg, index.class_counts, device.main),
        optimizer=build_optimizer(cfg, model),
        schedule=build_schedule(cfg, loader.steps_per_epoch),
        loader=loader,
        seed=cfg.SEED,
    )
    place = restore(learner, start.checkpoint) if start.kind == 'continue' else Place()
    if start.set_aside:
        LOGGER.info('the earlier run is kept as %s', set_aside(start.folder))
    with locked(start.folder):
        folder = RunFolder(start.folder, save_every=cfg.TRAIN.SAVE_EVERY_EPOCHS, keep=cfg.TRAIN.KEEP_EPOCHS)
        folder.start_from(start.checkpoint if start.kind == 'continue' else None)
        log_to(folder.path / 'log.txt')
        folder.write_about(as_text(cfg), {'device': device.describe(training=True), **versions()})
        LOGGER.info('%s: %s', folder.path, start.reason)
        _tell(data, index, new_classes, device)
        yield Training(
            cfg=cfg,
            data=data,
            device=device,
            learner=learner,
            plan=_fit_plan(cfg, data, training_set),
            place=place,
            folder=folder,
            bad_images=BadImages(
                folder, lambda row: data.train.names[row].as_py(), len(index), cfg.DATASET.MAX_BAD_FRACTION
            ),
            valid_loader=build_eval_loader(cfg, data.valid, device) if data.valid else None,
        )


def recipe_of(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys that decide the weights of a run."""
    return {
        name: value
        for name, value in as_values(cfg).items()
        if name in _RECIPE_KEYS or name.split('.')[0] in _RECIPE_SECTIONS
    }


def _wanted(cfg: CfgNode, data: TrainingData) -> Wanted:
    return Wanted(
        folder=Path(cfg.LOG_ROOT, cfg.NAME),
        resume_model=cfg.RESUME_MODEL,
        resume_mode=cfg.RESUME_MODE,
        overwrite=cfg.OVERWRITE,
        recipe=recipe_of(cfg),
        train_digest=data.train_digest(),
        max_epoch=cfg.TRAIN.MAX_EPOCH,
    )


def _model(
    cfg: CfgNode, data: TrainingData, index: ProductIndex, device: Device, start: Start
) -> tuple[Recognizer, TrainingSet, list[str] | None]:
    """Return the model, what its checkpoints say of the training set, and which classes are new to it."""
    names, parents = data.class_names, data.classes.parents if data.classes else []
    counts = np.bincount(data.train.labels, minlength=data.train.num_classes)
    own = TrainingSet(data.train_digest(), counts, names, parents)
    if start.kind == 'new':
        return new_model(cfg, data.train.num_classes, device), own, None
    known = start.checkpoint.training_set
    if start.kind == 'continue':
        return model_of(start.checkpoint, cfg, device), known, None
    model, new = finetuned_model(start.checkpoint, cfg, device, names)
    if cfg.MODEL.CLASSIFIER_INIT == 'class_means':
        start_from_class_means(cfg, model, data.train, index, device)
    if known:
        # Many, medium and few stay what they were in the original training set; new classes bring their own counts.
        before = dict(zip(class_names(start.checkpoint), known.class_counts, strict=True))
        own.class_counts = np.array([before.get(name, count) for name, count in zip(names, counts, strict=True)])
    return model, own, new


def _fit_plan(cfg: CfgNode, data: TrainingData, training_set: TrainingSet) -> FitPlan:
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


def _tell(data: TrainingData, index: ProductIndex, new_classes: list[str] | None, device: Device) -> None:
    counts = index.class_counts[index.class_counts > 0]
    uncapped = len(data.train if data.kept is None else data.kept)
    capped = f' (of {uncapped}, by DATASET.HEAD_CAP)' if len(index) < uncapped else ''
    LOGGER.info(
        '%d classes, %d to %d training images each, %d in all%s; %s for validation; %s',
        data.train.num_classes, counts.min(), counts.max(), len(index), capped,
        len(data.valid) if data.valid else 'none', device.describe(training=True),
    )  # fmt: skip
    if new_classes:
        shown = ', '.join(new_classes[:10]) + (', ...' if len(new_classes) > 10 else '')
        LOGGER.info('%d classes are new to the checkpoint: %s', len(new_classes), shown)
    if not len(index):
        raise UserError('the training set has no images')
