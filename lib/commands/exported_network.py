"""EXPORT.PRECISION: an exported network in float32, compared with PyTorch, and in int8, measured on the valid split."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.backbone.adapters import merge_into_backbone
from lib.builders.calibration import balanced_rows, calibration_pixels, read_pixels
from lib.builders.loader import build_eval_loader, plain_view
from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel
from lib.dataset.normalize import Normalize
from lib.errors import UserError
from lib.export.formats import TOLERANCE, Run, as_metadata, largest_difference
from lib.export.int8 import AccuracyTarget, quantize_file
from lib.export.module import ExportedModel, Preprocessing, fuse_linear_norms
from lib.metrics.accuracy import mean_class_accuracy
from lib.metrics.precision_cost import precision_cost
from lib.metrics.predictions import Predictions, join_predictions, predictions_from_logits
from lib.runtime.log import LOGGER, progress_bar

_BATCH_SIZES = (1, 3, 16, 7)  # compared with PyTorch, because the batch dimension is dynamic
_TARGET_IMAGES = 1000  # valid images by which layers are left in float32


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: suffix of the file name.
        write: file, module, preprocessing, metadata -> the file, and maybe another beside it.
        load: file -> function from images to logits and features.
    """

    suffix: str
    write: Callable[[Path, ExportedModel, Preprocessing, Mapping[str, str]], None]
    load: Callable[[Path], Run]


def write_float32(
    trained: LoadedModel,
    network: Format,
    file: Path,
    preprocessing: Preprocessing,
    metadata: dict[str, str],
    splits: Sequence[DatasetSplit],
) -> str:
    """Write a file and compare its results with PyTorch; return a log line with the largest difference.

    Args:
        splits: splits to compare on; the first one with an image that can be decoded is used.

    Raises:
        UserError: the results differ.
    """
    model = trained.model.to('cpu').to(memory_format=torch.contiguous_format)
    exported = ExportedModel(model, preprocessing)
    merge_into_backbone(exported.backbone)
    fuse_linear_norms(exported.backbone)
    network.write(file, exported, preprocessing, metadata)
    pixels, source = _images(trained, splits)
    batches = [_as_input(pixels[: min(size, len(pixels))], preprocessing) for size in _BATCH_SIZES]
    difference = largest_difference(exported, network.load(file), batches)
    if not difference <= TOLERANCE:
        raise UserError(
            f'EXPORT.FORMAT {trained.cfg.EXPORT.FORMAT}: results differ from PyTorch by {difference:.1e} on {source}; '
            f'at most {TOLERANCE:.0e} is allowed, so no file is written: try another EXPORT.FORMAT'
        )
    sizes = ', '.join(str(len(batch)) for batch in batches)
    return f'checked on {source}, batches of {sizes}: within {difference:.1e}'


def _images(trained: LoadedModel, splits: Sequence[DatasetSplit]) -> tuple[torch.Tensor, str]:
    """Return preprocessed uint8 images (n, size, size, 3) of the splits, else noise; and their source."""
    view, num_images = plain_view(trained.cfg), max(_BATCH_SIZES)
    for split in splits:
        rows = np.linspace(0, len(split) - 1, min(num_images, len(split))).astype(int)
        with suppress(UserError):
            return read_pixels(split, rows, view, seed=trained.cfg.SEED)[0], f'images of {split.source}'
    LOGGER.warning('no valid or test images found: the file is checked on noise')
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num_images, view.size, view.size, 3), dtype=torch.uint8, generator=generator), 'noise'


