"""wrap_parallel in a single process."""

import torch
from torch import nn

from lib.distributed.parallel import wrap_parallel
from lib.distributed.process_group import SINGLE_PROCESS
from lib.runtime.device import Device


def test_one_device_needs_no_wrapper():
    module = nn.Linear(1, 1)
    for replicas in ((), (0,)):
        assert (
            wrap_parallel(module, Device(torch.device('cpu'), replicas, None, None), SINGLE_PROCESS, num_images=8)
            is module
        )
