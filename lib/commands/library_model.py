"""The model of lib/api.py: loaded without a command line, with its predictor, its threshold, and further classes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from lib.builders.loader import build_normalize, eval_batch_size, num_workers, plain_view
from lib.builders.preprocessing import resolve_preprocessing
from lib.commands.command import Command
from lib.commands.enrolled_model import LabeledImages, choose_rows, enrolled_model, labels_of, without_classes
from lib.commands.ensemble import tta_views
from lib.commands.loaded_model import LoadedModel, load_model
from lib.commands.predict_unknown import read_rejection
from lib.config.defaults import KEYS
from lib.config.load import merge_checkpoint_config
from lib.dataset.annotations import ClassNames
from lib.dataset.given_image import GivenImage, check_images
from lib.errors import UserError, is_unicode, shown
from lib.inference.image_predictor import ImagePredictor
from lib.runtime.json_file import read_json
from lib.runtime.log import LOGGER
from lib.runtime.text import name_warnings, nfc
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint

# RUN.ENGINE auto needs to know how many pixels a model will predict: this many are enough for OpenVINO, but not for
# engines whose preparation takes longer.
_ASSUMED_PIXELS = 500_000_000


@dataclass(frozen=True)
class LibraryModel:
    """A trained model with its predictor.

    Attributes:
        version: fingerprint of weights, preprocessing and class names, and the precision if it is not float32.
        threshold: probability below which an answer is not accepted, as test.py chose it; None: it chose none.
        known_threshold: score of the predictor below which a product is unknown, as test.py chose it; None: it chose
            none.
        threads: argument of lib.api.load.
    """

    trained: LoadedModel
    predictor: ImagePredictor
    version: str
    threshold: float | None
    known_threshold: float | None
    threads: int | None


def load_for_library(path: Path, *, engine: str, precision: str, device: str, batch_size: int | None) -> LoadedModel:
    """Load a checkpoint; arguments as in lib.api.load. Files are cached in its folder only.

    Raises:
        UserError: as `read_checkpoint`; a wrong engine, precision or device.
    """
    checkpoint = read_checkpoint(path)
    is_run = (path.parent / 'config.yaml').exists()
    options = {
        'RUN.ENGINE': engine,
        'RUN.ENGINE_PRECISION': precision,
        'RUN.DEVICE': device,
        'LOG_ROOT': str(path.parent.parent if is_run else path.parent),
        **({} if batch_size is None else {'TEST.BATCH_SIZE': batch_size}),
    }
    for name in ('RUN.ENGINE', 'RUN.ENGINE_PRECISION'):
        choices = KEYS[name].choices
        if options[name] not in choices:
            raise UserError(f'{name} is {shown(options[name])}, but must be one of {", ".join(map(str, choices))}')
    cfg = resolve_preprocessing(merge_checkpoint_config(checkpoint.config, path, options), is_resumed=True)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus):  # a network has random weights before it gets those of the file
        trained = load_model(Command(cfg, checkpoint))
    views = tta_views(cfg)
    if len(views) > 1 or not views.averages_plain or cfg.TEST.ENSEMBLE:
        LOGGER.warning('%s: only its plain view is predicted: TEST.FLIP, CROPS, SCALES and ENSEMBLE are ignored', path)
    return replace(trained, folder=path.parent)


def with_predictor(trained: LoadedModel, threads: int | None) -> LibraryModel:
    """Return a loaded model with its predictor."""
    trained.model.eval()
    view = plain_view(trained.cfg)
    precision = trained.cfg.RUN.ENGINE_PRECISION
    version = trained.version
    if precision != 'float32':
        version += f'-{precision}'
    score, known_threshold = read_rejection(trained, version) or (None, None)
    predictor = ImagePredictor(
        trained.engine_for(_ASSUMED_PIXELS // view.size**2),
        view,
        build_normalize(trained.cfg, trained.device),
        batch_size=eval_batch_size(trained.cfg, trained.device),
        num_threads=threads or torch.get_num_threads(),
        num_decoders=threads or num_workers(-1),
        score=score,
    )
    threshold = _stored_threshold(trained.folder, version)
    return LibraryModel(trained, predictor, version, threshold, known_threshold, threads)


class _RiskCoverage(msgspec.Struct):
    """The part of risk_coverage.json that is needed here; older files lack the model."""

    model: str | None = None
    threshold: float | None = None


def _stored_threshold(folder: Path, version: str) -> float | None:
    """Return the threshold that test.py has chosen last for this model; above 1 where no answer is accepted."""
    files = sorted(folder.glob('*.risk_coverage.json'), key=os.path.getmtime)
    found = [content for content in (read_json(file, _RiskCoverage) for file in files) if content.model == version]
    if not found:
        return None
    return np.inf if found[-1].threshold is None else found[-1].threshold


def enroll_images(
    opened: LibraryModel,
    classes: Mapping[str, Sequence[GivenImage]],
    known: Mapping[str, Sequence[GivenImage]],
    max_loss: float,
    retire: Sequence[str],
) -> LoadedModel:
    """Return a model with other classes; arguments as in lib.api.Model.enroll.

    Raises:
        TypeError: `classes` or `known` is not a dictionary from names to lists of images.
        UserError: a class has no images, an image cannot be decoded, or a class to remove does not exist.
    """
    trained = without_classes(opened.trained, labels_of(opened.trained, retire, 'retire'))
    classes, valid = _listed(classes, 'classes'), _listed(known, 'known')
    label_of = {name: label for label, name in reversed(list(enumerate(trained.class_names)))}
    names = [nfc(name) for name in classes]
    for name in names:
        if not name.strip() or not is_unicode(name):
            raise UserError(f'a class is named {shown(name)}, but names must be text')
        if names.count(name) > 1:
            raise UserError(f'classes names {shown(name)} twice, in different Unicode forms')
    unknown = next((name for name in valid if nfc(name) not in label_of), None)
    if unknown is not None:
        raise UserError(f'known has images of the class {shown(unknown)}, which the model does not have')
    new = {name: images for name, images in classes.items() if nfc(name) not in label_of}
    further = {name: images for name, images in classes.items() if nfc(name) in label_of}
    for warning in name_warnings([nfc(name) for name in new], known=trained.class_names):
        LOGGER.warning('%s', warning)
    of_new, of_further, old = (
        _labeled(opened, some, labels) if some else None
        for some, labels in (
            (new, list(range(len(new)))),
            (further, [label_of[nfc(name)] for name in further]),
            (valid, [label_of[nfc(name)] for name in valid]),
        )
    )
    rows, _, _ = choose_rows(trained, old, of_new, of_further, max_loss=max_loss)
    none = np.zeros(0, np.int64)
    checkpoint = rows.checkpoint(
        ClassNames([nfc(name) for name in new], []), none if of_new is None else of_new.counts,
        none if of_further is None else of_further.counts,
    )  # fmt: skip
    return enrolled_model(trained, checkpoint)


def _listed(images: Any, name: str) -> dict[str, list[GivenImage]]:
    if not isinstance(images, Mapping) or not all(isinstance(key, str) for key in images):
        raise TypeError(f'{name} is {shown(images)}, but must be a dictionary from class names to lists of images')
    return {key: list(check_images(some)) for key, some in images.items()}


def _labeled(opened: LibraryModel, images: Mapping[str, Sequence[GivenImage]], labels: Sequence[int]) -> LabeledImages:
    """Return the features of images by class; `labels`: of these classes."""
    counts = [len(some) for some in images.values()]
    empty = next((name for name, count in zip(images, counts, strict=True) if not count), None)
    if empty is not None:
        raise UserError(f'the class {shown(empty)} has no images')
    parts = []
    start = 0
    for features, errors in opened.predictor.stream_features([image for some in images.values() for image in some]):
        for position, reason in errors.items():
            name = list(images)[int(np.searchsorted(np.cumsum(counts), start + position, side='right'))]
            raise UserError(f'an image of the class {shown(name)} cannot be decoded: {reason}')
        parts.append(features)
        start += len(features)
    return LabeledImages(np.concatenate(parts), np.repeat(labels, counts), np.arange(start))


def save_model(trained: LoadedModel, path: Path, *, overwrite: bool) -> None:
    """Write a checkpoint for prediction. Raises: UserError, if the file exists and `overwrite` is False."""
    if path.suffix != '.pth':
        raise UserError(f'{path}: the name of a checkpoint must end with .pth')
    if path.exists() and not overwrite:
        raise UserError(f'{path} exists already: give another path, or overwrite=True')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, trained.for_prediction())