def _as_input(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return the input of the exported model for uint8 RGB images (n, size, size, 3)."""
    if preprocessing.inside:
        return pixels
    mean, std = preprocessing.mean, preprocessing.std
    return Normalize(mean, std, bgr=preprocessing.bgr, memory_format=torch.contiguous_format)(pixels)


def write_int8(
    trained: LoadedModel, network: Format, file: Path, preprocessing: Preprocessing, metadata: dict[str, str]
) -> list[str]:
    """Quantize a model, and measure what that costs on the validation split; return lines for the log.

    Raises:
        UserError: there is no labeled validation split, or the loss is above EXPORT.MAX_LOSS.
    """
    cfg, max_loss = trained.cfg, trained.cfg.EXPORT.MAX_LOSS
    valid = _labeled_valid(trained)
    source = file.with_name(f'float32{network.suffix}')
    lines = [write_float32(trained, network, source, preprocessing, {}, [valid])]
    before = _predict(network.load(source), trained, valid, preprocessing, 'float32')
    pixels, images = calibration_pixels(cfg, trained.class_names)
    inputs = _as_input(pixels, preprocessing)
    target = None
    while True:
        graph = quantize_file(source, inputs, target)
        graph.save(file, {})
        after = _predict(network.load(file), trained, valid, preprocessing, 'int8')
        cost = precision_cost(before, after, trained.train_counts)
        if cost.loss <= max_loss or target is not None:
            break
        LOGGER.info(
            'int8 in all layers costs %.2f points of mean class error, more than EXPORT.MAX_LOSS: '
            'leaving layers in float32',
            100 * cost.loss,
        )
        target = _accuracy_target(trained, valid, preprocessing)
    layers = list(graph.layers().values())
    if cost.loss > max_loss:
        raise UserError(
            f'EXPORT.PRECISION int8: the mean class error on {valid.source} rises by {100 * cost.loss:.2f} points with '
            f'{layers.count(False)} of {len(layers)} layers left in float32; at most {100 * max_loss:g} are '
            f'allowed, so no file is written: --EXPORT_MAX_LOSS {math.ceil(1000 * cost.loss) / 1000:g} allows it, '
            '--EXPORT_PRECISION float32 has no loss'
        )
    report = {
        'calibration': {'images': len(pixels), 'source': images},
        'layers': {'int8': layers.count(True), 'total': len(layers)},
        'valid': {'source': valid.source, **cost.as_dict()},
    }
    graph.save(file, metadata | as_metadata({'int8': report}))
    return [
        *lines,
        f'int8 in {layers.count(True)} of {len(layers)} layers, calibrated on {len(pixels)} {images}',
        *cost.lines('int8'),
    ]


def _labeled_valid(trained: LoadedModel) -> DatasetSplit:
    try:
        valid = trained.valid
    except UserError as error:
        raise UserError(f'EXPORT.PRECISION int8 needs labeled images to measure its loss: {error}') from None
    trained.check_classes(valid)
    if not (valid.labels >= 0).any():
        raise UserError(f'EXPORT.PRECISION int8 needs labeled images to measure its loss, but {valid.source} has none')
    return valid


def _predict(
    run: Run, trained: LoadedModel, split: DatasetSplit, preprocessing: Preprocessing, label: str
) -> Predictions:
    """Return the predictions of an exported model for a split."""
    loader = build_eval_loader(trained.cfg, split, trained.device, normalized=not preprocessing.inside)
    parts = []
    for batch in progress_bar(loader, total=len(loader), label=label):
        logits, _ = run(batch.images.cpu().contiguous())
        parts.append(predictions_from_logits(torch.from_numpy(logits), batch.labels.cpu(), batch.readable.cpu()))
    return join_predictions(parts)


def _accuracy_target(trained: LoadedModel, valid: DatasetSplit, preprocessing: Preprocessing) -> AccuracyTarget:
    """Return the goal of accuracy-aware quantization: the mean class accuracy of a balanced sample of valid images."""
    cfg, known = trained.cfg, np.flatnonzero(valid.labels >= 0)
    rows = balanced_rows(valid.labels, _TARGET_IMAGES, seed=cfg.SEED, rows=known)
    pixels, rows = read_pixels(valid, np.sort(rows), plain_view(cfg), seed=cfg.SEED)
    labels = valid.labels[rows]
    return AccuracyTarget(
        _as_input(pixels, preprocessing),
        lambda predicted: mean_class_accuracy(labels, labels == predicted),
        cfg.EXPORT.MAX_LOSS,
    )
