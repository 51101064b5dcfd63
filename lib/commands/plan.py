"""tools/plan.py: estimate memory, communication and time of a training step, and the fastest strategy that fits."""

import functools
import math
import os

import numpy as np
import torch
from torch import nn

from lib.builders.data import open_training_data
from lib.builders.loss import build_loss
from lib.builders.model import CLASSIFIERS, new_model
from lib.builders.optim import build_optimizer
from lib.builders.recipe import resolve_recipe
from lib.builders.split import DatasetSplit
from lib.commands.next_steps import command_lines
from lib.config.defaults import Config
from lib.config.yaml_text import as_node, as_values
from lib.errors import UserError
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.plan.costs import (
    ClassifierCost,
    OptimizerCost,
    backbone_cost,
    chunked_classifier_cost,
    classifier_cost,
    optimizer_cost,
)
from lib.plan.strategies import (
    USABLE,
    StepSpec,
    Strategy,
    estimate_flops,
    estimate_memory,
    estimate_seconds,
    estimate_traffic,
    list_strategies,
)
from lib.plan.table import Row, model_table, options_of, strategies_table, total_table, traffic_table
from lib.runtime.device import Device, pick_device

# Size of the classifier that is measured, enough for several blocks; larger ones are extrapolated.
_MEASURED_ELEMENTS = 2**24
# For strategies with chunks or sampled classes, if the config sets none.
_CHUNK, _SAMPLED = 32, 0.1
_LARGE = 0.02  # of a device's memory: a backbone with such gradients is worth sharding
_CONFIGURED = 'as configured'  # name of the row of the config's strategy
_MANY_IMAGES = 10**6  # where their number is unknown, for the parts of a recipe that depend on it
# Model and loss are built without the options that a strategy varies.
_UNSHARDED = {
    'MODEL.BACKBONE_SHARDED': False,
    'MODEL.CLASSIFIER_SHARDED': False,
    'LOSS.CHUNK_IMAGES': 0,
    'LOSS.SAMPLED_CLASSES': 1.0,
}


class StepCosts:
    """The costs of a run's step: its model, loss and optimizer, run on tensors without memory.

    Attributes:
        backbone: BackboneCost.
        num_features: width of the features.
        num_centers: rows of the classifier per class.
        classifier, chunked_classifier, optimizer: cached functions, see `Costs` in lib/plan/strategies.py.
    """

    def __init__(self, cfg: Config, num_classes: int, train_dtype: torch.dtype | None) -> None:
        self._cfg = cfg = as_node(as_values(cfg) | _UNSHARDED)
        # Both half precisions take the same bytes; the CPU, which is simulated here, prefers bfloat16.
        self._dtype = None if train_dtype is None else torch.bfloat16
        device = Device(torch.device('meta'), (), self._dtype, None)
        with device.main:
            self._model = new_model(cfg, num_classes, device, pretrained=False)
        self.classifier = functools.cache(self._classifier)
        self.chunked_classifier = functools.cache(self._chunked_classifier)
        self.optimizer = functools.cache(self._optimizer)
        self.num_features, self.num_centers = self._model.num_features, self._model.classifier.num_centers
        try:
            self.backbone = backbone_cost(self._model, cfg.INPUT.SIZE)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f'MODEL.BACKBONE {cfg.MODEL.BACKBONE} does not run on tensors without memory, so it cannot be planned '
                f'({line}): choose another MODEL.BACKBONE'
            ) from error

    def _classifier(self, num_images: int, num_rows: int) -> ClassifierCost:
        """Return the cost of classifier and loss for a number of images and classes."""
        model = self._recognizer(nn.Identity(), num_rows)
        return classifier_cost(model, self._loss(num_rows), self.num_features, num_images)

    def _chunked_classifier(self, num_images: int, num_rows: int, chunk: int, num_sampled: int) -> ClassifierCost:
        """Return their cost when computed over chunks, which is linear in chunks and classes: measure a few of each."""
        fraction = num_sampled / num_rows
        few_rows = math.ceil(_MEASURED_ELEMENTS / self.num_features / fraction)

        def cost(images: int, rows: int) -> ClassifierCost:
            sampled = math.ceil(rows * fraction)
            return chunked_classifier_cost(
                self._recognizer(nn.Identity(), rows),
                self._loss(sampled),
                self.num_features,
                images,
                chunk=chunk,
                num_sampled=sampled,
            )

        images, rows = min(num_images, 2 * chunk), min(num_rows, few_rows)
        result = start = cost(images, rows)
        if num_rows > rows:
            result = result.extrapolate(start, cost(images, 2 * rows), num_rows / rows - 1)
        if num_images > images:
            result = result.extrapolate(start, cost(images + chunk, rows), (num_images - images) / chunk)
        return result

    def _loss(self, num_classes: int) -> WeightedLoss:
        return build_loss(self._cfg, np.ones(num_classes, dtype=np.int64))

    def _optimizer(self, num_rows: int) -> OptimizerCost:
        """Return the cost of the optimizer for the backbone with its embedding and a number of classes."""
        model = self._recognizer(self._model.backbone, num_rows)
        model.embedding = self._model.embedding
        return optimizer_cost(model, functools.partial(build_optimizer, self._cfg))

    def _recognizer(self, backbone: nn.Module, num_rows: int) -> Recognizer:
        with torch.device('meta'):
            classifier = CLASSIFIERS[self._cfg.MODEL.CLASSIFIER](self._cfg.MODEL, self.num_features, num_rows, None)
        return Recognizer(backbone, classifier, train_dtype=self._dtype)


