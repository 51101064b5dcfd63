"""RUN in the config -> the device of this process."""

import torch
from yacs.config import CfgNode

from lib.distributed.process_group import Ranks
from lib.runtime.device import Device, pick_device
from lib.runtime.log import LOGGER


def build_device(cfg: CfgNode, ranks: Ranks) -> Device:
    """Return the device: under torchrun a GPU for each rank of a machine, else what RUN.DEVICE says.

    Raises:
        UserError: RUN.DEVICE is not there, or there are more ranks than GPUs.
    """
    name = cfg.RUN.DEVICE
    if ranks.count > 1 and (name == 'cuda' or (name == 'auto' and torch.cuda.is_available())):
        name = f'cuda:{ranks.local}'
    device = pick_device(name, cfg.RUN.PRECISION)
    if cfg.MODEL.SYNC_BATCHNORM and (device.main.type != 'cuda' or ranks.count == 1):
        LOGGER.warning('MODEL.SYNC_BATCHNORM True changes nothing here: it is for GPUs of several torchrun ranks')
    return device
