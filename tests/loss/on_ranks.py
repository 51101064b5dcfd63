"""What runs on several ranks, each with a part of the classes."""

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
from tests.loss.head import LABEL_KINDS, NUM_CLASSES, average_loss, head_and_targets, in_parts
from tests.ranks import gather

# Where classes are cut, by the number of ranks: a range of one class; class 3, which has no images, alone.
CUTS = {2: [(0, 5, 6), (0, 1, 6)], 3: [(0, 3, 4, 6), (0, 1, 2, 6)]}
CHUNKS = (None, 4)
SEED = 20


def every_part(rank: int, count: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return what this rank finds, by name of the loss, kind of labels, cuts, chunk and weights."""
    found = {}
    for name, kind, cuts, chunk in itertools.product(CASES, LABEL_KINDS, range(2), CHUNKS):
        weighted = chunk == 4
        head, targets = head_and_targets(SEED, kind)
        edges = CUTS[count][cuts]
        found[f'{name} {kind} {cuts} {chunk}'] = in_parts(
            average_loss(name, weighted=weighted),
            head,
            targets,
            classes=range(edges[rank], edges[rank + 1]),
            gather=gather,
            chunk=chunk,
        )
    return found


def chance(rank: int, count: int) -> dict[str, torch.Tensor]:
    """Return losses that draw, on ranks whose generators differ, and those of the whole on the first."""
    loss = SoftmaxEqualization(torch.tensor(COUNTS), 0.05, 0.5)
    head, targets = head_and_targets(SEED, 'mixed')
    logits = F.linear(*head.factors())
    edges = CUTS[count][0]
    columns = ClassSubset(range(edges[rank], edges[rank + 1]), NUM_CLASSES, gather)
    torch.manual_seed(rank)
    part = loss(ShardedLogits(logits[:, edges[rank] : edges[rank + 1]], columns), targets.labels)
    torch.manual_seed(0)
    return {'part': part, 'whole': loss(logits, targets.labels)}


def beside_loss_parallel(rank: int, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Return our loss and gradient of hard labels, and those of torch's, from logits that are sharded by class."""
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
    columns = ClassSubset(range(6 * rank, 6 * rank + 6), num_classes, gather)
    our_loss = CrossEntropy()(ShardedLogits(ours, columns), labels).mean()
    our_loss.backward()
    return {
        'our_loss': our_loss.detach(),
        'their_loss': their_loss.full_tensor().detach(),
        'our_gradient': ours.grad,
        'their_gradient': theirs.grad.to_local(),
    }


def everything(rank: int, count: int, seed: int) -> dict:
    """Return all of it, from one start of the processes."""
    parts, chances = every_part(rank, count), chance(rank, count)
    return {'parts': parts, 'chance': chances, 'loss_parallel': beside_loss_parallel(rank, count, seed)}
