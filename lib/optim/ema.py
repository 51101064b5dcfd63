"""An exponential moving average of the weights, for evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class ModelEMA:
    """A moving average of all that a model's state_dict holds: w_ema <- decay w_ema + (1 - decay) w.

    After t updates w_ema(t) = decay^t w(0) + (1 - decay) sum_{i=1..t} decay^(t - i) w(i), with w(0) the weights that it
    is built with (Tarvainen & Valpola, NeurIPS 2017, eq. 1). Buffers of floats, such as BatchNorm's statistics, are
    averaged as well; integers are copied. It lives on the model's device, in the model's memory format.

    Args:
        model: on the device where it stays; its tensors change in place only.
        decay: what stays of the average in each update, from 0 (a copy of the weights) to below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = dict(model.state_dict())  # shares memory with the model
        self._average = {name: value.clone() for name, value in self._live.items()}
        self._averaged, self._copied = self._pairs(floating=True), self._pairs(floating=False)

    def _pairs(self, *, floating: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        names = [name for name, value in self._live.items() if value.is_floating_point() is floating]
        return [self._average[name] for name in names], [self._live[name] for name in names]

    def update(self) -> None:
        """Move the average towards the weights; to be called after each step. Does not wait for the device."""
        if self._averaged[0]:
            torch._foreach_lerp_(*self._averaged, 1 - self._decay)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averages under the names of the model's own state_dict; they change with the next update."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put averages that were saved in the place of these.

        Raises:
            ValueError: they are those of another model.
        """
        if _shapes(state) != _shapes(self._average):
            raise ValueError('the averages are those of a model with other names or shapes')
        for name, value in self._average.items():
            value.copy_(state[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Let the model have the averages within the block, and its own weights, bit for bit, after it."""
        live, average = list(self._live.values()), list(self._average.values())
        training = [value.clone() for value in live]
        torch._foreach_copy_(live, average)
        try:
            yield
        finally:
            torch._foreach_copy_(live, training)


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}
