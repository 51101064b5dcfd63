"""Classifier and loss over a few images at a time, so that the logits of a batch never exist.

With a million classes the logits of 256 images are a gigabyte, and a loss keeps two or three of their size. A loss of a
batch is a sum over images, so the gradient of a chunk's logits can be made right after them, worked into the gradients
of features and classifier, and dropped: all in the forward pass. Backward has only the factor of the loss to apply.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable

from lib.loss.sharded_logits import ClassSubset, ShardedLogits, loss_dtype

# Numbers of the weight that a product takes at a time. Libraries copy what comes out of a product with few rows, and
# half precision products are added up in float32, so memory is asked for by the block.
_BLOCK_NUMBERS = 2**23

# (logits of some images, which images, their rows of `extra`) -> what they add to the loss, a scalar. One loss alone
# looks at the logits, since it gets their memory.
LossOf = Callable[[ShardedLogits, slice, torch.Tensor | None], torch.Tensor]


def chunked_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    loss_of: LossOf,
    *,
    chunk: int = 0,
    columns: ClassSubset | None = None,
    extra: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of the logits x weight^T + bias, summed over chunks of the images, and what they predict.

    Memory beyond the inputs' gradients: what loss_of takes for a chunk, logits included. Nothing is recomputed.

    With `columns`, the gradients of x and extra are this part's share: summed over the parts they are the gradients.

    Args:
        x: (batch, num_features); its dtype is what products are computed in. Gradients are summed in float32 (float64).
        weight: (num_columns, num_features), of x's dtype or a more exact one.
        bias: (num_columns,) or None.
        loss_of: the loss of some images over the divisor of the whole batch.
        chunk: images at a time; 0: all.
        columns: the classes that the rows of weight are; None: all.
        extra: (batch, ...), what the loss looks at beside the logits, maybe with gradient.

    Returns:
        The loss, a scalar in float32 (float64 for float64 x), which can be differentiated once; and the class with the
        largest logit (batch,) int64, over all parts. Autocast changes nothing.
    """
    return _ChunkedLoss.apply(x, weight, bias, extra, loss_of, chunk, columns, torch.is_grad_enabled())


