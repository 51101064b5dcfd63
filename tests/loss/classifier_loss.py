"""A classifier with its loss: of all logits, of a shard of the classes, and over chunks of images."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lib.loss.chunked import chunked_loss
from lib.loss.sharded_logits import ClassSubset, ShardedLogits
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from tests.loss.cases import CASES, COUNTS, problem

NUM_CLASSES = len(COUNTS)
WEIGHTS = [0.5, 1.0, 2.0, 8.0, 0.25, 4.0]
LABEL_KINDS = ('hard', 'mixed', 'mixed_few')  # few: only labels of the first three classes


class Classifier(NamedTuple):
    """Features (batch, 5) and the rows of a linear classifier with scales, float64."""

    features: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor

    def rows(self, classes: range) -> 'Classifier':
        """Return the classifier with only the rows of some classes."""
        return Classifier(self.features, *(rows[classes.start : classes.stop] for rows in self[1:]))

    def leaves(self) -> 'Classifier':
        """Return copies that require gradients."""
        return Classifier(*(tensor.clone().requires_grad_() for tensor in self))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return x, weight and bias of the logits."""
        return self.features, self.weight * self.scale[:, None], self.bias * self.scale


def classifier_and_targets(seed: int, kind: str) -> tuple[Classifier, Targets]:
    random = torch.Generator().manual_seed(seed)
    _, features, targets = problem(seed, k=3 if kind.startswith('mixed') else 0)
    if kind.endswith('few'):
        targets = Targets(targets.labels % 3, targets.lam, targets.weights)
    weight = torch.randn(NUM_CLASSES, 5, dtype=torch.float64, generator=random)
    bias, scale = torch.randn(2, NUM_CLASSES, dtype=torch.float64, generator=random)
    return Classifier(features, weight, bias, 1 + 0.3 * scale), targets


def weighted_loss(name: str, *, weighted: bool) -> WeightedLoss:
    weights = {'class_weights': torch.tensor(WEIGHTS)} if weighted else {}
    return WeightedLoss(CASES[name].make(torch.tensor(COUNTS)), torch.tensor(COUNTS), **weights)


def whole(loss: WeightedLoss, classifier: Classifier, targets: Targets) -> dict[str, torch.Tensor]:
    """Return the loss of all logits, its gradients, and the predicted classes."""
    classifier = classifier.leaves()
    logits = F.linear(*classifier.factors())
    value = loss(logits, targets, classifier.features)
    gradients = torch.autograd.grad(value, classifier, materialize_grads=True)
    return {'loss': value.detach(), 'predicted': logits.argmax(dim=1)} | dict(
        zip(Classifier._fields, gradients, strict=True)
    )


def sharded(
    loss: WeightedLoss,
    classifier: Classifier,
    targets: Targets,
    *,
    classes: range = range(NUM_CLASSES),
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
    chunk: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return the same for a shard that has some of the classes; chunk None: all of its logits at once.

    `features` is the contribution of the shard: the sum over all shards is the gradient.
    """
    classifier = classifier.rows(classes).leaves()
    x, weight, bias = classifier.factors()
    extra = classifier.features.detach().clone().requires_grad_()
    subset = ClassSubset(classes, NUM_CLASSES, gather) if gather or len(classes) < NUM_CLASSES else None
    normalizer = loss.normalizer(targets)
    found = {}
    if chunk is None:
        value = loss.total(ShardedLogits(F.linear(x, weight, bias), subset), targets, extra) / normalizer
    else:
        value, found['predicted'] = chunked_loss(
            x,
            weight,
            bias,
            lambda logits, rows, extra_rows: loss.total(logits, targets.select(rows), extra_rows) / normalizer,
            chunk=chunk,
            subset=subset,
            extra=extra,
        )
    *gradients, grad_extra = torch.autograd.grad(value, (*classifier, extra), materialize_grads=True)
    found |= {'loss': value.detach()} | dict(zip(Classifier._fields, gradients, strict=True))
    if chunk is None and gather:
        grad_extra = grad_extra / len(gather(value.detach()))  # every shard computed the whole gradient
    found['features'] = found['features'] + grad_extra
    return found
