"""tools/export.py: export a trained model to one file, and compare it with PyTorch on images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib.backbone.adapters import is_adapter, merge_adapters, merge_into_backbone
from lib.builders.base_weights import complete_state
from lib.builders.data import has_test_split, open_test_split, open_valid_split
from lib.builders.loader import plain_view
from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel
from lib.config.yaml_text import as_node, as_text, as_values
from lib.dataset.normalize import Normalize
from lib.dataset.reader import BatchReader, BatchRequest
from lib.errors import UserError
from lib.export.formats import (
    TOLERANCE,
    Run,
    as_metadata,
    largest_difference,
    run_onnx,
    run_torch_export,
    write_onnx,
    write_safetensors,
    write_torch_export,
)
from lib.export.module import ExportedModel, Preprocessing
from lib.runtime.checksums import with_checksums
from lib.runtime.files import replace_atomically
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.io import safetensors_metadata

_BATCH_SIZES = (1, 3, 16, 7)  # compared with PyTorch, because the batch dimension is dynamic


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: of the file name.
        load: file -> function from images to logits and features; None: weights only (safetensors).
    """

    suffix: str
    load: Callable[[Path], Run] | None


# EXPORT.FORMAT
FORMATS = {
    'onnx': Format('.onnx', run_onnx),
    'torch_export': Format('.pt2', run_torch_export),
    'safetensors': Format('.safetensors', None),
}


def export(trained: LoadedModel) -> tuple[Path, list[str]]:
    """Write the file after a comparison with PyTorch; return its path, and the lines to log.

    Raises:
        UserError: the file exists; a package is missing; its results differ from those of PyTorch.
    """
    options = trained.cfg.EXPORT
    file_format = FORMATS[options.FORMAT]
    path = Path(options.OUT) if options.OUT else trained.stem.with_suffix(file_format.suffix)
    if path.suffix != file_format.suffix:
        raise UserError(f'EXPORT.OUT {path}: must end in {file_format.suffix} with EXPORT.FORMAT {options.FORMAT}')
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
    with replace_atomically(path) as temporary:
        if file_format.load is None:
            merged, config = _merged(trained)
            metadata |= safetensors_metadata(replace(trained.checkpoint, config=config))
            write_safetensors(temporary, merged, with_checksums(metadata, merged))
            lines = ['weights only; the file can be used as RESUME_MODEL']
            if any(map(is_adapter, merged)):
                lines.append('AdaptFormer cannot be merged: its weights are NAME.adaptformer.*')
        else:
            lines = [_write_and_compare(trained, temporary, file_format.load, preprocessing, metadata)]
        _check_free(path, trained)  # again: another process may have written it meanwhile
    size = path.stat().st_size
    return path, [*lines, f'wrote {path} ({size / 1e6:.1f} MB)']


def _check_free(path: Path, trained: LoadedModel) -> None:
    if path.exists() and not trained.cfg.OVERWRITE:
        raise UserError(f'{path} exists already: set --OVERWRITE True to replace it, or another --EXPORT_OUT FILE')


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


def _write_and_compare(
    trained: LoadedModel,
    path: Path,
    load: Callable[[Path], Run],
    preprocessing: Preprocessing,
    metadata: dict[str, str],
) -> str:
    """Write a file and compare its results with PyTorch; return a log line with the largest difference."""
    model = trained.model.to('cpu').to(memory_format=torch.contiguous_format)
    exported = ExportedModel(model, preprocessing)
    merge_into_backbone(exported.backbone)
    write = {'.onnx': write_onnx, '.pt2': write_torch_export}[path.suffix]
    write(path, exported, preprocessing, metadata)
    pixels, source = _images(trained)
    batches = [pixels[: min(size, len(pixels))] for size in _BATCH_SIZES]
    if not preprocessing.inside:
        mean, std = preprocessing.mean, preprocessing.std
        normalize = Normalize(mean, std, bgr=preprocessing.bgr, memory_format=torch.contiguous_format)
        batches = [normalize(batch) for batch in batches]
    difference = largest_difference(exported, load(path), batches)
    if not difference <= TOLERANCE:
        raise UserError(
            f'EXPORT.FORMAT {trained.cfg.EXPORT.FORMAT}: results differ from PyTorch by {difference:.1e} on {source}; '
            f'at most {TOLERANCE:.0e} is allowed, so no file is written: try another EXPORT.FORMAT'
        )
    sizes = ', '.join(str(len(batch)) for batch in batches)
    return f'checked on {source}, batches of {sizes}: within {difference:.1e}'


def _images(trained: LoadedModel) -> tuple[torch.Tensor, str]:
    """Return preprocessed uint8 images (n, size, size, 3) of an available split, else noise; and their source."""
    view, num_images = plain_view(trained.cfg), max(_BATCH_SIZES)
    for split in _splits(trained):
        rows = np.linspace(0, len(split) - 1, min(num_images, len(split))).astype(int)
        batch = BatchReader(split.images, split.labels, view, trained.cfg.SEED)[BatchRequest(0, 0, rows)]
        if not isinstance(batch, UserError) and batch.pixels is not None and batch.readable.any():
            return batch.pixels[torch.from_numpy(batch.readable)], f'images of {split.source}'
    LOGGER.warning('no valid or test images found: the file is checked on noise')
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num_images, view.size, view.size, 3), dtype=torch.uint8, generator=generator), 'noise'


def _splits(trained: LoadedModel) -> list[DatasetSplit]:
    splits = []
    try:
        splits.append(open_valid_split(trained.cfg))
    except UserError:
        if has_test_split(trained.cfg):
            splits.append(open_test_split(trained.cfg, trained.class_names))
    return splits
