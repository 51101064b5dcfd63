"""A step asks the device for nothing: each answer would wait for all that was sent to it before."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lib.distributed.process_group import SINGLE_PROCESS
from lib.loss.sharded_logits import ClassSubset, ShardedLogits
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.optim.gradients import make_scaler
from lib.optim.optimizer import KINDS, create_optimizer
from lib.trainer.microbatch import split_batch
from lib.trainer.step import _step
from tests.loss.cases import CASES, COUNTS
from tests.optim.test_scaler import Two
from tests.trainer.mixing.batches import ALL, mixer_of
from tests.trainer.mixing.batches import COUNTS as MIX_COUNTS
from tests.trainer.steps import Setup, batch_of, learner_of

# What brings numbers to the CPU, or makes a shape depend on them.
ASKS = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'equal', 'masked_select', 'unique', '_unique2', 'bincount',
        'unique_dim', 'unique_consecutive', 'masked_scatter', 'argwhere', 'allclose')  # fmt: skip
# The CPU looks at a mask by itself; elsewhere it is made into numbers first.
INDEXES = ('index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index')


def _is_mask(index):
    return index is not None and index.dtype in (torch.bool, torch.uint8)


class Asked(TorchDispatchMode):
    """Notes such operations, with the number of numbers that were looked at."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ASKS or (name in INDEXES and any(_is_mask(index) for index in args[1])):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


SETUPS = {
    'whole': Setup(),
    'in parts': Setup(at_once=4),
    'clipped and averaged': Setup(clip=0.05, decay=0.9),
    'ldam': Setup(loss='ldam'),
    'chunked': Setup(head='chunked'),
    'chunked, in parts, clipped, averaged': Setup(head='chunked', at_once=4, clip=0.05, decay=0.9),
    'sampled': Setup(head='sampled', loss='ldam'),
}


@pytest.mark.parametrize('name', SETUPS)
def test_a_step_asks_for_nothing(name):
    setup = SETUPS[name]
    learner = learner_of(setup)
    _step(learner, batch_of(setup, 0), 0)  # what is made once, such as momentum, is there afterwards
    with Asked() as asked:
        done = _step(learner, batch_of(setup, 1), 1)
    # On the CPU, where asking is free, chunks are spared a pass over the gradient when its factor is 1: one a part.
    allowed = len(learner.parts.slices) if setup.classifier_shard != 'whole' else 0
    assert asked.found == ['_local_scalar_dense'] * min(allowed, len(asked.found))
    assert done.loss.isfinite()


@pytest.mark.parametrize('name', sorted(ALL))
@pytest.mark.parametrize('head', ['whole', 'sampled'])
def test_mixing_and_deferred_weights_ask_for_nothing(name, head):
    """From images and labels on, in the epoch in which the weights begin."""
    setup = Setup(head=head, at_once=4, clip=0.05, decay=0.9, dtype=torch.float32)
    learner, mixer = learner_of(setup), mixer_of(name)
    learner.objective.loss.reweight_from_epoch = 1
    learner.objective.loss.loss.label_smoothing = 0.0  # of drawn classes nobody knows the mean of all
    images, labels = batch_of(setup, 0).images, batch_of(setup, 0).targets.labels[:, 0] % len(MIX_COUNTS)
    for epoch in (0, 1):
        learner.objective.set_epoch(epoch)
        with Asked() as asked:
            mixed = mixer(images, labels, epoch=epoch, first_slot=0)
            learner.parts = split_batch(len(mixed.images), at_once=setup.at_once)
            mixed = replace(mixed, stage=0)  # of this backbone, which has none
            done = _step(learner, mixed, epoch)
        allowed = len(learner.parts.slices) if head != 'whole' else 0
        assert asked.found == ['_local_scalar_dense'] * min(allowed, len(asked.found))
        assert done.loss.isfinite()


@pytest.mark.parametrize('loss', CASES)
def test_no_loss_asks(loss):
    """The whole and the chunked head, with class weights; the counts have a class without images."""
    random = torch.Generator().manual_seed(1)
    logits, features = torch.randn(8, 6, generator=random), torch.rand(8, 4, generator=random)
    average = WeightedLoss(CASES[loss].make(torch.tensor(COUNTS)), COUNTS, torch.linspace(0.5, 2, 6))
    targets = Targets(torch.tensor([0, 1, 2, 4, 5, 0, 1, 1]))
    for values in (logits, ShardedLogits(logits.clone(), ClassSubset(range(6), 6))):
        with Asked() as asked:
            total = average.total(values, targets, features) / average.normalizer(targets)
        assert asked.found == []
        assert total.isfinite()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('clip', [0.0, 0.05])
@pytest.mark.parametrize('sharded', [False, True])
def test_a_scaled_step_asks_for_nothing(kind, clip, sharded):
    """float16 and an optimiser whose kernels pass a bad step over by themselves."""
    learner = learner_of(Setup(clip=clip, dtype=torch.float32, decay=0.9))
    learner.optimizer = create_optimizer(learner.model, kind=kind, lr=0.1)
    learner.model.train_dtype = torch.float16
    learner.scaler = make_scaler(torch.device('cpu'), enabled=True, group=Two() if sharded else SINGLE_PROCESS)
    for step in range(2):
        with Asked() as asked:
            _step(learner, batch_of(Setup(dtype=torch.float32), step), step)
        assert asked.found == []


def test_asking_is_noticed():
    with Asked() as asked:
        assert torch.ones(()).item() == 1
    assert asked.found == ['_local_scalar_dense']


@pytest.mark.parametrize(
    'ask',
    [
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: float(x.sum()),
        lambda x: x.index_put((x > 0,), torch.zeros(())),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: bool((x > 0).all()),
        lambda x: x.masked_select(x > 0),
    ],
)
def test_every_way_of_asking_is_noticed(ask):
    with Asked() as asked:
        ask(torch.tensor([1.0, -1.0, 2.0]))
    assert asked.found
