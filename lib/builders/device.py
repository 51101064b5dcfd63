"""RUN -> the device of this process; TRAIN.BATCH_SIZE and TRAIN.DEVICE_BATCH_SIZE -> micro-batches."""

from collections.abc import Callable

import torch

from lib.backbone.create import num_features_of
from lib.builders.loader import train_sizes
from lib.config.defaults import Config
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.loss.targets import Targets
from lib.runtime.device import Device, pick_device
from lib.runtime.log import LOGGER
from lib.trainer.forward import LossScale, TrainingForward
from lib.trainer.microbatch import MicroBatches, fits, largest_that_fits, split_batch
from lib.trainer.objective import Objective


def build_device(cfg: Config, group: ProcessGroup) -> Device:
    """Return the device: under torchrun one GPU per rank of a machine, else RUN.DEVICE.

    Raises:
        UserError: RUN.DEVICE does not exist, or there are more ranks than GPUs.
    """
    name = cfg.RUN.DEVICE
    if group.world_size > 1 and (name == 'cuda' or (name == 'auto' and torch.cuda.is_available())):
        name = f'cuda:{group.local_rank}'
    device = pick_device(name, cfg.RUN.PRECISION, cfg.RUN.MEMORY_FORMAT)
    if cfg.MODEL.SYNC_BATCHNORM and (device.main.type != 'cuda' or group.world_size == 1):
        LOGGER.warning('MODEL.SYNC_BATCHNORM True has no effect: it is for GPUs of several torchrun ranks')
    return device


_STATES = {'sgd': 1, 'adam': 2, 'adamw': 2}  # tensors of the optimizer state per parameter


def build_micro_batches(
    cfg: Config,
    batch_size: int,
    forward: TrainingForward,
    objective: Objective,
    device: Device,
    group: ProcessGroup,
) -> MicroBatches:
    """Return the micro-batches of a batch of `batch_size` images over all ranks.

    Raises:
        UserError: not even two images fit into the GPU's memory.
    """
    max_images = cfg.TRAIN.DEVICE_BATCH_SIZE
    whole = split_batch(batch_size, group)
    if max_images >= 0:
        return split_batch(batch_size, group, max_images) if max_images else whole
    if device.main.type != 'cuda':
        LOGGER.info('TRAIN.DEVICE_BATCH_SIZE -1 is for GPUs: no micro-batches')
        return whole
    largest = max(whole.sizes[0])
    fitting = largest_that_fits(fits(_trial(cfg, forward, objective, device)), largest)
    max_images = min(group.all_gather_objects(fitting))  # the ranks' GPUs may differ in memory
    if not max_images:
        raise UserError(
            f'TRAIN.DEVICE_BATCH_SIZE -1: not even {min(2, largest)} images fit into the memory of the device; '
            'a smaller INPUT.SIZE or MODEL.BACKBONE needs less, and LOSS.CHUNK_IMAGES where there are many classes'
        )
    LOGGER.info('%d of %d images fit a device at once (TRAIN.DEVICE_BATCH_SIZE -1)', max_images, largest)
    return split_batch(batch_size, group, max_images)


def _trial(cfg: Config, forward: TrainingForward, objective: Objective, device: Device) -> Callable[[int], None]:
    """Return a function that computes a step of a number of images beside memory for the optimizer's state."""
    size = max(train_sizes(cfg).values())
    shape = (num_features_of(forward.model.backbone),) if cfg.TRAIN.FEATURES == 'cached' else (3, size, size)

    def run(num_images: int) -> None:
        parameters = [parameter for parameter in forward.parameters() if parameter.requires_grad]
        buffers = [buffer.clone() for buffer in forward.buffers()]
        states: list[torch.Tensor] = []
        try:
            states += [torch.empty_like(weight) for weight in parameters for _ in range(_STATES[cfg.OPTIMIZER.TYPE])]
            images = torch.zeros(num_images, *shape, device=device.main)
            if len(shape) == 3:
                images = images.contiguous(memory_format=device.memory_format)
            targets = Targets(torch.zeros(num_images, dtype=torch.int64, device=device.main))
            scale = LossScale(objective.normalizer(targets), 1.0, 0, (num_images,))
            objective(forward.train()(images), targets, images, scale).loss.backward()
        finally:
            states.clear()
            for parameter in parameters:
                parameter.grad = None
            for buffer, before in zip(forward.buffers(), buffers, strict=True):
                buffer.copy_(before)

    return run
