"""Checkpoints as safetensors files, to hand on: weights, and in the header, as JSON, what prediction needs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


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
