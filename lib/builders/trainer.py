"""All sections of the config that a training step needs -> what it needs."""

from torch import nn

from lib.builders.device import build_micro_batches
from lib.builders.loader import build_train_loader
from lib.builders.mixing import build_mixed_stages, build_mixer, check_pairs
from lib.builders.objective import build_objective, is_chunked
from lib.builders.optim import build_clip, build_optimizer, build_scaler, build_schedule
from lib.builders.split import TrainingData
from lib.config.defaults import Config
from lib.dataset.index import ClassIndex
from lib.distributed.parallel import wrap_parallel
from lib.distributed.process_group import ProcessGroup
from lib.model import Recognizer
from lib.optim.ema import ModelEMA
from lib.runtime.device import Compiled, Device, num_replicas
from lib.runtime.log import LOGGER
from lib.trainer.forward import TrainingForward
from lib.trainer.step import Learner


def build_learner(
    cfg: Config,
    data: TrainingData,
    index: ClassIndex,
    model: Recognizer,
    device: Device,
    group: ProcessGroup,
) -> Learner:
    """Return what trains `model` on the images of `index`.

    Raises:
        UserError: parts that do not go together, such as a batch too small for the ranks.
    """
    loader = build_train_loader(cfg, data.train, index, device, group)
    stages = build_mixed_stages(cfg, model.backbone)
    forward = TrainingForward(model, stages, classifies=not is_chunked(cfg))
    objective = build_objective(cfg, index.class_counts, model, device, data.class_names, group)
    parts = build_micro_batches(cfg, loader.batch_size, forward, objective, device, group)
    at_once = max(size for sizes in parts.sizes for size in sizes)
    check_pairs(cfg, at_once, len(device.replicas))
    if cfg.RUN.COMPILE:
        forward = _compiled(forward, device, group, at_once)
    # Ranks that hold other classes have nothing of them to average.
    own = list(model.classifier.parameters()) if cfg.MODEL.CLASSIFIER_SHARDED else []
    return Learner(
        model=model,
        forward=wrap_parallel(forward, device, group, num_images=at_once, own=own),
        objective=objective,
        mixer=build_mixer(cfg, index.class_counts, device.main),
        optimizer=build_optimizer(cfg, model),
        schedule=build_schedule(cfg, loader.steps_per_epoch),
        loader=loader,
        seed=cfg.SEED,
        parts=parts,
        group=group,
        scaler=build_scaler(model, device, group),
        clip=build_clip(cfg, model, group),
        average=ModelEMA(model, cfg.TRAIN.EMA_DECAY) if cfg.TRAIN.EMA_DECAY else None,
    )


def _compiled(forward: TrainingForward, device: Device, group: ProcessGroup, at_once: int) -> nn.Module:
    if group.world_size == 1 and num_replicas(at_once, len(device.replicas)) > 1:
        LOGGER.warning(
            'RUN.COMPILE: the model runs uncompiled, since one process has %d GPUs: start a process for each of them '
            '(torchrun --nproc-per-node %d main.py ...), or take one, --RUN_DEVICE cuda:0',
            len(device.replicas), len(device.replicas),
        )  # fmt: skip
        return forward
    return Compiled(forward)
