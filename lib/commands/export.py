"""tools/export.py's work: a trained model as one file for others, checked against PyTorch on images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib.builders.data import has_test_split, open_test_split, open_valid_split
from lib.builders.loader import plain_view
from lib.builders.split import Split
from lib.commands.loaded_model import LoadedModel
from lib.config.yaml_text import as_text
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
from lib.export.module import Exported, Preprocessing
from lib.runtime.files import replace_atomically
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.io import safetensors_metadata

_CHECKED = (1, 3, 16, 7)  # batch sizes: the batch is dynamic


@dataclass(frozen=True)
class Format:
    """A file format: its suffix, and what runs such a file; safetensors are weights alone."""

    suffix: str
    run: Callable[[Path], Run] | None


# EXPORT.FORMAT
FORMATS = {
    'onnx': Format('.onnx', run_onnx),
    'torch_export': Format('.pt2', run_torch_export),
    'safetensors': Format('.safetensors', None),
}


def export(trained: LoadedModel) -> tuple[Path, list[str]]:
    """Write the file, once it has been checked; return its path, and what to say.

    Raises:
        UserError: it is there already; a package is missing; it does not compute what PyTorch does.
    """
    options = trained.cfg.EXPORT
    form = FORMATS[options.FORMAT]
    path = Path(options.OUT) if options.OUT else trained.stem.with_suffix(form.suffix)
    if path.suffix != form.suffix:
        raise UserError(f'EXPORT.OUT {path}: a file of EXPORT.FORMAT {options.FORMAT} ends in {form.suffix}')
    if path.exists() and not trained.cfg.OVERWRITE:
        raise UserError(f'{path} is there already: --OVERWRITE True replaces it, --EXPORT_OUT FILE writes elsewhere')
    preprocessing = preprocessing_of(trained)
    metadata = as_metadata(
        {
            'classes': trained.class_names,
            'preprocessing': preprocessing.describe(),
            'config': as_text(trained.cfg),
            'source': trained.checkpoint.path.name,
        }
    )
    with replace_atomically(path) as temporary:
        if form.run is None:
            metadata |= safetensors_metadata(replace(trained.checkpoint, config=as_text(trained.cfg)))
            write_safetensors(temporary, trained.checkpoint.state_dict, metadata)
            said = ['weights alone: RESUME_MODEL takes the file too']
        else:
            said = [_checked(trained, temporary, form.run, preprocessing, metadata)]
    size = path.stat().st_size
    return path, [*said, f'wrote {path} ({size / 1e6:.1f} MB)']


def preprocessing_of(trained: LoadedModel) -> Preprocessing:
    """Return how a model is shown an image, as EXPORT.PREPROCESSING wants it shared out."""
    inputs, view = trained.cfg.INPUT, plain_view(trained.cfg)
    bgr = trained.cfg.DATASET.COLOR_SPACE == 'BGR'
    inside = trained.cfg.EXPORT.PREPROCESSING == 'inside'
    return Preprocessing(view.size, view.crop_ratio, inputs.MEAN, inputs.STD, bgr, inside)


def _checked(
    trained: LoadedModel, path: Path, run: Callable[[Path], Run], preprocessing: Preprocessing, metadata: dict[str, str]
) -> str:
    """Write a file and hold it to PyTorch's numbers; return a line that says how close it comes."""
    model = trained.model.to('cpu', memory_format=torch.contiguous_format)
    exported = Exported(model, preprocessing)
    write = {'.onnx': write_onnx, '.pt2': write_torch_export}[path.suffix]
    write(path, exported, preprocessing, metadata)
    pixels, source = _images(trained)
    batches = [pixels[: min(size, len(pixels))] for size in _CHECKED]
    if not preprocessing.inside:
        normalize = Normalize(preprocessing.mean, preprocessing.std, bgr=preprocessing.bgr, channels_last=False)
        batches = [normalize(batch) for batch in batches]
    difference = largest_difference(exported, run(path), batches)
    if not difference <= TOLERANCE:
        raise UserError(
            f"EXPORT.FORMAT {trained.cfg.EXPORT.FORMAT}: its numbers differ from PyTorch's by {difference:.1e} on "
            f'{source}, more than {TOLERANCE:.0e}, so nothing is written'
        )
    return f'checked on {source}, batches of {", ".join(str(len(batch)) for batch in batches)}: within {difference:.1e}'


def _images(trained: LoadedModel) -> tuple[torch.Tensor, str]:
    """Return uint8 images (n, size, size, 3) as the model sees them, of a split that is at hand; else noise."""
    view, wanted = plain_view(trained.cfg), max(_CHECKED)
    for split in _splits(trained):
        rows = np.linspace(0, len(split) - 1, min(wanted, len(split))).astype(int)
        filled = BatchReader(split.images, split.labels, view, trained.cfg.SEED)[BatchRequest(0, 0, rows)]
        if not isinstance(filled, UserError) and filled.readable.any():
            return filled.pixels[torch.from_numpy(filled.readable)], f'images of {split.source}'
    LOGGER.warning('no valid or test image is at hand, so the file is checked on noise')
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (wanted, view.size, view.size, 3), dtype=torch.uint8, generator=generator), 'noise'


def _splits(trained: LoadedModel) -> list[Split]:
    found = []
    try:
        found.append(open_valid_split(trained.cfg))
    except UserError:
        if has_test_split(trained.cfg):
            found.append(open_test_split(trained.cfg, trained.class_names))
    return found
