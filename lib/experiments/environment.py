"""Hardware, versions and command line of a measurement."""

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision


def run_environment() -> dict[str, Any]:
    """Return {hardware, versions, command} of this process, as written beside measured numbers."""
    return {
        'hardware': {'cpu': _cpu(), 'cores': os.cpu_count(), 'gpu': _gpu()},
        'versions': {
            'python': platform.python_version(),
            'torch': str(torch.__version__),
            'torchvision': str(torchvision.__version__),
        },
        'command': shlex.join(['python', *sys.argv]),
    }


def _cpu() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='ascii', errors='replace').splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
