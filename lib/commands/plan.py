"""The config and PLAN -> what a training step needs of a device, and which way of taking it fits."""

import functools
import math
import os

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from lib.builders.data import open_training_data
from lib.builders.loss import build_loss
from lib.builders.model import CLASSIFIERS, new_model
from lib.builders.optim import build_optimizer
from lib.config.yaml_text import as_node, as_values
from lib.errors import UserError
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.plan.backbone import backbone_cost
from lib.plan.head import ClassifierCost, OptimizerCost, chunked_classifier_cost, classifier_cost, optimizer_cost
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
from lib.plan.table import Row, model_table, options_of, strategies_table, traffic_table
from lib.runtime.device import Device, pick_device

# Of the classifier, enough to be computed in several blocks.
_SOME_NUMBERS = 2**24
# For the ways that have them, where the config does not say.
_CHUNK, _SAMPLED = 32, 0.1
# How a step is taken does not change what model and loss are.
_ONE_PIECE = {'MODEL.CLASSIFIER_SHARDED': False, 'LOSS.CHUNK_IMAGES': 0, 'LOSS.SAMPLED_CLASSES': 1.0}


class StepCosts:
    """What the parts of a run's step take: the run's own model, loss and optimiser on tensors without memory."""

    def __init__(self, cfg: CfgNode, num_classes: int, train_dtype: torch.dtype | None) -> None:
        self._cfg = cfg = as_node(as_values(cfg) | _ONE_PIECE)
        # In either half precision the same bytes; the CPU, whose part is played here, prefers this one.
        self._dtype = None if train_dtype is None else torch.bfloat16
        device = Device(torch.device('meta'), (), self._dtype, None)
        with device.main:
            self._model = new_model(cfg, num_classes, device, pretrained=False)
        self.head, self.lean_head = functools.cache(self._head), functools.cache(self._lean_head)
        self.optimizer = functools.cache(self._optimizer)
        self.num_features = self._model.backbone.num_features
        try:
            self.backbone = backbone_cost(self._model, cfg.INPUT.SIZE)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f'MODEL.BACKBONE {cfg.MODEL.BACKBONE} cannot be run without memory: {line}') from error

    def _head(self, num_images: int, num_rows: int) -> ClassifierCost:
        """Return what classifier and loss take for so many images and classes."""
        return classifier_cost(self._recognizer(nn.Identity(), num_rows), self._loss(num_rows), self.num_features, num_images)

    def _lean_head(self, num_images: int, num_rows: int, chunk: int, num_compared: int) -> ClassifierCost:
        """Return what they take when they are computed together: linear in chunks and in classes, so a few tell."""
        share = num_compared / num_rows
        few = math.ceil(_SOME_NUMBERS / self.num_features / share)

        def cost(images: int, rows: int) -> ClassifierCost:
            compared = math.ceil(rows * share)
            return chunked_classifier_cost(
                self._recognizer(nn.Identity(), rows),
                self._loss(compared),
                self.num_features,
                images,
                chunk=chunk,
                num_compared=compared,
            )

        images, rows = min(num_images, 2 * chunk), min(num_rows, few)
        found = start = cost(images, rows)
        if num_rows > rows:
            found = found.beyond(start, cost(images, 2 * rows), num_rows / rows - 1)
        if num_images > images:
            found = found.beyond(start, cost(images + chunk, rows), (num_images - images) / chunk)
        return found

    def _loss(self, num_classes: int) -> WeightedLoss:
        return build_loss(self._cfg, np.ones(num_classes, dtype=np.int64))

    def _optimizer(self, num_rows: int) -> OptimizerCost:
        """Return what the optimiser takes for the backbone and so many classes."""
        model = self._recognizer(self._model.backbone, num_rows)
        return optimizer_cost(model, functools.partial(build_optimizer, self._cfg))

    def _recognizer(self, backbone: nn.Module, num_rows: int) -> Recognizer:
        with torch.device('meta'):
            classifier = CLASSIFIERS[self._cfg.MODEL.CLASSIFIER](self._cfg.MODEL, self.num_features, num_rows, None)
        return Recognizer(backbone, classifier, train_dtype=self._dtype)


def make_plan(cfg: CfgNode) -> list[str]:
    """Return what a step of the run needs, on PLAN's hardware, a line each.

    Raises:
        UserError: neither PLAN.NUM_CLASSES nor annotations; a backbone that cannot be planned; TFLOPS without a link.
    """
    device = pick_device(cfg.RUN.DEVICE, cfg.RUN.PRECISION)
    if cfg.PLAN.TFLOPS and cfg.PLAN.DEVICES > 1 and not cfg.PLAN.LINK_GB_S:
        raise UserError('PLAN.TFLOPS is set, but times of several devices need PLAN.LINK_GB_S too: --PLAN_LINK_GB_S 25')
    num_classes = cfg.PLAN.NUM_CLASSES or open_training_data(cfg).train.num_classes
    costs = StepCosts(cfg, num_classes, device.train_dtype)
    job = StepSpec(
        batch_size=cfg.TRAIN.BATCH_SIZE,
        devices=cfg.PLAN.DEVICES,
        num_classes=num_classes,
        num_features=costs.num_features,
        image_size=cfg.INPUT.SIZE,
        ema=cfg.TRAIN.EMA_DECAY > 0,
    )
    device_bytes = cfg.PLAN.DEVICE_GB * 1e9 or _own_memory(device.main)
    rows = _rows(cfg, job, costs, device_bytes)
    precision = 'float32' if device.train_dtype is None else str(device.train_dtype).removeprefix('torch.')
    return [
        f'{cfg.MODEL.BACKBONE} at {cfg.INPUT.SIZE} px, {cfg.MODEL.CLASSIFIER}, {cfg.LOSS.TYPE}, {precision}, '
        f'{cfg.OPTIMIZER.TYPE}',
        f'{job.batch_size:,} images a step over {job.devices} device{"s" * (job.devices > 1)}: {job.share:,} each',
        '',
        *model_table(
            job,
            costs.backbone,
            costs.head(2, num_classes),
            costs.optimizer(num_classes),
            per_device=job.devices > 1,
        ),
        '',
        *strategies_table(rows, job, device_bytes),
        '',
        *_choice(rows, job, device_bytes),
        *_traffic(cfg, rows, job, device_bytes),
    ]


