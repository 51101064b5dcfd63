"""The whole config -> the step, and the trainer that repeats it."""

from collections.abc import Sequence

from torch import nn

from lib.builders.device import build_micro_batches
from lib.builders.engine import build_engine
from lib.builders.loader import build_eval_loader
from lib.builders.mixing import build_mixed_stages, build_mixer, check_pairs
from lib.builders.model import model_at_test_size
from lib.builders.objective import build_objective, is_chunked
from lib.builders.optim import build_clip, build_optimizer, build_scaler, build_schedule, shard_backbone
from lib.builders.precision import step_format
from lib.builders.sampler import build_class_factors
from lib.builders.training_data import TrainingData
from lib.config.defaults import KEYS, Config
from lib.config.yaml_text import as_text, as_values
from lib.dataset.features import Features
from lib.dataset.index import ClassIndex
from lib.dataset.loader import FullBatchLoader, TrainLoader
from lib.distributed.parallel import wrap_parallel
from lib.distributed.process_group import ProcessGroup
from lib.model import Recognizer
from lib.optim.ema import ModelEMA
from lib.runtime.device import Compiled, Device, num_replicas
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.state import TrainingSet
from lib.trainer.forward import TrainingForward
from lib.trainer.lbfgs import LBFGSStep, regularization_path
from lib.trainer.run_folder import RunFolder
from lib.trainer.samples import SampleRecord
from lib.trainer.selection import LAST, ModelSelector
from lib.trainer.step import TrainStep
from lib.trainer.trackers import Trackers
from lib.trainer.train_state import RunInfo, TrainState
from lib.trainer.trainer import TrainConfig, Trainer
from lib.trainer.validation import Validator

# Keys that determine the weights. MAX_EPOCH may grow when a run is resumed, so it is not among them.
_RECIPE_SECTIONS = ('MODEL', 'LOSS', 'MIX', 'SAMPLER', 'OPTIMIZER', 'SCHEDULE', 'INPUT')
_RECIPE_KEYS = (
    'TRAIN.BATCH_SIZE',
    'TRAIN.EMA_DECAY',
    'TRAIN.HEAD_EPOCHS',
    'SEED',
    'DATASET.HEAD_CAP',
    'DATASET.COLOR_SPACE',
    'DATASET.CACHE',
    'TRAIN.FEATURES',
    'TRAIN.FEATURE_VIEWS',
    'TRAIN.FEATURE_DTYPE',
)
_MAIN_KEYS = (
    'SEED',
    'INPUT.SIZE',
    'SAMPLER.TYPE',
    'MODEL.BACKBONE',
    'MODEL.CLASSIFIER',
    'LOSS.TYPE',
    'MIX.TYPE',
    'OPTIMIZER.TYPE',
    'OPTIMIZER.LR',
    'OPTIMIZER.WEIGHT_DECAY',
    'SCHEDULE.TYPE',
    'TRAIN.BATCH_SIZE',
    'TRAIN.MAX_EPOCH',
)
# Keys of these sections that change how the weights are computed, but not the weights.
_NO_RECIPE = ('MODEL.BACKBONE_SHARDED', 'MODEL.CLASSIFIER_SHARDED', 'LOSS.CHUNK_IMAGES')


def recipe_of(cfg: Config) -> dict[str, object]:
    """Return the keys that determine the weights of a run, with their values."""
    return {
        name: value
        for name, value in as_values(cfg).items()
        if name in _RECIPE_KEYS or (name.split('.')[0] in _RECIPE_SECTIONS and name not in _NO_RECIPE)
    }


def hyper_parameters(cfg: Config) -> dict[str, bool | float | str]:
    """Return the keys that distinguish runs: the most important ones, and others that differ from their defaults."""
    recipe = recipe_of(cfg)
    return {
        name: ', '.join(f'{number:g}' for number in value) if isinstance(value, tuple) else value
        for name, value in as_values(cfg).items()
        if name in _MAIN_KEYS or (name in recipe and value != KEYS[name].default)
    }