def _training_split(cfg: Config) -> DatasetSplit:
    try:
        return open_training_data(cfg, quarantine=False).train
    except UserError as error:
        raise UserError(f'{error}; to plan without data: --PLAN_NUM_CLASSES 1000') from None


def make_plan(cfg: Config) -> list[str]:
    """Return the plan of the run's step on the hardware of the PLAN section, as lines.

    Raises:
        UserError: neither PLAN.NUM_CLASSES nor annotations; a backbone that cannot be planned; TFLOPS without a link.
    """
    device = pick_device(cfg.RUN.DEVICE, cfg.RUN.PRECISION)
    if cfg.PLAN.TFLOPS and cfg.PLAN.DEVICES > 1 and not cfg.PLAN.LINK_GB_S:
        raise UserError('PLAN.TFLOPS with several devices needs their bandwidth: set --PLAN_LINK_GB_S 25')
    train = None if cfg.PLAN.NUM_CLASSES else _training_split(cfg)
    num_classes = cfg.PLAN.NUM_CLASSES if train is None else train.num_classes
    cfg = resolve_recipe(cfg, cfg.PLAN.IMAGES or (_MANY_IMAGES if train is None else len(train)))
    costs = StepCosts(cfg, num_classes, device.train_dtype)
    spec = StepSpec(
        batch_size=cfg.TRAIN.BATCH_SIZE,
        num_devices=cfg.PLAN.DEVICES,
        num_classes=num_classes,
        num_features=costs.num_features,
        image_size=cfg.INPUT.SIZE,
        ema=cfg.TRAIN.EMA_DECAY > 0,
        num_centers=costs.num_centers,
    )
    device_bytes = cfg.PLAN.DEVICE_GB * 1e9 or _local_memory(device.main)
    rows = _rows(cfg, spec, costs, device_bytes)
    recommended = _recommended(cfg, rows, device_bytes)
    precision = 'float32' if device.train_dtype is None else str(device.train_dtype).removeprefix('torch.')
    devices = f'{spec.num_devices} device{"s" * (spec.num_devices > 1)}'
    return [
        f'{cfg.MODEL.BACKBONE} at {cfg.INPUT.SIZE} px, {cfg.MODEL.CLASSIFIER}, {cfg.LOSS.TYPE}, {precision}, '
        f'{cfg.OPTIMIZER.TYPE}',
        f'{spec.batch_size:,} images per step on {devices}: {spec.per_device_batch:,} each',
        '',
        *model_table(
            spec,
            costs.backbone,
            costs.classifier(2, num_classes),
            costs.optimizer(num_classes),
            per_device=spec.num_devices > 1,
        ),
        '',
        *strategies_table(rows, device_bytes),
        '',
        *_choice(recommended, spec),
        *_traffic(cfg, rows, recommended, spec, device_bytes),
    ]


