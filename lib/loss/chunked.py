"""Classifier and loss over chunks of images, so that the logits of a whole batch are never in memory at once.

With a million classes the logits of 256 images take a gigabyte, and a loss saves two or three tensors of their size.
The loss of a batch is a sum over images, so the gradient of a chunk's logits can be computed right after them, added to
the gradients of features and classifier, and freed: all in the forward pass. Backward only multiplies by the gradient
of the loss.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lib.loss.sharded_logits import ClassSubset, ShardedLogits, loss_dtype

# Elements of the weight per matrix product. Libraries copy the result of a product with few rows, and half precision
# products are accumulated in float32, so the temporary memory is bounded by the block.
_BLOCK_ELEMENTS = 2**23

# (logits of a chunk, its images, their rows of `extra`) -> the chunk's contribution to the loss, a scalar. Only one
# loss may read the logits, because it overwrites their memory.
ChunkLoss = Callable[[ShardedLogits, slice, torch.Tensor | None], torch.Tensor]


def chunked_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    chunk_loss: ChunkLoss,
    *,
    chunk: int = 0,
    subset: ClassSubset | None = None,
    extra: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of the logits x weight^T + bias, summed over chunks of images, and the predicted classes.

    Memory beyond the inputs' gradients: what chunk_loss allocates for a chunk, logits included. Nothing is recomputed.
    With `subset`, the gradients of x and extra are this shard's contributions: their sum over all shards is the
    gradient.

    Args:
        x: (batch, num_features); matrix products are computed in its dtype. Gradients are accumulated in float32
            (float64 for float64 x).
        weight: (num_columns, num_features), of x's dtype or a more exact one; or (num_columns, num_centers,
            num_features), and the logit of a column is the largest of its centers.
        bias: (num_columns,) or None; None with centers.
        chunk_loss: the loss of a chunk, divided by the normalizer of the whole batch.
        chunk: images per chunk; 0: all.
        subset: the classes of the rows of weight; None: all.
        extra: (batch, ...), further input of the loss (features), with or without gradient.

    Returns:
        The loss, a scalar in float32 (float64 for float64 x), differentiable once; and the class with the largest logit
        over all shards, (batch,) int64. Autocast has no effect.
    """
    subset = subset or ClassSubset(range(len(weight)), len(weight))
    flat = weight.flatten(0, -2)
    return _ChunkedLoss.apply(x, flat, bias, extra, chunk_loss, chunk, subset, torch.is_grad_enabled())


