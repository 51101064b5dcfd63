"""A module whose parameters torch's fully_shard (FSDP2) splits over the ranks, seen by the others as plain tensors.

Of a parameter with n rows, rank r holds c of them from row r c on, with c = ceil(n / ranks), and so of its gradient,
optimizer state and moving average (ZeRO stage 3: Rajbhandari et al., SC 2020; Zhao et al., VLDB 2023). A block of the
module is whole on every rank only while it computes. The rows are plain parameters here, not torch's DTensors:
optimizers, clipping and averages treat them like the rows of a sharded classifier.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lib.distributed.gather import gather_rows
from lib.distributed.process_group import ProcessGroup


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's rows of a tensor that fully_shard has split, sharing its memory; another one unchanged."""
    # By its attribute, since importing DTensor takes a second.
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return all rows of a tensor that fully_shard has split; another one unchanged. All ranks call it."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor


class FullySharded:
    """The parameters of a module, of which each rank holds some rows. Splits them where they are.

    Scalars stay whole on every rank; their gradients, unlike those of the rows, are not averaged over the ranks.

    Args:
        module: on its device, in the same state on every rank. Afterwards it is not moved to another one.
        blocks: submodules that are whole at the same time, in the order of computation. The rest of the module is
            whole from the beginning of a forward pass to the end of the backward pass.
        group: at least two ranks.
        prefix: before the names of the module's parameters, such as 'backbone.'.

    Attributes:
        rows: name -> this rank's rows, a parameter that gets the gradient, averaged over the ranks, from each backward
            pass.
    """

    def __init__(
        self, module: nn.Module, blocks: Sequence[nn.Module], group: ProcessGroup, *, prefix: str = ''
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        whole = {f'{prefix}{name}': parameter for name, parameter in module.named_parameters() if parameter.ndim}
        self._group = group
        # The modules have the type FSDPModule once they are sharded.
        self._module: Any = module
        self._blocks: list[Any] = list(blocks)
        self._lengths = {name: len(parameter) for name, parameter in whole.items()}
        for parameter in whole.values():  # fully_shard accepts no other memory format
            parameter.data = parameter.data.contiguous()
        mesh = init_device_mesh(next(iter(whole.values())).device.type, (group.world_size,))
        scalars = {parameter for parameter in module.parameters() if not parameter.ndim}
        for unit in (*self._blocks, module):
            unit.register_forward_hook(_copy_of_view)
            fully_shard(unit, mesh=mesh, ignored_params=scalars)
        self.rows: dict[str, nn.Parameter] = {}
        self._rows_of: dict[nn.Parameter, nn.Parameter] = {}
        split = {f'{prefix}{name}': parameter for name, parameter in module.named_parameters()}
        for name, parameter in whole.items():
            self.rows[name] = nn.Parameter(local_tensor(split[name].detach()), requires_grad=parameter.requires_grad)
            self._rows_of[parameter] = self.rows[name]
            if parameter.requires_grad:
                split[name].register_post_accumulate_grad_hook(_into(self.rows[name]))

    def rows_in_place_of_whole(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer of the whole parameters, without state until now, update this rank's rows of them."""
        for group in optimizer.param_groups:
            group['params'] = [self._rows_of.get(parameter, parameter) for parameter in group['params']]

    def slice_of(self, name: str) -> tuple[slice, int]:
        """Return this rank's rows of a parameter, and the number of all."""
        length = self._lengths[name]
        start = min(length, self._group.rank * -(-length // self._group.world_size))
        return slice(start, start + len(self.rows[name])), length

    def local(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a state_dict with this rank's rows of the whole tensors in it."""
        return {
            name: local_tensor(value) if hasattr(value, 'to_local') or name not in self.rows
            else value[self.slice_of(name)[0]]
            for name, value in state.items()
        }  # fmt: skip

    def whole(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a state_dict with all rows of its tensors in CPU memory, on the main rank. All ranks call it."""
        return {
            name: self._gathered(name, local_tensor(value)) if name in self.rows else value
            for name, value in state.items()
        }

    def whole_optimizer(self, state: dict[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
        """Return the state of an optimizer in the same way.

        Args:
            names: names of the parameters, by their index in it.
        """
        states = dict(state['state'])
        for index, name in names.items():
            states[index] = {
                key: self._gathered(name, value) if torch.is_tensor(value) and value.ndim else value
                for key, value in states.get(index, {}).items()
            }
        return state | {'state': {index: values for index, values in states.items() if values}}

    def _gathered(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        length, ranks = self._lengths[name], self._group.world_size
        most = -(-length // ranks)
        sizes = [min(most, max(0, length - rank * most)) for rank in range(ranks)]
        gathered = gather_rows(rows.detach(), sizes, self._group)
        return gathered.cpu() if self._group.is_main else gathered.new_empty(0)

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Hold all parameters whole on every rank within the block, so that forward passes need no other rank."""
        for unit in (self._module, *self._blocks):
            unit.reshard()  # it may be whole, with weights of before a change
            unit.unshard()
        for block in self._blocks:
            block.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for block in self._blocks:
                block.set_reshard_after_forward(True, recurse=False)
            for unit in (self._module, *self._blocks):
                unit.reshard()


def _copy_of_view(module: nn.Module, args: object, output: Any) -> Any:
    """Return a copy of an output that is a view, so that an operation in place does not remove fully_shard's hook."""
    return output.clone() if isinstance(output, torch.Tensor) and output._is_view() else output


def _into(rows: nn.Parameter) -> Callable[[torch.Tensor], None]:
    """Return a hook that adds the gradient of a parameter to that of its rows."""

    def move(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        gradient = local_tensor(parameter.grad)
        rows.grad = gradient if rows.grad is None else rows.grad.add_(gradient)
        parameter.grad = None

    return move
