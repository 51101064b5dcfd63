"""A training step never synchronizes with the device, which would wait for all kernels launched before."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lib.distributed.process_group import SINGLE_PROCESS
from lib.loss.sharded_logits import ClassSubset, ShardedLogits
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.optim.gradients import create_grad_scaler
from lib.optim.optimizer import KINDS, create_optimizer
from lib.trainer.microbatch import split_batch
from tests.loss.cases import CASES, COUNTS
from tests.optim.test_scaler import Two
from tests.trainer.mixing.batches import ALL, mixer_of
from tests.trainer.mixing.batches import COUNTS as MIX_COUNTS
from tests.trainer.steps import Setup, batch_of, step_of

# Operations that copy values to the CPU, or whose output shape depends on values.
SYNCS = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'equal', 'masked_select', 'unique', '_unique2', 'bincount',
        'unique_dim', 'unique_consecutive', 'masked_scatter', 'argwhere', 'allclose')  # fmt: skip
# With a mask as index, a GPU converts it into indices first, which synchronizes.
INDEXES = ('index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index')


def _is_mask(index):
    return index is not None and index.dtype in (torch.bool, torch.uint8)


class SyncRecorder(TorchDispatchMode):
    """Records the names of such operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in SYNCS or (name in INDEXES and any(_is_mask(index) for index in args[1])):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


SETUPS = {
    'whole': Setup(),
    'micro-batches': Setup(max_images=4),
    'clip and EMA': Setup(clip=0.05, decay=0.9),
    'ldam': Setup(loss='ldam'),
    'chunked': Setup(head='chunked'),
    'chunked, micro-batches, clip, EMA': Setup(head='chunked', max_images=4, clip=0.05, decay=0.9),
    'sampled': Setup(head='sampled', loss='ldam'),
    'margins': Setup(loss='ldam', max_images=4, margins=True),
    'chunked, margins': Setup(head='chunked', loss='ldam', margins=True),
}


@pytest.mark.parametrize('name', SETUPS)
def test_a_step_does_not_sync(name):
    setup = SETUPS[name]
    step = step_of(setup)
    step(batch_of(setup, 0), 0)  # creates the momentum
    with SyncRecorder() as recorder:
        result = step(batch_of(setup, 1), 1)
    # On the CPU, where a sync is free, a chunked loss skips scaling the gradient by 1: one sync per micro-batch.
    allowed = len(step.micro_batches.slices) if setup.head != 'whole' else 0
    assert recorder.names == ['_local_scalar_dense'] * min(allowed, len(recorder.names))
    assert result.loss.isfinite()


@pytest.mark.parametrize('name', sorted(ALL))
@pytest.mark.parametrize('head', ['whole', 'sampled'])
def test_mixing_and_deferred_weights_do_not_sync(name, head):
    """From images and labels to the update, before and after the weights apply."""
    setup = Setup(head=head, max_images=4, clip=0.05, decay=0.9, dtype=torch.float32)
    step, mixer = step_of(setup), mixer_of(name)
    step.objective.loss.reweight_from_epoch = 1
    step.objective.loss.loss.label_smoothing = 0.0  # undefined for sampled classes
    images, labels = batch_of(setup, 0).images, batch_of(setup, 0).targets.labels[:, 0] % len(MIX_COUNTS)
    for epoch in (0, 1):
        step.objective.set_epoch(epoch)
        with SyncRecorder() as recorder:
            mixed = mixer(images, labels, epoch=epoch, first_slot=0)
            step.micro_batches = split_batch(len(mixed.images), max_images=setup.max_images)
            mixed = replace(mixed, stage=0)  # this backbone has no stages
            result = step(mixed, epoch)
        allowed = len(step.micro_batches.slices) if head != 'whole' else 0
        assert recorder.names == ['_local_scalar_dense'] * min(allowed, len(recorder.names))
        assert result.loss.isfinite()


@pytest.mark.parametrize('loss', CASES)
def test_no_loss_syncs(loss):
    """The whole and the chunked head, with class weights; the counts have a class without images."""
    random = torch.Generator().manual_seed(1)
    logits, features = torch.randn(8, 6, generator=random), torch.rand(8, 4, generator=random)
    loss_of = WeightedLoss(CASES[loss].make(torch.tensor(COUNTS)), COUNTS, torch.linspace(0.5, 2, 6))
    targets = Targets(torch.tensor([0, 1, 2, 4, 5, 0, 1, 1]))
    for values in (logits, ShardedLogits(logits.clone(), ClassSubset(range(6), 6))):
        with SyncRecorder() as recorder:
            total = loss_of.total(values, targets, features) / loss_of.normalizer(targets)
        assert recorder.names == []
        assert total.isfinite()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('clip', [0.0, 0.05])
@pytest.mark.parametrize('sharded', [False, True])
def test_a_scaled_step_does_not_sync(kind, clip, sharded):
    """float16, with an optimizer whose kernels skip a step that overflows."""
    train_step = step_of(Setup(clip=clip, dtype=torch.float32, decay=0.9))
    state = train_step.state
    state.optimizer = create_optimizer(state.model, kind=kind, lr=0.1)
    state.model.train_dtype = torch.float16
    state.scaler = create_grad_scaler(torch.device('cpu'), enabled=True, group=Two() if sharded else SINGLE_PROCESS)
    for step in range(2):
        with SyncRecorder() as recorder:
            train_step(batch_of(Setup(dtype=torch.float32), step), step)
        assert recorder.names == []


def test_a_sync_is_recorded():
    with SyncRecorder() as recorder:
        assert torch.ones(()).item() == 1
    assert recorder.names == ['_local_scalar_dense']


@pytest.mark.parametrize(
    'sync',
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
def test_every_kind_of_sync_is_recorded(sync):
    with SyncRecorder() as recorder:
        sync(torch.tensor([1.0, -1.0, 2.0]))
    assert recorder.names