@dataclass
class _Gradients:
    """Gradients accumulated over the chunks; None where no gradient is required."""

    x: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    extra: torch.Tensor | None
    is_weight_initialized: bool = False

    @classmethod
    def create(
        cls, inputs: tuple[torch.Tensor | None, ...], required: tuple[bool, ...], dtype: torch.dtype
    ) -> '_Gradients':
        """Return zeros; the weight's gradient stays uninitialized until the first chunk, which saves one pass."""

        def like(index: int, create: Callable[..., torch.Tensor]) -> torch.Tensor | None:
            tensor = inputs[index]
            return create(tensor, dtype=dtype) if required[index] and tensor is not None else None

        return cls(
            x=like(0, torch.zeros_like),
            weight=like(1, torch.empty_like),
            bias=like(2, torch.zeros_like),
            extra=like(3, torch.zeros_like),
        )

    def add(self, grad_logits: torch.Tensor, rows: slice, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Accumulate the gradient of the logits (rows, num_columns), given all of x and the weight in x's dtype."""
        if self.bias is not None:
            self.bias += grad_logits.sum(dim=0)
        factor = None
        if x.dtype == torch.float16:
            # Most probabilities of a large softmax are below float16's smallest number: scale the largest to 1.
            low, high = torch.aminmax(grad_logits)
            factor = torch.maximum(-low, high).clamp_min(torch.finfo(grad_logits.dtype).tiny).reciprocal()
            grad_logits = grad_logits * factor
        grad_logits = grad_logits.to(x.dtype)
        if self.x is not None:
            self.x[rows] = _unscaled(grad_logits @ weight, self.x.dtype, factor)
        if self.weight is None:
            return
        was_initialized, self.is_weight_initialized = self.is_weight_initialized, True
        if self.weight.dtype == x.dtype:
            self.weight.addmm_(grad_logits.T, x[rows], beta=int(was_initialized))
            return
        for classes in _class_blocks(weight):
            product = _unscaled(grad_logits[:, classes].T @ x[rows], self.weight.dtype, factor)
            if was_initialized:
                self.weight[classes] += product
            else:
                self.weight[classes] = product

    def scaled(self, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, weight, bias and extra times the factor, multiplied in place."""
        gradients = (self.x, self.weight, self.bias, self.extra)
        # Saves a pass over the weight; on other devices reading the factor would wait for the device.
        if factor.device.type == 'cpu' and factor == 1:
            return gradients
        return tuple(None if gradient is None else gradient.mul_(factor) for gradient in gradients)


class _ChunkedLoss(torch.autograd.Function):
    """x, weight, bias, extra -> the loss, the predicted classes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        extra: torch.Tensor | None,
        chunk_loss: ChunkLoss,
        chunk: int,
        subset: ClassSubset,
        is_grad_enabled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        required = tuple(is_grad_enabled and needs for needs in ctx.needs_input_grad[:4])
        dtype = loss_dtype(x)
        loss = x.new_zeros((), dtype=dtype)
        top = x.new_empty(len(x), dtype=dtype)
        predicted = torch.empty(len(x), dtype=torch.int64, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            used_weight = weight.to(x.dtype)
            used_bias = None if bias is None else bias.to(x.dtype)
            gradients = _Gradients.create((x, weight, bias, extra), required, dtype)
            memory = x.new_empty(min(chunk or len(x), len(x)), len(weight))  # reused by every chunk
            for rows in _slices(len(x), chunk or len(x)):
                logits, center = _of_nearest_center(_linear(x[rows], used_weight, used_bias, memory), len(subset))
                logits = logits.to(dtype)
                torch.max(logits, dim=1, out=(top[rows], predicted[rows]))
                extra_rows = None if extra is None else extra[rows].detach()
                value, grad_logits, grad_extra = _differentiate(chunk_loss, logits, subset, rows, extra_rows, required)
                loss += value
                del logits  # frees half precision logits, and those of losses that do not overwrite them
                if gradients.extra is not None and grad_extra is not None:
                    gradients.extra[rows] = grad_extra
                if grad_logits is not None:
                    if center is not None:
                        zeros = grad_logits.new_zeros(*center.shape, len(weight) // len(subset))
                        grad_logits = zeros.scatter_(2, center[..., None], grad_logits[..., None]).flatten(1)
                    gradients.add(grad_logits, rows, x, used_weight)
                del grad_logits
            if gradients.weight is not None and not gradients.is_weight_initialized:
                gradients.weight.zero_()  # no image
            predicted, num_shards = _argmax_over_shards(top, subset.to_classes(predicted), subset)
            if gradients.extra is not None:
                gradients.extra /= num_shards  # every shard computed the whole gradient
        ctx.gradients = gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias, extra)]
        ctx.mark_non_differentiable(predicted)
        return loss, predicted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError('a chunked loss can be differentiated once: compute the loss again')
        gradients, ctx.gradients = ctx.gradients.scaled(grad_loss), None
        cast = (g if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))
        return (*cast, None, None, None, None)


def _differentiate(
    chunk_loss: ChunkLoss,
    logits: torch.Tensor,
    subset: ClassSubset,
    rows: slice,
    extra: torch.Tensor | None,
    required: tuple[bool, ...],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return a chunk's loss and its gradients with respect to logits and extra."""
    leaves = [logits.requires_grad_()] if any(required[:3]) else []
    if required[3] and extra is not None:
        leaves.append(extra.requires_grad_())
    with torch.set_grad_enabled(bool(leaves)):
        value = chunk_loss(ShardedLogits(logits, subset, overwrite=True), rows, extra)
        gradients = list(torch.autograd.grad(value, leaves, materialize_grads=True)) if leaves else []
    grad_extra = gradients.pop() if required[3] else None
    return value.detach(), gradients[0] if gradients else None, grad_extra


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, memory: torch.Tensor) -> torch.Tensor:
    """Return x weight^T + bias, written to the first rows of `memory`."""
    logits = memory[: len(x)]
    for classes in _class_blocks(weight):
        out, rows = logits[:, classes], weight[classes].T
        if bias is None:
            torch.mm(x, rows, out=out)
        else:
            torch.addmm(bias[classes], x, rows, out=out)
    return logits


def _of_nearest_center(logits: torch.Tensor, num_columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the largest logits (rows, num_columns) and their centers, out of (rows, num_columns * num_centers).

    With one center per column the logits are returned as they are, and None.
    """
    if logits.shape[1] == num_columns:
        return logits, None
    values, centers = logits.unflatten(1, (num_columns, -1)).max(dim=2)
    return values, centers


def _class_blocks(weight: torch.Tensor) -> Iterator[slice]:
    return _slices(len(weight), max(1, _BLOCK_ELEMENTS // weight.shape[1]))


def _argmax_over_shards(top: torch.Tensor, classes: torch.Tensor, subset: ClassSubset) -> tuple[torch.Tensor, int]:
    """Return the class (batch,) with the largest logit over all shards, and the number of shards."""
    tops = subset.all_gather(top)  # (num_shards, batch)
    best = tops.argmax(dim=0, keepdim=True)
    return subset.all_gather(classes).gather(0, best).squeeze(0), len(tops)


def _unscaled(product: torch.Tensor, dtype: torch.dtype, factor: torch.Tensor | None) -> torch.Tensor:
    product = product.to(dtype)
    return product if factor is None else product.div_(factor)


def _slices(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, max(1, step)):
        yield slice(start, min(start + step, total))
