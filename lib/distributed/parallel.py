"""DistributedDataParallel or DataParallel around a module, and the synchronization of gradients and buffers."""

import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lib.distributed.process_group import ProcessGroup
from lib.runtime.device import Device, num_replicas


def wrap_parallel(
    module: nn.Module, device: Device, group: ProcessGroup, *, num_images: int, sharded: Sequence[nn.Parameter] = ()
) -> nn.Module:
    """Return the module as the training step calls it.

    With several ranks, DistributedDataParallel averages its gradients, except those of the parameters in `sharded`,
    which differ between the ranks. In a single process with several GPUs, DataParallel spreads `num_images` images over
    as many GPUs as get at least 2 each.
    """
    if group.world_size == 1:
        number = num_replicas(num_images, len(device.replicas))
        return DataParallel(module, device_ids=list(device.replicas[:number])) if number > 1 else module
    sharded_ids = set(map(id, sharded))
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    ignored = [name for name, parameter in named.items() if id(parameter) in sharded_ids]
    if len(ignored) == len(named):
        return module
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    with warnings.catch_warnings():
        # torch 2.14 renamed the argument; its new name also broadcasts at the start and is unknown to older versions.
        warnings.filterwarnings('ignore', message='`broadcast_buffers`', category=FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=[device.main.index] if device.main.type == 'cuda' else None,
            # Running statistics have no influence on training; `sync_buffers` copies them when they are needed.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def skip_gradient_sync(module: nn.Module, skip: bool) -> AbstractContextManager:
    """Return a context without averaging of gradients (if `skip`): for all micro-batches but the last of a batch."""
    if skip and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def without_gradient_sync(module: nn.Module) -> nn.Module:
    """Return the module within DistributedDataParallel, which waits for the gradients of all its parameters."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def averages_gradients(module: nn.Module) -> bool:
    """Return whether the backward pass of a module averages the gradients of all its parameters over the ranks."""
    return isinstance(module, DistributedDataParallel)


def average_gradients(parameters: Iterable[nn.Parameter], group: ProcessGroup) -> None:
    """Average the gradients of those parameters that have one, in place of DistributedDataParallel."""
    for parameter in parameters:
        if group.world_size > 1 and parameter.grad is not None:
            parameter.grad = group.all_reduce(parameter.grad) / group.world_size


def sync_buffers(module: nn.Module, group: ProcessGroup, *, constant: Collection[str] = ()) -> None:
    """Copy the main rank's buffers (BatchNorm's running statistics) to all ranks, except those that never change."""
    if group.world_size > 1:
        for name, buffer in module.named_buffers():
            if name not in constant:
                group.broadcast(buffer)
