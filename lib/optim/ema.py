"""Exponential moving average (EMA) of the weights, for evaluation."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from lib.distributed.fully_sharded import local_tensor


class ModelEMA:
    """EMA of all entries of a model's state_dict: w_ema <- decay w_ema + (1 - decay) w.

    After t updates w_ema(t) = decay^t w(0) + (1 - decay) sum_{i=1..t} decay^(t - i) w(i), with w(0) the weights at
    construction (Tarvainen & Valpola, NeurIPS 2017, eq. 1). Float buffers, such as BatchNorm statistics, are averaged
    as well; integer buffers are copied. The EMA is on the device and in the memory format of the model; of parameters
    that are sharded over the ranks (lib/distributed/fully_sharded.py), it is that of this rank's rows.

    Args:
        model: on its final device; afterwards its tensors may only be modified in place.
        decay: from 0 (a copy of the weights) to below 1.
        constant: names of entries that no step changes, such as those of a frozen backbone: their average is their
            value, so updates cost nothing. Parameters without a gradient are constant anyway.
    """

    def __init__(self, model: nn.Module, decay: float, *, constant: Collection[str] = ()) -> None:
        self._decay = decay
        state = {name: local_tensor(value) for name, value in model.state_dict().items()}
        self._ema = {name: value.clone() for name, value in state.items()}
        skipped = {*constant, *(name for name, weight in model.named_parameters() if not weight.requires_grad)}
        # The tensors of the model, not copies.
        self._weights = {name: value for name, value in state.items() if name not in skipped}
        self._float_pairs, self._integer_pairs = self._pairs(floating=True), self._pairs(floating=False)

    def _pairs(self, *, floating: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        names = [name for name, value in self._weights.items() if value.is_floating_point() is floating]
        return [self._ema[name] for name in names], [self._weights[name] for name in names]

    def update(self) -> None:
        """Update the EMA with the current weights; call it after each step. Does not wait for the device."""
        if self._float_pairs[0]:
            torch._foreach_lerp_(*self._float_pairs, 1 - self._decay)
        if self._integer_pairs[0]:
            torch._foreach_copy_(*self._integer_pairs)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the EMA under the names of the model's state_dict; the next update modifies these tensors."""
        return dict(self._ema)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy a saved EMA.

        Raises:
            ValueError: it is the EMA of another model.
        """
        if _shapes(state) != _shapes(self._ema):
            raise ValueError('the saved EMA belongs to a model with other names or shapes')
        for name, value in self._ema.items():
            value.copy_(state[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the model the EMA weights within the context, and restore its own weights bit for bit after it."""
        weights = list(self._weights.values())
        backup = [value.clone() for value in weights]
        torch._foreach_copy_(weights, [self._ema[name] for name in self._weights])
        try:
            yield
        finally:
            torch._foreach_copy_(weights, backup)


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}
