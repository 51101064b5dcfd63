"""Files of torch.save that are whole or not there, and whose writing can be given up.

Checkpoints as safetensors files, to hand on: weights, and in the header, as JSON, what prediction needs.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from lib.runtime.files import replace_atomically

_PIECE_BYTES = 1 << 24


def write_torch(path: Path, content: Any, abandoned: Callable[[], bool] = lambda: False) -> None:
    """Replace the file at `path` by `content`, atomically.

    `abandoned`: asked every few megabytes; once it says yes, the rest is not written.

    Raises:
        OSError: for example no space left, or abandoned; a file that was at `path` is then still the old one.
    """
    with replace_atomically(path) as temporary:
        _check_space(path, content)
        # Into a file of Python's: when torch opens it itself, a full disk is an error without a number.
        try:
            with open(temporary, 'wb') as file:
                torch.save(content, _Pieces(file, abandoned))
        except RuntimeError as error:
            # torch's writer fails in its own words once the system's have been said; those are more to the point.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class _Pieces:
    """A file that is written piece by piece, until nobody wants it any more."""

    def __init__(self, file: BinaryIO, abandoned: Callable[[], bool]) -> None:
        self._file, self._abandoned = file, abandoned

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            if self._abandoned():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._file.write(view[start : start + _PIECE_BYTES])
        return len(view)

    def flush(self) -> None:
        self._file.flush()


def _check_space(path: Path, content: Any) -> None:
    """Refuse what cannot fit before it fills the disk, on which log.txt and other runs go on being written."""
    disk = shutil.disk_usage(path.parent)
    if disk.total and disk.free < _num_bytes(content):  # some network disks say that they have no room at all
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _num_bytes(tree: Any) -> int:
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return sum(_num_bytes(value) for value in values)


def exported_metadata(content: Mapping[str, Any]) -> dict[str, str]:
    """Return what a header says of a checkpoint's content, as `read_exported` takes it back; texts of JSON."""
    names = ('place', 'config', 'recipe', 'train_digest', 'class_names', 'class_parents')
    kept = {name: content[name] for name in names if name in content}
    if 'class_counts' in content:
        kept['class_counts'] = content['class_counts'].tolist()
    return {'checkpoint': json.dumps(kept, ensure_ascii=False)}


def read_exported(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint that was written as safetensors: nothing of it can go on with training.

    Raises:
        SafetensorError, ValueError, KeyError: the file is none, or not of this project.
    """
    with safe_open(path, 'pt') as file:
        content = json.loads((file.metadata() or {})['checkpoint'])
        content['state_dict'] = {name: file.get_tensor(name) for name in list(file.keys())}
    if 'class_counts' in content:
        content['class_counts'] = torch.tensor(content['class_counts'], dtype=torch.int64)
    return {'optimizer': None, **content}