def _rows(cfg: CfgNode, job: StepSpec, costs: StepCosts, device_bytes: float) -> list[Row]:
    def fits(way: Strategy) -> bool:
        return estimate_memory(way, job, costs).total <= USABLE * device_bytes

    named = list(
        list_strategies(
            job,
            chunk=cfg.LOSS.CHUNK_IMAGES or _CHUNK,
            sampled=cfg.LOSS.SAMPLED_CLASSES if cfg.LOSS.SAMPLED_CLASSES < 1 else _SAMPLED,
            fits=fits,
        )
    )
    configured = Strategy(
        at_once=min(cfg.TRAIN.DEVICE_BATCH_SIZE, job.share) if cfg.TRAIN.DEVICE_BATCH_SIZE > 0 else job.share,
        chunk=cfg.LOSS.CHUNK_IMAGES,
        sharded=cfg.MODEL.CLASSIFIER_SHARDED and job.devices > 1,
        sampled=cfg.LOSS.SAMPLED_CLASSES,
    )
    if configured != named[0][1]:
        named.append(('as configured', configured))
    rows = []
    for name, way in named:
        traffic = estimate_traffic(way, job, costs.backbone, costs.head(2, way.rows(job)).gradients)
        flops = estimate_flops(way, job, costs.backbone)
        seconds = None
        if cfg.PLAN.TFLOPS:
            seconds = estimate_seconds(
                traffic,
                flops,
                flops_a_second=cfg.PLAN.TFLOPS * cfg.PLAN.UTILIZATION * 1e12,
                bytes_a_second=(cfg.PLAN.LINK_GB_S or 1) * 1e9,
            )
        rows.append(Row(name, way, estimate_memory(way, job, costs), traffic, flops, seconds))
    return rows


def _cheapest(rows: list[Row], device_bytes: float) -> Row | None:
    planned = [row for row in rows if row.name != 'as configured']
    return next((row for row in planned if row.need.total <= USABLE * device_bytes), None)


def _choice(rows: list[Row], job: StepSpec, device_bytes: float) -> list[str]:
    chosen = _cheapest(rows, device_bytes)
    lines = [f'Fits: at most {USABLE:.0%} of the memory; kernels, allocator and system take more.']
    if chosen is None:
        fewer = 'smaller images, fewer features' if job.devices > 1 else 'several devices (--PLAN_DEVICES)'
        return [*lines, f'Nothing fits: more memory, {fewer}, or a smaller MODEL.BACKBONE.']
    options = options_of(chosen.way, job)
    return [*lines, f'The cheapest that fits: {chosen.name}', *([f'  {options}'] if options else [])]


def _traffic(cfg: CfgNode, rows: list[Row], job: StepSpec, device_bytes: float) -> list[str]:
    shown = [row for row in rows if row.need.total <= USABLE * device_bytes]
    table = traffic_table(shown, job, cfg.PLAN.IMAGES) if shown else []
    if not table:
        return []
    lines = ['', *table]
    if cfg.PLAN.TFLOPS:
        lines.append(
            f'Assumed: {cfg.PLAN.UTILIZATION:.0%} of {cfg.PLAN.TFLOPS:g} TFLOPS'
            + (f', {cfg.PLAN.LINK_GB_S:g} GB/s a device' if job.devices > 1 else '')
            + ', nothing sent while computing.'
        )
        chosen, epochs = _cheapest(rows, device_bytes), cfg.TRAIN.MAX_EPOCH
        if chosen and cfg.PLAN.IMAGES and epochs:
            seconds = sum(chosen.seconds) * cfg.PLAN.IMAGES / job.batch_size * epochs
            time = f'{seconds / 3600:.3g} hours' if seconds < 2 * 86400 else f'{seconds / 86400:.3g} days'
            lines.append(f'{epochs} epochs of {cfg.PLAN.IMAGES:,} images, {chosen.name}: {time}.')
    return lines


def _own_memory(device: torch.device) -> int:
    """Return the bytes of this machine's GPU, or its RAM.

    Raises:
        UserError: this system does not tell.
    """
    if device.type == 'cuda':
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, ValueError, OSError):
        raise UserError('this system does not tell its memory: --PLAN_DEVICE_GB 16') from None
