"""What metrics need of the logits of a batch, from all classes or from the parts that ranks hold."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from lib.distributed.process_group import ProcessGroup

NUM_BEST = 5


class Scores(NamedTuple):
    """Of each image of a batch.

    Attributes:
        best: (batch, 5) int64 classes of the largest logits, the largest first; fewer where there are fewer classes.
        losses: (batch,) float32 cross entropy; of labels below 0, that of class 0.
        confidence: (batch,) float32 probability of the best class.
    """

    best: torch.Tensor
    losses: torch.Tensor
    confidence: torch.Tensor


def scores_of(logits: torch.Tensor, labels: torch.Tensor) -> Scores:
    """Return the scores of logits (batch, num_classes) float32 with labels (batch,) int64."""
    best = logits.topk(min(NUM_BEST, logits.shape[1]), dim=1)
    confidence = (best.values[:, 0] - logits.logsumexp(dim=1)).exp()
    return Scores(best.indices, F.cross_entropy(logits, labels.clamp(min=0), reduction='none'), confidence)


def scores_of_parts(
    logits: torch.Tensor, labels: torch.Tensor, classes: range, num_classes: int, group: ProcessGroup
) -> Scores:
    """Return the same of a classifier of which each rank holds some classes; every rank passes the same images.

    Args:
        logits: (batch, len(classes)) float32 of this rank's classes.
        labels: (batch,) int64, of all classes.
        num_classes: of all ranks.
    """
    own = logits.topk(min(NUM_BEST, len(classes)), dim=1)
    # Ranks send the same shape; one of few classes fills up with what never wins.
    values = F.pad(own.values, (0, NUM_BEST - own.values.shape[1]), value=-torch.inf)
    numbers = F.pad(own.indices + classes.start, (0, NUM_BEST - own.indices.shape[1]), value=-1)
    values, numbers = (group.all_gather(part).transpose(0, 1).flatten(1) for part in (values, numbers))
    highest = values.topk(min(NUM_BEST, num_classes), dim=1)
    best = numbers.gather(1, highest.indices)
    places = labels.clamp(min=0) - classes.start
    is_here = (places >= 0) & (places < len(classes))
    label_logits = logits.gather(1, places.clamp(0, len(classes) - 1)[:, None]).squeeze(1).where(is_here, 0.0)
    sums = group.all_gather(logits.logsumexp(dim=1)).logsumexp(dim=0)
    return Scores(best, sums - group.all_reduce(label_logits), (highest.values[:, 0] - sums).exp())
