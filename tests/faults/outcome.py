"""The files that a command leaves, without times: equal for an undisturbed command and one that was run again."""

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

# Logs of a process: an interrupted run has one more. Their content is times; that of a lock is a process id. The
# journal of a store lists its rows in as many parts as they were written in; the rows themselves are compared.
_LOGS = re.compile(r'log\.txt|events\.out\.tfevents\..*|\.lock|rows\d+\.jsonl')
_TIMES = {'seconds', 'images_per_second', 'date', 'seconds_per_image'}
# Digests in names, and of the time and inode of a file.
_DIGEST = re.compile(r'-[0-9a-f]{16}\b')


def contents(root: Path) -> dict[str, str]:
    """Return {name: digest without times} of all files, links and folders below `root`."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            key = _DIGEST.sub('-DIGEST', path.relative_to(root).as_posix())
            found[re.sub(r'tfevents.*', 'tfevents', key)] = _digest(path)
    return found


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f'link to {os.readlink(path)}'
    if path.is_dir():
        return 'folder'
    if _LOGS.fullmatch(path.name):
        return 'log'
    normalize = {
        '.pth': _checkpoint,
        '.json': _json,
        '.jsonl': _json_lines,
        '.arrow': _arrow,
        '.html': _page,
        '.yaml': _yaml,
    }.get(path.suffix)
    if normalize is not None:
        with suppress(Exception):  # a torn file
            return hashlib.sha256(normalize(path)).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _json(path: Path) -> bytes:
    content = without_times(json.loads(path.read_bytes()))
    if path.name == 'about.json':  # of a store: `about` has a digest of the inodes and times of files
        content = {name: content[name] for name in ('num_rows', 'columns', 'format')}
    return json.dumps(content).encode()


def _json_lines(path: Path) -> bytes:
    return '\n'.join(json.dumps(without_times(json.loads(line))) for line in path.read_text().splitlines()).encode()


def _checkpoint(path: Path) -> bytes:
    content = torch.load(path, weights_only=True)
    return repr(without_times({**content, 'config': _without_start(content['config'])})).encode()


def _yaml(path: Path) -> bytes:
    return _without_start(path.read_text()).encode()


def _without_start(config: str) -> str:
    """Return a config without the options with which a run is started or resumed."""
    return re.sub(r'^(RESUME_MODEL|RESUME_MODE|OVERWRITE): .*$', '', config, flags=re.MULTILINE)


def _page(path: Path) -> bytes:
    return re.sub(rb'[^<>]* training images per second', b'', path.read_bytes())


def _arrow(path: Path) -> bytes:
    # The metadata holds inode and times of the source.
    table = pa.ipc.open_file(path).read_all().replace_schema_metadata()
    return repr(table.to_pydict()).encode()


def without_times(value: Any) -> Any:
    """Return a tree without the entries of times; tensors as text."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in _TIMES}
    if isinstance(value, list | tuple):
        return [without_times(one) for one in value]
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()]
    return value
