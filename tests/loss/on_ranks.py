"""Functions that run on several ranks, each with a shard of the classes."""

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel

from lib.loss.cross_entropy import CrossEntropy
from lib.loss.sharded_logits import ClassSubset, ShardedLogits
from lib.loss.softmax_equalization import SoftmaxEqualization
from tests.loss.cases import CASES, COUNTS
from tests.loss.classifier_loss import LABEL_KINDS, NUM_CLASSES, classifier_and_targets, sharded, weighted_loss
from tests.ranks import gather

# First class of each shard, by the number of ranks: a shard of one class; one of only class 3, which has no images.
SHARD_EDGES = {2: [(0, 5, 6), (0, 1, 6)], 3: [(0, 3, 4, 6), (0, 1, 2, 6)]}
CHUNKS = (None, 4)
SEED = 20


def every_shard(rank: int, count: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return this rank's results by name of the loss, kind of labels, shard edges and chunk."""
    found = {}
    for name, kind, cuts, chunk in itertools.product(CASES, LABEL_KINDS, range(2), CHUNKS):
        weighted = chunk == 4
        classifier, targets = classifier_and_targets(SEED, kind)
        edges = SHARD_EDGES[count][cuts]
        found[f'{name} {kind} {cuts} {chunk}'] = sharded(
            weighted_loss(name, weighted=weighted),
            classifier,
            targets,
            classes=range(edges[rank], edges[rank + 1]),
            gather=gather,
            chunk=chunk,
        )
    return found


def random_losses(rank: int, count: int) -> dict[str, torch.Tensor]:
    """Return a random loss (SEQL) of a shard, where the ranks' generators differ, and of all logits on the first."""
    loss = SoftmaxEqualization(torch.tensor(COUNTS), 0.05, 0.5)
    classifier, targets = classifier_and_targets(SEED, 'mixed')
    logits = F.linear(*classifier.factors())
    edges = SHARD_EDGES[count][0]
    subset = ClassSubset(range(edges[rank], edges[rank + 1]), NUM_CLASSES, gather)
    torch.manual_seed(rank)
    shard = loss(ShardedLogits(logits[:, edges[rank] : edges[rank + 1]], subset), targets.labels)
    torch.manual_seed(0)
    return {'shard': shard, 'whole': loss(logits, targets.labels)}


def beside_loss_parallel(rank: int, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Return our loss and gradient and those of torch's loss_parallel, from logits sharded by class."""
    random = torch.Generator().manual_seed(seed)
    num_classes = 6 * count
    logits = 4 * torch.randn(8, num_classes, dtype=torch.float64, generator=random)
    labels = torch.randint(num_classes, (8,), generator=random)
    mesh = dist.init_device_mesh('cpu', (count,))
    mine = logits.chunk(count, dim=1)[rank]
    theirs = DTensor.from_local(mine.clone(), mesh, [Shard(1)]).requires_grad_()
    with loss_parallel():
        their_labels = DTensor.from_local(labels, mesh, [Replicate()])
        their_loss = F.cross_entropy(theirs, their_labels)
        their_loss.backward()
    ours = mine.clone().requires_grad_()
    subset = ClassSubset(range(6 * rank, 6 * rank + 6), num_classes, gather)
    our_loss = CrossEntropy()(ShardedLogits(ours, subset), labels).mean()
    our_loss.backward()
    return {
        'our_loss': our_loss.detach(),
        'their_loss': their_loss.full_tensor().detach(),
        'our_gradient': ours.grad,
        'their_gradient': theirs.grad.to_local(),
    }


def everything(rank: int, count: int, seed: int) -> dict:
    """Return all results from one start of the processes."""
    shards, losses = every_shard(rank, count), random_losses(rank, count)
    return {'shards': shards, 'random': losses, 'loss_parallel': beside_loss_parallel(rank, count, seed)}