def _rows(cfg: Config, spec: StepSpec, costs: StepCosts, device_bytes: float) -> list[Row]:
    """Return a row per strategy, and one for the strategy of the config if it is not the first."""

    def fits(strategy: Strategy) -> bool:
        return estimate_memory(strategy, spec, costs).total <= USABLE * device_bytes

    strategies = list(
        list_strategies(
            spec,
            chunk=cfg.LOSS.CHUNK_IMAGES or _CHUNK,
            sampled=cfg.LOSS.SAMPLED_CLASSES if cfg.LOSS.SAMPLED_CLASSES < 1 else _SAMPLED,
            fits=fits,
            shard_backbone=cfg.MODEL.BACKBONE_SHARDED or _LARGE * device_bytes < costs.backbone.gradients,
        )
    )
    micro_batch = cfg.TRAIN.DEVICE_BATCH_SIZE
    configured = Strategy(
        micro_batch=min(micro_batch, spec.per_device_batch) if micro_batch > 0 else spec.per_device_batch,
        chunk=cfg.LOSS.CHUNK_IMAGES,
        sharded=cfg.MODEL.CLASSIFIER_SHARDED and spec.num_devices > 1,
        sampled=cfg.LOSS.SAMPLED_CLASSES,
        backbone_sharded=cfg.MODEL.BACKBONE_SHARDED and spec.num_devices > 1,
    )
    if configured != strategies[0][1]:
        strategies.append((_CONFIGURED, configured))
    rows = []
    for name, strategy in strategies:
        classifier_gradients = costs.classifier(2, strategy.num_rows(spec)).gradients
        traffic = estimate_traffic(strategy, spec, costs.backbone, classifier_gradients)
        flops = estimate_flops(strategy, spec, costs.backbone)
        seconds = None
        if cfg.PLAN.TFLOPS:
            seconds = estimate_seconds(
                traffic,
                flops,
                flops_per_second=cfg.PLAN.TFLOPS * cfg.PLAN.UTILIZATION * 1e12,
                bytes_per_second=(cfg.PLAN.LINK_GB_S or 1) * 1e9,
            )
        rows.append(Row(name, strategy, estimate_memory(strategy, spec, costs), traffic, flops, seconds))
    return rows


def _recommended(cfg: Config, rows: list[Row], device_bytes: float) -> list[tuple[str, Row]]:
    """Return the fastest strategy that fits and computes the loss of the config, and a faster one with another loss.

    Each with a description. Equally fast ones are listed from the one that costs least; [] if nothing fits.
    """
    fitting = [row for row in rows if row.fits(device_bytes)]
    same_loss = [row for row in fitting if row.strategy.sampled == cfg.LOSS.SAMPLED_CLASSES]
    sampled = [row for row in fitting if row.strategy.sampled < cfg.LOSS.SAMPLED_CLASSES]
    first, other = (min(group, key=lambda row: row.cost, default=None) for group in (same_loss, sampled))
    found = [] if first is None else [('fastest strategy that fits', first)]
    if other is not None and (first is None or other.saves_time(first)):
        found.append(('faster, with an approximate loss' if first else 'fits only with an approximate loss', other))
    return found


def _choice(recommended: list[tuple[str, Row]], spec: StepSpec) -> list[str]:
    lines = [f'fits: at most {USABLE:.0%} of the memory; kernels, allocator and system need the rest']
    if not recommended:
        change = 'smaller images, fewer features' if spec.num_devices > 1 else 'several devices (--PLAN_DEVICES)'
        return [*lines, f'nothing fits: use {change},', '  more memory, or a smaller MODEL.BACKBONE']
    for description, row in recommended:
        options = options_of(row.strategy, spec)
        lines += [f'{description}: {row.name}', *(command_lines(options) if options else [])]
    return lines


def _traffic(
    cfg: Config, rows: list[Row], recommended: list[tuple[str, Row]], spec: StepSpec, device_bytes: float
) -> list[str]:
    fitting = [row for row in rows if row.fits(device_bytes)]
    table = traffic_table(fitting, spec, cfg.PLAN.IMAGES) if fitting else []
    if not table:
        return []
    lines = ['', *table]
    if cfg.PLAN.TFLOPS:
        link = f', {cfg.PLAN.LINK_GB_S:g} GB/s per device, no overlap' if spec.num_devices > 1 else ''
        lines.append(f'assumed: {cfg.PLAN.UTILIZATION:.0%} of {cfg.PLAN.TFLOPS:g} TFLOP/s{link}')
        if cfg.PLAN.IMAGES and cfg.TRAIN.MAX_EPOCH > 0:
            compared = [row for _, row in recommended]
            compared += [row for row in fitting if row.name == _CONFIGURED and row not in compared]
            lines += ['', *total_table(compared, spec, cfg.PLAN.IMAGES, cfg.TRAIN.MAX_EPOCH)]
    return lines


def _local_memory(device: torch.device) -> int:
    """Return the bytes of this machine's GPU, or its RAM.

    Raises:
        UserError: the operating system does not report its memory.
    """
    if device.type == 'cuda':
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, ValueError, OSError):
        raise UserError('the memory of this machine is unknown: set it, for example --PLAN_DEVICE_GB 16') from None
