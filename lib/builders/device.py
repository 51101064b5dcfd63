"""RUN in the config -> the device of this process.

TRAIN.BATCH_SIZE and TRAIN.DEVICE_BATCH_SIZE in the config -> how a batch is computed.
"""

from collections.abc import Callable

import torch

from lib.config.defaults import Config
from lib.distributed.process_group import ProcessGroup
from lib.loss.targets import Targets
from lib.runtime.device import Device, pick_device
from lib.runtime.log import LOGGER
from lib.trainer.forward import LossScale, TrainingForward
from lib.trainer.microbatch import MicroBatches, fits, largest_that_fits, split_batch
from lib.trainer.objective import Objective


def build_device(cfg: Config, group: ProcessGroup) -> Device:
    """Return the device: under torchrun a GPU for each rank of a machine, else what RUN.DEVICE says.

    Raises:
        UserError: RUN.DEVICE is not there, or there are more ranks than GPUs.
    """
    name = cfg.RUN.DEVICE
    if group.world_size > 1 and (name == 'cuda' or (name == 'auto' and torch.cuda.is_available())):
        name = f'cuda:{group.local_rank}'
    device = pick_device(name, cfg.RUN.PRECISION)
    if cfg.MODEL.SYNC_BATCHNORM and (device.main.type != 'cuda' or group.world_size == 1):
        LOGGER.warning('MODEL.SYNC_BATCHNORM True changes nothing here: it is for GPUs of several torchrun ranks')
    return device


_STATES = {'sgd': 1, 'adam': 2, 'adamw': 2}  # tensors that an optimiser keeps a parameter


def build_micro_batches(
    cfg: Config,
    batch_size: int,
    forward: TrainingForward,
    objective: Objective,
    device: Device,
    group: ProcessGroup,
) -> MicroBatches:
    """Return the parts of a batch of `batch_size` images, all ranks together.

    Raises:
        UserError: not even two images fit into the GPU's memory.
    """
    at_once = cfg.TRAIN.DEVICE_BATCH_SIZE
    whole = split_batch(batch_size, group)
    if at_once < 0:
        at_once = 0
        if device.main.type == 'cuda':
            most = max(whole.sizes[0])
            own = largest_that_fits(fits(_trial(cfg, forward, objective, device)), most)
            at_once = min(group.all_gather_objects(own))  # the ranks' GPUs may have different memories
            LOGGER.info('%d of %d images fit a device at once (TRAIN.DEVICE_BATCH_SIZE -1)', at_once, most)
        else:
            LOGGER.info('TRAIN.DEVICE_BATCH_SIZE -1 is for GPUs; a batch is computed in one go')
    return split_batch(batch_size, group, at_once) if at_once else whole


def _trial(cfg: Config, forward: TrainingForward, objective: Objective, device: Device) -> Callable[[int], None]:
    """Return what computes a step of so many images, with the memory that the optimiser will take set aside."""
    size = max(cfg.INPUT.SIZE, *cfg.INPUT.SIZE_SCHEDULE[1::2])

    def run(num_images: int) -> None:
        parameters = [parameter for parameter in forward.parameters() if parameter.requires_grad]
        buffers = [buffer.clone() for buffer in forward.buffers()]
        states: list[torch.Tensor] = []
        try:
            states += [torch.empty_like(weight) for weight in parameters for _ in range(_STATES[cfg.OPTIMIZER.TYPE])]
            images = torch.zeros(num_images, 3, size, size, device=device.main)
            images = images.contiguous(memory_format=torch.channels_last)
            targets = Targets(torch.zeros(num_images, dtype=torch.int64, device=device.main))
            share = LossScale(objective.normalizer(targets), 1.0, 0, (num_images,))
            objective(forward.train()(images), targets, images, share).loss.backward()
        finally:
            states.clear()
            for parameter in parameters:
                parameter.grad = None
            for buffer, before in zip(forward.buffers(), buffers, strict=True):
                buffer.copy_(before)

    return run
