"""A limit on the norms of rows, kept after every step."""

import torch
from torch.utils.hooks import RemovableHandle


def keep_norms_below(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, max_norm: float) -> RemovableHandle:
    """Scale rows of `weight` (n, d) that are longer than `max_norm` down to it after each step of `optimizer`.

    That is projected gradient descent onto |w_j|_2 <= max_norm (MaxNorm: Alshammari et al., CVPR 2022). Here the limit
    is one number, while the authors' code takes it from the norms that the layer starts with.
    """

    @torch.no_grad()
    def project(*_: object) -> None:
        weight.renorm_(p=2, dim=0, maxnorm=max_norm)

    return optimizer.register_step_post_hook(project)
