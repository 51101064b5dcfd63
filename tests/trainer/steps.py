"""A few training steps of a small model, in one process or on one of several ranks, with the same start and batches."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LinearClassifier
from lib.distributed.fully_sharded import FullySharded
from lib.distributed.parallel import wrap_parallel
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.loss.arcface import ArcFace, margins_by_size
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.ldam import LDAM
from lib.loss.metric import batch_hard_triplet, multi_similarity, supervised_contrastive
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Embedding, Recognizer
from lib.optim.ema import ModelEMA
from lib.optim.gradients import clip_gradients
from lib.runtime.device import Device
from lib.trainer.chunked_head import ChunkedHead
from lib.trainer.forward import TrainingForward, WholeHead
from lib.trainer.microbatch import split_batch
from lib.trainer.mixing.base import MixedBatch
from lib.trainer.objective import MetricTerm, Objective
from lib.trainer.step import TrainStep
from lib.trainer.train_state import TrainState

NUM_CLASSES, NUM_FEATURES, NUM_WIDTH, STEPS = 7, 6, 5, 12
COUNTS = np.array([40, 20, 10, 5, 4, 2, 1])
METRIC_LOSSES = {
    'triplet': batch_hard_triplet,
    'multi_similarity': multi_similarity,
    'supervised_contrastive': lambda: supervised_contrastive(0.1),
}
CPU = Device(torch.device('cpu'), (), None, None)


@dataclass(frozen=True)
class Setup:
    """Options of a run.

    Attributes:
        batch_size: over all ranks.
        max_images: images of a micro-batch on each rank; 0: no micro-batches.
        head: 'whole', 'chunked', 'sampled' or 'sharded'.
        loss: 'mixed' (smoothed cross entropy of mixed labels, weighted classes), 'ldam' (cosine classifier), or
            'arcface' (cosine classifier with several centers, margins by class size).
        clip: largest norm of the gradients; 0: off.
        decay: of the EMA; 0: off.
        tune: MODEL.TUNE; '': all parameters are trained.
        margins: compute the margins of the labels.
        weighted: each label counts with the weight of the image that it is from.
        embedding: the model has one.
        auxiliary: a metric loss of the features beside the loss; '': none.
        head_steps: first steps, which train embedding and classifier alone.
        backbone_sharded: with several ranks, each holds some rows of the backbone's parameters.
        adamw: AdamW in place of SGD.
    """

    batch_size: int = 12
    max_images: int = 0
    head: str = 'whole'
    loss: str = 'mixed'
    clip: float = 0.0
    decay: float = 0.0
    tune: str = ''
    margins: bool = False
    weighted: bool = False
    embedding: bool = False
    auxiliary: str = ''
    head_steps: int = 0
    backbone_sharded: bool = False
    adamw: bool = False
    dtype: torch.dtype = torch.float64


class FrozenNorm(nn.BatchNorm1d):
    """BatchNorm in eval mode: the statistics of micro-batches differ from those of their batch."""

    def train(self, mode: bool = True) -> 'FrozenNorm':
        return super().train(False)


def model_of(setup: Setup, classes: range | None) -> Recognizer:
    """Return the initial model of every run."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(12, 9), FrozenNorm(9), nn.ReLU(), nn.Linear(9, NUM_FEATURES))
    backbone = nn.Sequential(OrderedDict(flatten=nn.Flatten(), mlp=mlp))
    sizes, num_centers = (NUM_FEATURES, NUM_CLASSES), 3 if setup.loss == 'arcface' else 1
    embedding = None
    if setup.embedding:
        sizes, embedding = (NUM_WIDTH, NUM_CLASSES), Embedding(NUM_FEATURES, NUM_WIDTH)
        embedding.norm = FrozenNorm(NUM_WIDTH)
    model = Recognizer(
        backbone,
        LinearClassifier(*sizes, classes=classes)
        if setup.loss == 'mixed'
        else CosineClassifier(*sizes, 8.0, num_centers=num_centers, classes=classes),
        embedding=embedding,
    )
    if setup.tune:
        model.tune_backbone(setup.tune, rank=2, scale=1.0, seed=0, name='')
    return model.to(setup.dtype)