def unreached_epochs(cfg: Config) -> list[str]:
    """Return a sentence for each key in epochs that has no effect, or no end, in a run of TRAIN.MAX_EPOCH epochs."""
    max_epoch = cfg.TRAIN.MAX_EPOCH
    starts: dict[str, Sequence[float]] = {
        'SCHEDULE.MILESTONE_EPOCHS': cfg.SCHEDULE.MILESTONE_EPOCHS if cfg.SCHEDULE.TYPE == 'multistep' else (),
        'SAMPLER.SWITCH_EPOCH': (cfg.SAMPLER.SWITCH_EPOCH,) if cfg.SAMPLER.SWITCH_TYPE else (),
        'LOSS.REWEIGHT_EPOCH': (cfg.LOSS.REWEIGHT_EPOCH,),
        'TRAIN.HEAD_EPOCHS': (cfg.TRAIN.HEAD_EPOCHS,),
        'INPUT.SIZE_SCHEDULE': cfg.INPUT.SIZE_SCHEDULE[::2],
    }
    late = {name: [f'{epoch:g}' for epoch in epochs if epoch >= max_epoch] for name, epochs in starts.items()}
    run = f'{max_epoch} epoch{"" if max_epoch == 1 else "s"}'
    lines = [f'{name} {", ".join(epochs)}: not reached in {run}' for name, epochs in late.items() if epochs]
    if cfg.MIX.TYPE and max_epoch <= cfg.MIX.OFF_EPOCHS:
        lines.append(f'MIX.OFF_EPOCHS {cfg.MIX.OFF_EPOCHS}: no image is mixed in {run}')
    return lines if max_epoch else []


def build_trainer(
    cfg: Config,
    data: TrainingData,
    index: ClassIndex,
    model: Recognizer,
    training_set: TrainingSet,
    loader: TrainLoader | FullBatchLoader,
    folder: RunFolder,
    device: Device,
    group: ProcessGroup,
    valid_features: Features | None = None,
) -> Trainer:
    """Return the trainer of `model` on the rows of `index`; nothing is written yet.

    Args:
        training_set: identity of the training set and class counts for checkpoints.
        loader: training batches.
        folder: folder of the run.
        valid_features: features of the validation split, with TRAIN.FEATURES cached.

    Raises:
        UserError: settings that do not fit together, such as a batch too small for the ranks.
    """
    return Trainer(
        config=TrainConfig(
            max_epoch=cfg.TRAIN.MAX_EPOCH,
            valid_every_epochs=cfg.TRAIN.VALID_EVERY_EPOCHS,
            log_every_steps=cfg.TRAIN.LOG_EVERY_STEPS,
            selector=_build_selector(cfg, data),
            save_minutes=cfg.TRAIN.CHECKPOINT_MINUTES,
            max_bad_fraction=cfg.DATASET.MAX_BAD_FRACTION,
        ),
        info=RunInfo(as_text(cfg), recipe_of(cfg), training_set, step_format(device), hyper_parameters(cfg)),
        step=build_step(cfg, data, index, model, loader, device, group),
        loader=loader,
        mixer=build_mixer(cfg, index.class_counts, device.main),
        validator=_build_validator(cfg, data, training_set, folder, device, group, valid_features),
        folder=folder,
        image_name=lambda row: data.train.names[row].as_py(),
        num_images=len(index),
        trackers=Trackers(folder, cfg.LOG.TRACKERS),
    )


def _build_validator(
    cfg: Config,
    data: TrainingData,
    training_set: TrainingSet,
    folder: RunFolder,
    device: Device,
    group: ProcessGroup,
    features: Features | None,
) -> Validator | None:
    if data.valid is None:
        return None
    takes_features, num_images = features is not None, len(data.valid)
    return Validator(
        build_eval_loader(cfg, data.valid, device, group, features=features),
        data.valid.names,
        training_set.class_counts,
        group,
        None if takes_features else model_at_test_size(cfg, device),
        takes_features,
        lambda model: build_engine(cfg, model, device, group, num_images=num_images, folder=folder.path),
    )


