"""One module on several devices."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lib.distributed.process_group import ProcessGroup
from lib.runtime.device import Device, num_replicas


def wrap_parallel(
    module: nn.Module, device: Device, group: ProcessGroup, *, num_images: int, own: Sequence[nn.Parameter] = ()
) -> nn.Module:
    """Return the module as the training step calls it.

    Under torchrun its gradients are averaged over the ranks, those of the parameters `own` excepted: every rank has
    other ones. Else it is spread over the GPUs, when there are several; of `num_images` each gets at least two.
    """
    if group.world_size == 1:
        number = num_replicas(num_images, len(device.replicas))
        return DataParallel(module, device_ids=list(device.replicas[:number])) if number > 1 else module
    own_ids = set(map(id, own))
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    left_out = [name for name, parameter in named.items() if id(parameter) in own_ids]
    if len(left_out) == len(named):
        return module
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, left_out)
    with warnings.catch_warnings():
        # Its new name gives them out once at the start, but torch before 2.14 does not know it.
        warnings.filterwarnings('ignore', message='`broadcast_buffers`', category=FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=[device.main.index] if device.main.type == 'cuda' else None,
            # Running statistics take no part in training: those of the main rank are given out when they are needed.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def skip_gradient_sync(module: nn.Module, wanted: bool) -> AbstractContextManager:
    """Return a context in which gradients stay on their rank, for all but the last part of a batch."""
    if wanted and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def sync_buffers(module: nn.Module, group: ProcessGroup) -> None:
    """Give the main rank's buffers (BatchNorm's running statistics) to all ranks."""
    if group.world_size > 1:
        for buffer in module.buffers():
            group.broadcast(buffer)
