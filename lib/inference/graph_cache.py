"""Cached graphs of compiled engines: a file per graph, with checksums; a folder holds the newest of them."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lib.errors import shown
from lib.runtime.checksums import check_safetensors, with_checksums, write_tensors
from lib.runtime.files import remove, replace_atomically, temporary_folder
from lib.runtime.log import LOGGER
from lib.runtime.read_file import check_regular, reason_of

MAX_GRAPHS = 8  # in a folder: of a model, those of a few sizes and precisions, and of its last versions
_SUFFIX, _KEY = '.safetensors', 'key'


def read_graph(path: Path, key: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """Return the files of a graph, {name: bytes}; None without a file that has this key. A damaged one is logged."""
    path = path.with_suffix(_SUFFIX)
    try:
        check_regular(path)
        with safe_open(path, 'pt') as file:
            if (file.metadata() or {}).get(_KEY) != _text(key):
                return None
            check_safetensors(file)
            return {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118  # no mapping
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError) as error:
        LOGGER.info('%s: converting again (%s)', path, shown(error))
        return None


def write_graph(path: Path, key: Mapping[str, Any], save: Callable[[Path], None]) -> None:
    """Store a graph, and remove the oldest graphs of the folder. A failure is logged: it is converted again next time.

    Args:
        save: writes the files of the graph into a folder.
    """
    path = path.with_suffix(_SUFFIX)
    try:
        with temporary_folder(path) as folder:
            save(folder)
            tensors = {file.name: torch.from_numpy(np.fromfile(file, np.uint8)) for file in sorted(folder.iterdir())}
            with replace_atomically(path, alone=True) as temporary:
                write_tensors(temporary, tensors, with_checksums({_KEY: _text(key)}, tensors))
        graphs = sorted(path.parent.glob(f'*{_SUFFIX}'), key=lambda file: file.stat().st_mtime_ns)
        for old in graphs[:-MAX_GRAPHS]:
            with suppress(FileNotFoundError):  # another process has removed it
                remove(old)
    except (OSError, RuntimeError, SafetensorError) as error:  # several libraries write
        reason = reason_of(error) if isinstance(error, OSError) else shown(error)
        LOGGER.warning('%s: not written: %s', path, reason)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
