"""tools/export.py: export a trained model to one file, or two that belong together."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from lib.backbone.adapters import is_adapter, merge_adapters
from lib.builders.base_weights import complete_state
from lib.builders.data import has_test_split, open_test_split
from lib.builders.loader import plain_view
from lib.builders.split import DatasetSplit
from lib.commands.exported_network import Format, write_float32, write_int8
from lib.commands.loaded_model import LoadedModel
from lib.config.yaml_text import as_node, as_text, as_values
from lib.errors import UserError
from lib.export.formats import (
    as_metadata,
    files_of,
    run_onnx,
    run_openvino,
    run_torch_export,
    write_onnx,
    write_openvino,
    write_safetensors,
    write_torch_export,
)
from lib.export.int8 import INT8_FORMATS
from lib.export.module import Preprocessing
from lib.runtime.checksums import with_checksums
from lib.runtime.files import completed, file_exists, remove, replace_atomically, replace_together, temporary_folder
from lib.trainer.checkpointing.io import safetensors_metadata

# EXPORT.FORMAT -> a network; safetensors contains weights alone.
FORMATS = {
    'onnx': Format('.onnx', write_onnx, run_onnx),
    'openvino': Format('.xml', write_openvino, run_openvino),
    'torch_export': Format('.pt2', write_torch_export, run_torch_export),
}
_WEIGHTS = '.safetensors'


def export(trained: LoadedModel) -> tuple[Path, list[str]]:
    """Write the file after a comparison with PyTorch; return its path, and the lines to log.

    Raises:
        UserError: the file exists; a package is missing; its results differ from those of PyTorch; int8 loses more
            accuracy than EXPORT.MAX_LOSS.
    """
    options, network = trained.cfg.EXPORT, FORMATS.get(trained.cfg.EXPORT.FORMAT)
    suffix, is_int8 = network.suffix if network else _WEIGHTS, options.PRECISION == 'int8'
    if is_int8 and options.FORMAT not in INT8_FORMATS:
        raise UserError(
            f'EXPORT.PRECISION int8 needs EXPORT.FORMAT {" or ".join(INT8_FORMATS)}; it is {options.FORMAT}'
        )
    path = Path(options.OUT) if options.OUT else Path(f'{trained.stem}{".int8" if is_int8 else ""}{suffix}')
    if path.suffix != suffix:
        raise UserError(f'EXPORT.OUT {path}: must end in {suffix} with EXPORT.FORMAT {options.FORMAT}')
    _check_free(path, trained)
    preprocessing = preprocessing_of(trained)
    metadata = as_metadata(
        {
            'classes': trained.class_names,
            'preprocessing': preprocessing.describe(),
            'config': as_text(trained.cfg),
            'source': trained.path.name,
        }
    )
    with temporary_folder(path) as folder:
        file = folder / path.name
        if network is None:
            lines = _write_weights(trained, file, metadata)
        elif is_int8:
            lines = write_int8(trained, network, file, preprocessing, metadata)
        else:
            lines = [write_float32(trained, network, file, preprocessing, metadata, _splits(trained))]
        _check_free(path, trained)  # again: another process may have written it meanwhile
        written = _publish(folder, path)
    size = sum(one.stat().st_size for one in written)
    return path, [*lines, f'wrote {" and ".join(map(str, written))} ({size / 1e6:.1f} MB)']


def _publish(folder: Path, path: Path) -> list[Path]:
    """Move the files of a model from `folder` to `path` and beside it, all at once; return their paths."""
    files = files_of(path)
    written = [file for file in files if (folder / file.name).exists()]
    with replace_together(path.parent):
        for file in written:
            with replace_atomically(file) as temporary:
                os.replace(folder / file.name, temporary)
        remove(folder)  # before the files are switched: afterwards, nothing is left to do
    for file in files:
        if file not in written:
            remove(file)  # of an earlier, larger model
    return written


def _check_free(path: Path, trained: LoadedModel) -> None:
    for file in files_of(path):
        if file_exists(file) and not trained.cfg.OVERWRITE and file.absolute() not in completed:
            raise UserError(f'{file} exists already: set --OVERWRITE True to replace it, or another --EXPORT_OUT FILE')


def preprocessing_of(trained: LoadedModel) -> Preprocessing:
    """Return the preprocessing of the model; EXPORT.PREPROCESSING decides whether normalization is part of the file."""
    inputs, view = trained.cfg.INPUT, plain_view(trained.cfg)
    bgr = trained.cfg.DATASET.COLOR_SPACE == 'BGR'
    inside = trained.cfg.EXPORT.PREPROCESSING == 'inside'
    return Preprocessing(view.size, view.crop_ratio, inputs.MEAN, inputs.STD, bgr, inside, view.interpolation)


def _merged(trained: LoadedModel) -> tuple[dict[str, torch.Tensor], str]:
    """Return all weights, with LoRA and SSF merged into them, and the config as YAML of a model with these weights."""
    state = merge_adapters(complete_state(trained.checkpoint, trained.cfg))
    values = as_values(trained.cfg)
    if values['MODEL.TUNE'] != 'head' and not any(map(is_adapter, state)):
        values |= {'MODEL.TUNE': 'full', 'MODEL.TUNE_RANK': 0, 'MODEL.TUNE_SCALE': 0.0}
    return state, as_text(as_node(values))


def _write_weights(trained: LoadedModel, file: Path, metadata: dict[str, str]) -> list[str]:
    merged, config = _merged(trained)
    metadata = metadata | safetensors_metadata(replace(trained.checkpoint, config=config))
    write_safetensors(file, merged, with_checksums(metadata, merged))
    lines = ['weights only; the file can be used as RESUME_MODEL']
    if any(map(is_adapter, merged)):
        lines.append('AdaptFormer cannot be merged: its weights are NAME.adaptformer.*')
    return lines


def _splits(trained: LoadedModel) -> list[DatasetSplit]:
    try:
        return [trained.valid]
    except UserError:
        return [open_test_split(trained.cfg, trained.class_names)] if has_test_split(trained.cfg) else []
