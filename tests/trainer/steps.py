"""A few training steps of a small model, on one process or on a rank of many: the same batches, the same start."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LinearClassifier
from lib.distributed.parallel import wrap_parallel
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.ldam import LDAM
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.optim.ema import ModelEMA
from lib.optim.gradients import clip_gradients
from lib.runtime.device import Device
from lib.trainer.chunked_head import ChunkedHead
from lib.trainer.forward import TrainingForward
from lib.trainer.microbatch import split_batch
from lib.trainer.mixing.base import MixedBatch
from lib.trainer.objective import Objective
from lib.trainer.step import Learner, _step

NUM_CLASSES, NUM_FEATURES, STEPS = 7, 6, 20
COUNTS = np.array([40, 20, 10, 5, 4, 2, 1])
CPU = Device(torch.device('cpu'), (), None, None)


@dataclass(frozen=True)
class Setup:
    """What a run is like.

    Attributes:
        batch_size: over all ranks.
        at_once: images that a rank takes at once; 0: all.
        head: 'whole', 'chunked', 'sampled' or 'sharded'.
        loss: 'mixed' (smoothed cross entropy of mixed labels, weighted classes) or 'ldam' (cosine classifier).
        clip: largest norm of the gradients; 0: any.
        decay: of the average of the weights; 0: none.
    """

    batch_size: int = 12
    at_once: int = 0
    head: str = 'whole'
    loss: str = 'mixed'
    clip: float = 0.0
    decay: float = 0.0
    dtype: torch.dtype = torch.float64


class FrozenNorm(nn.BatchNorm1d):
    """BatchNorm that keeps its statistics: those of a batch are not those of its parts."""

    def train(self, mode: bool = True) -> 'FrozenNorm':
        return super().train(False)


def model_of(setup: Setup, classes: range | None) -> Recognizer:
    """Return the model that every run starts with."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), FrozenNorm(9), nn.ReLU(), nn.Linear(9, NUM_FEATURES))
    kind = {'mixed': LinearClassifier, 'ldam': lambda *sizes, classes: CosineClassifier(*sizes, 8.0, classes=classes)}[
        setup.loss
    ]
    return Recognizer(backbone, kind(NUM_FEATURES, NUM_CLASSES, classes=classes)).to(setup.dtype)


def learner_of(setup: Setup, group: ProcessGroup = SINGLE_PROCESS) -> Learner:
    """Return what trains it."""
    is_sharded = setup.classifier_shard == 'sharded'
    rows = group.shard(NUM_CLASSES)
    model = model_of(setup, range(rows.start, rows.stop) if is_sharded else None).train()
    loss = {'mixed': CrossEntropy(0.1), 'ldam': LDAM(COUNTS, 0.5, 8.0)}[setup.loss]
    class_weights = torch.linspace(0.5, 2, NUM_CLASSES) if setup.loss == 'mixed' else None
    average = WeightedLoss(loss, COUNTS, class_weights).to(setup.dtype)
    head = None
    if setup.classifier_shard != 'whole':
        share = 0.5 if setup.classifier_shard == 'sampled' else 1.0
        head = ChunkedHead(
            model,
            average,
            chunk_images=3,
            sampled_share=share,
            group=group if is_sharded else SINGLE_PROCESS,
        )
    own = list(model.classifier.parameters()) if is_sharded else []
    shared = [parameter for parameter in model.parameters() if all(parameter is not other for other in own)]
    forward = TrainingForward(model, classifies=head is None)
    return Learner(
        model=model,
        forward=wrap_parallel(forward, CPU, group, num_images=setup.batch_size, own=own),
        objective=Objective(average, head=head),
        mixer=None,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-3),
        schedule=lambda step: 0.3 / (1 + step),
        loader=None,
        seed=0,
        parts=split_batch(setup.batch_size, group, setup.at_once),
        group=group,
        clip=(lambda: clip_gradients(shared, setup.clip, sharded=own, group=group)) if setup.clip else None,
        average=ModelEMA(model, setup.decay) if setup.decay else None,
    )


def batch_of(setup: Setup, step: int) -> MixedBatch:
    """Return the whole batch of a step."""
    random = torch.Generator().manual_seed(100 + step)
    images = torch.randn(setup.batch_size, 3, 2, 2, generator=random, dtype=torch.float64).to(setup.dtype)
    labels = torch.randint(NUM_CLASSES, (setup.batch_size, 2), generator=random)
    if setup.loss == 'ldam':
        return MixedBatch(images, Targets(labels[:, 0]))
    shares = torch.rand(setup.batch_size, generator=random)
    return MixedBatch(images, Targets(labels, torch.stack([shares, 1 - shares], dim=1)))


def train(setup: Setup, group: ProcessGroup = SINGLE_PROCESS, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Return the weights after some steps, those of the average too, and the sum of each step's losses over ranks.

    Of a sharded classifier, the rows of this rank.
    """
    learner, losses = learner_of(setup, group), []
    for step in range(steps):
        whole = batch_of(setup, step)
        rows = group.shard_pairs(setup.batch_size)
        own = MixedBatch(whole.images[rows], whole.targets.part(rows))
        losses.append(group.all_reduce(_step(learner, own, step).loss))
    found = dict(learner.model.state_dict())
    if learner.average is not None:
        found |= {f'average.{name}': tensor for name, tensor in learner.average.state_dict().items()}
    return {name: tensor.clone() for name, tensor in found.items()} | {'losses': torch.stack(losses)}