def build_step(
    cfg: Config,
    data: TrainingData,
    index: ClassIndex,
    model: Recognizer,
    loader: TrainLoader | FullBatchLoader,
    device: Device,
    group: ProcessGroup,
) -> TrainStep | LBFGSStep:
    """Return the training step of `model`, with optimizer, EMA and scaler in their initial state.

    Raises:
        UserError: settings that do not fit together.
    """
    if isinstance(loader, FullBatchLoader):
        return _build_lbfgs_step(cfg, data, index, model, loader, device, group)
    stages = build_mixed_stages(cfg, model.backbone)
    takes_features = cfg.TRAIN.FEATURES == 'cached'
    forward = TrainingForward(model, stages, classifies=not is_chunked(cfg), takes_features=takes_features)
    objective = build_objective(cfg, index.class_counts, model, device, data.class_names, group)
    micro_batches = build_micro_batches(cfg, loader.batch_size, forward, objective, device, group)
    num_images = max(size for sizes in micro_batches.sizes for size in sizes)
    check_pairs(cfg, num_images, len(device.replicas))
    callable_forward = _compiled(forward, device, group, num_images) if cfg.RUN.COMPILE else forward
    # Ranks that hold different classes have no gradients of the classifier to average.
    rank_parameters = list(model.classifier.parameters()) if cfg.MODEL.CLASSIFIER_SHARDED else []
    optimizer = build_optimizer(cfg, model)
    sharded = shard_backbone(cfg, model, optimizer, group) if cfg.MODEL.BACKBONE_SHARDED else None
    wrapped = callable_forward
    if sharded is None:
        wrapped = wrap_parallel(callable_forward, device, group, num_images=num_images, sharded=rank_parameters)
    state = TrainState(
        model=model,
        optimizer=optimizer,
        scaler=build_scaler(model, device, group, backbone_sharded=sharded is not None),
        ema=_build_ema(cfg, model),
        samples=SampleRecord(len(data.train), data.train.digest(), group) if cfg.TRAIN.TRACK_SAMPLES else None,
        sharded=sharded,
    )
    return TrainStep(
        state=state,
        forward=wrapped,
        objective=objective,
        schedule=build_schedule(cfg, loader.steps_per_epoch),
        seed=cfg.SEED,
        micro_batches=micro_batches,
        clip=build_clip(cfg, model, group, () if sharded is None else sharded.rows.values()),
        group=group,
        head_epochs=cfg.TRAIN.HEAD_EPOCHS,
    )


def _build_lbfgs_step(
    cfg: Config,
    data: TrainingData,
    index: ClassIndex,
    model: Recognizer,
    loader: FullBatchLoader,
    device: Device,
    group: ProcessGroup,
) -> LBFGSStep:
    return LBFGSStep(
        state=TrainState(model, build_optimizer(cfg, model)),
        objective=build_objective(cfg, index.class_counts, model, device, data.class_names, group),
        schedule=regularization_path(cfg.OPTIMIZER.FIRST_LAMBDA),
        blocks=loader.blocks,
        class_factors=build_class_factors(cfg, index, device.main),
        seed=cfg.SEED,
        group=group,
    )


def _build_ema(cfg: Config, model: Recognizer) -> ModelEMA | None:
    decay = cfg.TRAIN.EMA_DECAY
    return ModelEMA(model, decay, constant=model.constant_names()) if decay else None


def _build_selector(cfg: Config, data: TrainingData) -> ModelSelector:
    """Return the selector of the best model, which is the last epoch where no validation is possible."""
    num_shared = data.shares_images()
    if data.valid is None:
        LOGGER.warning('no validation split: the last epoch counts as best')
        return ModelSelector(LAST)
    if num_shared:
        LOGGER.warning(
            '%d of %d validation images are training images; the last epoch counts as best', num_shared, len(data.valid)
        )
        return ModelSelector(LAST)
    return ModelSelector(cfg.TRAIN.SELECT_BY, cfg.TRAIN.SELECT_RULE == 'one_standard_error', data.valid.digest())


def _compiled(forward: TrainingForward, device: Device, group: ProcessGroup, num_images: int) -> nn.Module:
    if group.world_size == 1 and num_replicas(num_images, len(device.replicas)) > 1:
        LOGGER.warning(
            'RUN.COMPILE: the model is not compiled, since one process has %d GPUs: start a process for each of them '
            '(torchrun --nproc-per-node %d main.py ...), or use one, --RUN_DEVICE cuda:0',
            len(device.replicas), len(device.replicas),
        )  # fmt: skip
        return forward
    return Compiled(forward)
