"""Memory that other processes see without a copy."""

import math
import os
import shutil

import torch

_FOLDER = '/dev/shm'  # where Linux keeps it


def shared_empty(*shape: int) -> torch.Tensor:
    """Return a uint8 tensor in shared memory; sent to another process, only its address travels.

    Too little of it shows as a bus error when it is written to: ask `free_shared_bytes` first.
    """
    storage = torch.UntypedStorage._new_shared(max(1, math.prod(shape)))  # as torch's own collate allocates batches
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)


def free_shared_bytes() -> int | None:
    """Return how much shared memory can be had; None where the system does not tell."""
    if not os.path.isdir(_FOLDER):
        return None
    free = shutil.disk_usage(_FOLDER).free
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            available = [int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable')]
    except OSError:
        available = []
    return min([free, *available])