def step_of(setup: Setup, group: ProcessGroup = SINGLE_PROCESS) -> TrainStep:
    """Return the training step with its initial state."""
    is_sharded = setup.head == 'sharded'
    rows = group.shard(NUM_CLASSES)
    model = model_of(setup, range(rows.start, rows.stop) if is_sharded else None).train()
    loss = {
        'mixed': CrossEntropy(0.1),
        'ldam': LDAM(COUNTS, 0.5, 8.0),
        'arcface': ArcFace(margins_by_size(COUNTS, 0.5, 0.05), 8.0),
    }[setup.loss]
    class_weights = torch.linspace(0.5, 2, NUM_CLASSES) if setup.loss == 'mixed' else None
    weighted = WeightedLoss(loss, COUNTS, class_weights).to(setup.dtype)
    head: WholeHead | ChunkedHead = WholeHead(weighted, with_margins=setup.margins)
    if setup.head != 'whole':
        head = ChunkedHead(
            model,
            weighted,
            chunk_images=3,
            sampled_fraction=0.5 if setup.head == 'sampled' else 1.0,
            group=group if is_sharded else SINGLE_PROCESS,
            with_margins=setup.margins,
        )
    term = MetricTerm(METRIC_LOSSES[setup.auxiliary](), group) if setup.auxiliary else None
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-3)
    if setup.adamw:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=1e-3)
    sharded = None
    if setup.backbone_sharded and group.world_size > 1:
        sharded = FullySharded(model.backbone, [model.backbone.mlp[0]], group, prefix='backbone.')
        sharded.rows_in_place_of_whole(optimizer)
    own = list(model.classifier.parameters()) if is_sharded else []
    shared = [parameter for parameter in model.parameters() if all(parameter is not other for other in own)]
    rows = [*own, *(sharded.rows.values() if sharded else ())]
    forward = TrainingForward(model, classifies=setup.head == 'whole')
    return TrainStep(
        state=TrainState(
            model,
            optimizer,
            ema=ModelEMA(model, setup.decay) if setup.decay else None,
            sharded=sharded,
        ),
        forward=forward if sharded else wrap_parallel(forward, CPU, group, num_images=setup.batch_size, sharded=own),
        objective=Objective(weighted, term, auxiliary_weight=0.7, head=head),
        schedule=lambda step: 0.3 / (1 + step),
        seed=0,
        micro_batches=split_batch(setup.batch_size, group, setup.max_images),
        group=group,
        clip=(lambda: clip_gradients(shared, setup.clip, sharded=rows, group=group)) if setup.clip else None,
        head_epochs=min(1, setup.head_steps),
    )


def batch_of(setup: Setup, step: int) -> MixedBatch:
    """Return the whole batch of a step."""
    random = torch.Generator().manual_seed(100 + step)
    images = torch.randn(setup.batch_size, 3, 2, 2, generator=random, dtype=torch.float64).to(setup.dtype)
    labels = torch.randint(NUM_CLASSES, (setup.batch_size, 2), generator=random)
    if setup.loss != 'mixed':
        return MixedBatch(images, Targets(labels[:, 0]))
    lam = torch.rand(setup.batch_size, generator=random)
    weights = torch.rand(setup.batch_size, 2, generator=random) if setup.weighted else None
    return MixedBatch(images, Targets(labels, torch.stack([lam, 1 - lam], dim=1), weights))


def take_steps(train_step: TrainStep, setup: Setup, numbers: range) -> torch.Tensor:
    """Take the steps of these numbers; return the loss of each, summed over the ranks."""
    group, losses = train_step.group, []
    for number in numbers:
        whole = batch_of(setup, number)
        rows = group.shard_pairs(setup.batch_size)
        of_rank = MixedBatch(whole.images[rows], whole.targets.select(rows))
        train_step.set_epoch(int(number >= setup.head_steps))
        losses.append(group.all_reduce(train_step(of_rank, number).loss))
    return torch.stack(losses)


def train(setup: Setup, group: ProcessGroup = SINGLE_PROCESS, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Return the weights after some steps, those of the EMA too, and the loss of each step summed over the ranks.

    Of a sharded classifier, the rows of this rank; of a sharded backbone, the whole on the main rank, else nothing.
    """
    train_step = step_of(setup, group)
    losses = take_steps(train_step, setup, range(steps))
    state = train_step.state
    states = {'': state.model.state_dict()} | ({} if state.ema is None else {'ema.': state.ema.state_dict()})
    if state.sharded is not None:
        states = {prefix: state.sharded.whole(weights) for prefix, weights in states.items()}
    return {'losses': losses} | {
        f'{prefix}{name}': tensor.clone()
        for prefix, weights in states.items()
        for name, tensor in weights.items()
        if group.is_main or state.sharded is None or name not in state.sharded.rows
    }
