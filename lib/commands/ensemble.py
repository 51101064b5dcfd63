"""RESUME_MODEL and TEST.ENSEMBLE in the config -> the models of an ensemble and the views of each image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lib.backbone.create import measure_width
from lib.builders.loader import build_eval_loader, eval_batch_size, num_workers, plain_view
from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel, load_another
from lib.config.defaults import Config
from lib.config.yaml_text import as_values
from lib.dataset.transforms import ResizeCenterCrop, ResizeCornerCrop, ResizeWhole, Transform
from lib.errors import UserError, shown
from lib.inference.ensemble import EnsembleMember


@dataclass(frozen=True)
class TTAViews:
    """The views of each image for test-time augmentation: the plain view first, then the others.

    Attributes:
        plain: the transform of validation images.
        flip: whether each view is also predicted mirrored.
        averages_plain: whether the plain view is part of the average.
    """

    plain: ResizeCenterCrop
    others: Sequence[Transform]
    flip: bool
    averages_plain: bool

    def __len__(self) -> int:
        return (self.averages_plain + len(self.others)) * (1 + self.flip)

    @property
    def key(self) -> str:
        """A text that identifies the views; the same as in stores of earlier versions, which resume after an update."""
        return (
            f'Looks(plain={self.plain!r}, others={list(self.others)!r}, flip={self.flip!r}, '
            f'counts_plain={self.averages_plain!r})'
        )


def tta_views(cfg: Config) -> TTAViews:
    """Return the views that TEST.SCALES, TEST.CROPS and TEST.FLIP choose."""
    test, plain = cfg.TEST, plain_view(cfg)
    if not test.SCALES:
        raise UserError('TEST.SCALES is empty, but must be numbers separated by commas, such as 1.0')
    crops, ratio = CROPS[test.CROPS], cfg.INPUT.CROP_RATIO
    sizes = [max(8, round(plain.size * scale)) for scale in test.SCALES]
    views = [replace(view, interpolation=plain.interpolation) for size in sizes for view in crops(size, ratio)]
    others = [view for view in views if view != plain]
    return TTAViews(plain, others, test.FLIP or test.CROPS == 'ten', averages_plain=plain in views)


def load_members(trained: LoadedModel) -> list[LoadedModel]:
    """Return the models of the ensemble: that of RESUME_MODEL, then those of TEST.ENSEMBLE.

    Raises:
        UserError: a checkpoint is missing, or has other classes.
    """
    members = [trained]
    for path in trained.cfg.TEST.ENSEMBLE:
        other = load_another(path, 'TEST.ENSEMBLE', _member_options(trained), trained.group)
        if other.class_names != trained.class_names:
            raise UserError(
                f'TEST.ENSEMBLE {path}: its {len(other.class_names)} classes are not the {len(trained.class_names)} of '
                f'{trained.path}, name by name'
            )
        members.append(other)
    return members


def build_members(
    trained: Sequence[LoadedModel], split: DatasetSplit, *, with_plain: bool, num_images: int = 0
) -> list[EnsembleMember]:
    """Return the models with the loaders of their views of a split.

    The predictions of an image do not depend on the number of ranks: all have the batches of one process, and the
    partial last batch of several is padded, since libraries sum in another order for another size.

    Args:
        num_images: number of images of the whole split, if this is a part of it.
        with_plain: the first model predicts the plain view even where that is not averaged.

    Raises:
        UserError: a backbone does not take one of the sizes.
    """
    first = trained[0]
    first.check_classes(split)
    members = []
    for index, member in enumerate(trained):
        chosen = tta_views(member.cfg)
        for size in sorted({view.size for view in chosen.others} - {chosen.plain.size}):
            measure_width(member.model.backbone, member.cfg.MODEL.BACKBONE, size, 'TEST.SCALES')
        loads_plain = chosen.averages_plain or (with_plain and index == 0)
        views = [chosen.plain, *chosen.others] if loads_plain else chosen.others
        loader = build_eval_loader(member.cfg, split, member.device, member.group, views, whole_batches=True)
        averages_plain = chosen.averages_plain or not loads_plain
        num_all = max(num_images, len(split))
        min_batch = 0 if num_all <= loader.batch_size else loader.batch_size
        members.append(EnsembleMember(member.engine_for(num_all), loader, chosen.flip, averages_plain, min_batch))
    return members


def given_weights(text: str, num_members: int) -> list[float] | None:
    """Return the weights that TEST.ENSEMBLE_WEIGHTS gives, of sum 1; None where they are fitted on the valid split.

    Raises:
        UserError: neither 'equal' nor 'valid' nor a number for each member.
    """
    if text == 'equal':
        return [1 / num_members] * num_members
    if text == 'valid':
        return None
    try:
        weights = np.array([float(part) for part in text.split(',')])
    except ValueError:
        weights = np.zeros(0)
    if len(weights) != num_members or not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise UserError(
            f"TEST.ENSEMBLE_WEIGHTS is {shown(text)}, but must be 'equal', 'valid' or {num_members} numbers, at least "
            '0, separated by commas: one for each model, RESUME_MODEL first'
        )
    return (weights / weights.sum()).tolist()


def _member_options(trained: LoadedModel) -> dict[str, Any]:
    """Return the options of the other models: TEST, RUN and LOG_ROOT of this command."""
    cfg = trained.cfg
    options = {name: value for name, value in as_values(cfg).items() if name.startswith(('TEST.', 'RUN.'))}
    # All models use the same batches, and share the CPU cores.
    workers = num_workers(cfg.RUN.NUM_WORKERS)
    count = 1 + len(cfg.TEST.ENSEMBLE)
    return options | {
        'LOG_ROOT': cfg.LOG_ROOT,
        'TEST.ENSEMBLE': (),
        'TEST.BATCH_SIZE': eval_batch_size(cfg, trained.device),
        'RUN.NUM_WORKERS': max(min(1, workers), workers // count),
    }


def _five(size: int, ratio: float) -> list[Transform]:
    corners = [ResizeCornerCrop(size, ratio, right, bottom) for bottom in (False, True) for right in (False, True)]
    return [ResizeCenterCrop(size, ratio), *corners]


# TEST.CROPS -> views of an image, by side and crop ratio. Each also mirrored for 'ten', or with TEST.FLIP.
CROPS: dict[str, Callable[[int, float], Sequence[Transform]]] = {
    'center': lambda size, ratio: [ResizeCenterCrop(size, ratio)],
    'five': _five,
    'ten': _five,
    'whole': lambda size, ratio: [ResizeWhole(size)],
}