@dataclass
class _Gradients:
    """Sums of what the chunks give; None where no gradient is wanted."""

    x: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    extra: torch.Tensor | None
    has_weight: bool = False  # something was added to the weight's

    @classmethod
    def of(cls, inputs: tuple[torch.Tensor | None, ...], wanted: tuple[bool, ...], dtype: torch.dtype) -> '_Gradients':
        """Return the sums of no chunk; the weight's are not to be read before the first, which saves a pass."""
        makes = (torch.zeros_like, torch.empty_like, torch.zeros_like, torch.zeros_like)
        sums = (m(i, dtype=dtype) if w else None for m, i, w in zip(makes, inputs, wanted, strict=True))
        return cls(*sums)

    def add(self, of_logits: torch.Tensor, rows: slice, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Work in the gradient of the logits (rows, num_columns), given all of x and the weight in x's dtype."""
        if self.bias is not None:
            self.bias += of_logits.sum(dim=0)
        factor = None
        if x.dtype == torch.float16:
            # Most shares of a large softmax are below float16's smallest number, so the largest is brought to 1.
            low, high = torch.aminmax(of_logits)
            factor = torch.maximum(-low, high).clamp_min(torch.finfo(of_logits.dtype).tiny).reciprocal()
            of_logits = of_logits * factor
        of_logits = of_logits.to(x.dtype)
        if self.x is not None:
            self.x[rows] = _divided(of_logits @ weight, self.x.dtype, factor)
        if self.weight is None:
            return
        had_weight, self.has_weight = self.has_weight, True
        if self.weight.dtype == x.dtype:
            self.weight.addmm_(of_logits.T, x[rows], beta=int(had_weight))
            return
        for classes in _class_blocks(weight):
            product = _divided(of_logits[:, classes].T @ x[rows], self.weight.dtype, factor)
            if had_weight:
                self.weight[classes] += product
            else:
                self.weight[classes] = product

    def scaled(self, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return them times the factor, in place."""
        gradients = (self.x, self.weight, self.bias, self.extra)
        if factor.device.type == 'cpu' and factor == 1:  # a pass over the weight less; elsewhere asking costs more
            return gradients
        return tuple(None if gradient is None else gradient.mul_(factor) for gradient in gradients)


class _ChunkedLoss(torch.autograd.Function):
    """x, weight, bias, extra -> the loss, the predictions."""

    @staticmethod
    def forward(ctx, x, weight, bias, extra, loss_of, chunk, columns, with_gradients):
        wanted = tuple(with_gradients and needs for needs in ctx.needs_input_grad[:4])
        dtype = loss_dtype(x)
        loss = x.new_zeros((), dtype=dtype)
        everything = columns or ClassSubset(range(len(weight)), len(weight))
        top = x.new_empty(len(x), dtype=dtype)
        predicted = torch.empty(len(x), dtype=torch.int64, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            used_weight = weight.to(x.dtype)
            used_bias = None if bias is None else bias.to(x.dtype)
            gradients = _Gradients.of((x, weight, bias, extra), wanted, dtype)
            memory = x.new_empty(min(chunk or len(x), len(x)), len(weight))  # the same for every chunk
            for rows in _slices(len(x), chunk or len(x)):
                logits = _linear(x[rows], used_weight, used_bias, memory).to(dtype)
                torch.max(logits, dim=1, out=(top[rows], predicted[rows]))
                extra_rows = None if extra is None else extra[rows].detach()
                value, of_logits, of_extra = _differentiated(loss_of, logits, everything, rows, extra_rows, wanted)
                loss += value
                del logits  # of half precision products, and of losses that leave them alone
                if gradients.extra is not None:
                    gradients.extra[rows] = of_extra
                if of_logits is not None:
                    gradients.add(of_logits, rows, x, used_weight)
                del of_logits
            if gradients.weight is not None and not gradients.has_weight:
                gradients.weight.zero_()  # no image
            predicted, num_parts = _largest(top, everything.numbers(predicted), everything)
            if gradients.extra is not None:
                gradients.extra /= num_parts  # every part has the whole of it
        ctx.gradients = gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias, extra)]
        ctx.mark_non_differentiable(predicted)
        return loss, predicted

    @staticmethod
    @once_differentiable
    def backward(ctx, of_loss, _):
        if ctx.gradients is None:
            raise RuntimeError('the gradients of a chunked loss are given out once: compute the loss again')
        found, ctx.gradients = ctx.gradients.scaled(of_loss), None
        cast = (g if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))
        return (*cast, None, None, None, None)


def _differentiated(
    loss_of: LossOf,
    logits: torch.Tensor,
    columns: ClassSubset,
    rows: slice,
    extra: torch.Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return a chunk's loss and its gradients by logits and extra."""
    leaves = [logits.requires_grad_()] if any(wanted[:3]) else []
    if wanted[3]:
        leaves.append(extra.requires_grad_())
    with torch.set_grad_enabled(bool(leaves)):
        value = loss_of(ShardedLogits(logits, columns, overwrite=True), rows, extra)
        found = list(torch.autograd.grad(value, leaves, materialize_grads=True)) if leaves else []
    of_extra = found.pop() if wanted[3] else None
    return value.detach(), found[0] if found else None, of_extra


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, memory: torch.Tensor) -> torch.Tensor:
    """Return x weight^T + bias, at the beginning of `memory`."""
    logits = memory[: len(x)]
    for classes in _class_blocks(weight):
        out, rows = logits[:, classes], weight[classes].T
        if bias is None:
            torch.mm(x, rows, out=out)
        else:
            torch.addmm(bias[classes], x, rows, out=out)
    return logits


def _class_blocks(weight: torch.Tensor) -> Iterator[slice]:
    return _slices(len(weight), max(1, _BLOCK_NUMBERS // weight.shape[1]))


def _largest(top: torch.Tensor, classes: torch.Tensor, columns: ClassSubset) -> tuple[torch.Tensor, int]:
    """Return the class (batch,) that has the largest logit over all parts, and how many parts there are."""
    tops = columns.join(top)
    best = tops.argmax(dim=0, keepdim=True)
    return columns.join(classes).gather(0, best).squeeze(0), len(tops)


def _divided(product: torch.Tensor, dtype: torch.dtype, factor: torch.Tensor | None) -> torch.Tensor:
    product = product.to(dtype)
    return product if factor is None else product.div_(factor)


def _slices(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, max(1, step)):
        yield slice(start, min(start + step, total))
