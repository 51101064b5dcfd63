"""Arrays that other processes see without a copy."""

import torch


def shared_zeros(*shape: int) -> torch.Tensor:
    """Return a uint8 tensor of zeros in shared memory; sent to another process, only its address travels.

    Raises:
        RuntimeError: no shared memory can be had. Too little of it shows as a bus error when it is written to, so
            whoever needs much asks first how much there is.
    """
    num_bytes = 1
    for length in shape:
        num_bytes *= length
    storage = torch.UntypedStorage._new_shared(max(1, num_bytes))  # as torch's own collate allocates batches
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)
