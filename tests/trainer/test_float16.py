"""Steps in float16: a step that overflows is skipped, and a resumed run continues with its loss scale."""

from itertools import pairwise

import pytest
import torch

from lib.builders.optim import build_scaler
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.optim.gradients import create_grad_scaler
from lib.optim.optimizer import KINDS, create_optimizer
from lib.runtime.device import pick_device
from tests.ranks import run_ranks
from tests.trainer.steps import Setup, batch_of, model_of, step_of

CPU = torch.device('cpu')
DECAY = 0.75


def setup_of(head='whole'):
    loss = 'ldam' if head == 'sampled' else 'mixed'  # label smoothing is undefined for sampled classes
    return Setup(batch_size=12, max_images=4, head=head, loss=loss, clip=0.5, decay=DECAY, dtype=torch.float32)


def float16_step(setup, kind='sgd', *, scale, growth_interval=2000, group=SINGLE_PROCESS):
    train_step = step_of(setup, group)
    train_step.state.optimizer = create_optimizer(train_step.state.model, kind=kind, lr=0.0, weight_decay=1e-3)
    train_step.state.model.train_dtype = torch.float16
    train_step.state.scaler = create_grad_scaler(CPU, enabled=True, group=group)
    known = {'scale': float(scale), 'growth_interval': growth_interval}
    train_step.state.scaler.load_state_dict(train_step.state.scaler.state_dict() | known)
    return train_step


def weights_of(train_step):
    return {name: tensor.clone() for name, tensor in train_step.state.model.state_dict().items()}


def check_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.long
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('head', ['whole', 'chunked', 'sampled'])
def test_steps_that_overflow_are_skipped(head, kind):
    """Until the scale is small enough; then the result is that of a run without overflows."""
    setup = setup_of(head)
    train_step, scale = float16_step(setup, kind, scale=2**40), 2.0**40
    start = weights_of(train_step)
    while True:
        done = train_step(batch_of(setup, 0), 0)
        assert done.loss.isfinite(), 'an overflow of the gradients is no divergence'
        if train_step.state.scaler.get_scale() == scale:
            break
        scale /= 2
        assert train_step.state.scaler.get_scale() == scale
        check_same(weights_of(train_step), start)
        check_same(train_step.state.ema.state_dict(), start)
    assert 1 < scale < 2**39
    fresh = float16_step(setup, kind, scale=scale)
    fresh(batch_of(setup, 0), 0)
    found = weights_of(train_step)
    check_same(found, weights_of(fresh))
    check_same(train_step.state.optimizer.state_dict(), fresh.state.optimizer.state_dict())
    assert not torch.equal(found['classifier.weight'], start['classifier.weight'])
    name = 'classifier.weight'
    expected = DECAY * start[name] + (1 - DECAY) * found[name]
    torch.testing.assert_close(train_step.state.ema.state_dict()[name], expected)


@pytest.mark.parametrize('head', ['whole', 'chunked'])
def test_float16_is_close_to_float32(head):
    """Gradients are unscaled before they are clipped."""
    setup, found = setup_of(head), []
    for scale in (None, 2**10):
        train_step = step_of(setup) if scale is None else float16_step(setup, scale=scale)
        train_step.state.optimizer = create_optimizer(train_step.state.model, kind='sgd', lr=0.0, weight_decay=1e-3)
        start = weights_of(train_step)['classifier.weight']
        for step in range(4):
            train_step(batch_of(setup, step), step)
        found.append(weights_of(train_step)['classifier.weight'])
    moved = (found[0] - start).norm()
    assert moved > 0.05
    assert (found[1] - found[0]).norm() < 0.01 * moved


def test_a_resumed_run_continues_with_its_scale(tmp_path):
    """Bit for bit, through a file, while the scale grows after good steps and shrinks after overflows."""
    setup = setup_of()

    def train(train_step, steps):
        scales = []
        for step in steps:
            train_step(batch_of(setup, step), step)
            scales.append(train_step.state.scaler.get_scale())
        return scales

    whole = float16_step(setup, 'adamw', scale=2**24, growth_interval=2)
    scales = train(whole, range(16))
    ups = sum(after > before for before, after in pairwise(scales))
    downs = sum(after < before for before, after in pairwise(scales))
    assert ups >= 2
    assert downs >= 2
    for stop in (3, 9, 10):
        first = float16_step(setup, 'adamw', scale=2**24, growth_interval=2)
        train(first, range(stop))
        names = ('model', 'optimizer', 'scaler', 'ema')
        torch.save({name: getattr(first.state, name).state_dict() for name in names}, tmp_path / 'state.pth')
        second = float16_step(setup, 'adamw', scale=1)
        for name, state in torch.load(tmp_path / 'state.pth', weights_only=True).items():
            getattr(second.state, name).load_state_dict(state)
        assert train(second, range(stop, 16)) == scales[stop:]
        check_same(weights_of(second), weights_of(whole))
        check_same(second.state.ema.state_dict(), whole.state.ema.state_dict())
        assert second.state.scaler.state_dict() == whole.state.scaler.state_dict()


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'auto', 'float16'])
def test_only_float16_is_scaled(precision):
    scaler = build_scaler(model_of(Setup(), None), pick_device('cpu', precision), SINGLE_PROCESS)
    assert (scaler is not None) is (precision == 'float16')


@pytest.mark.parametrize(('classes', 'asks'), [(None, False), (range(4), True)])
def test_only_ranks_with_different_classes_reduce(classes, asks):
    """Averaged gradients are equal on all ranks, so no collective is needed."""
    asked = []

    class Recording(ProcessGroup):
        def all_reduce(self, tensor):
            asked.append(tensor.clone())
            return tensor

    model = model_of(Setup(dtype=torch.float32), classes)
    scaler = build_scaler(model, pick_device('cpu', 'float16'), Recording(0, 2))
    optimizer = create_optimizer(model, kind='sgd', lr=0.1)
    scaler.scale(model(torch.ones(2, 3, 2, 2)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert bool(asked) is asks


def with_a_bad_rank(rank, count):
    """Return scale and weights after a step that is bad on the last rank alone, and after a good one."""
    group, setup, found = ProcessGroup(rank, count), Setup(head='sharded', dtype=torch.float32, clip=0.5), []
    train_step = float16_step(setup, scale=2**8, group=group)
    found.append(weights_of(train_step))
    for step, is_bad in enumerate([True, False]):
        weight = train_step.state.model.classifier.weight
        hook = weight.register_hook(lambda g, bad=is_bad: g * torch.inf if bad and rank == count - 1 else g)
        whole = batch_of(setup, step)
        train_step(whole.select(group.shard_pairs(setup.batch_size)), step)
        hook.remove()
        found.append({**weights_of(train_step), 'scale': torch.tensor(train_step.state.scaler.get_scale())})
    return found


@pytest.mark.process
@pytest.mark.slow
def test_an_overflow_on_one_rank_is_skipped_by_all(tmp_path):
    for start, bad, good in run_ranks(with_a_bad_rank, 2, tmp_path):
        assert (bad.pop('scale'), good.pop('scale')) == (2**7, 2**7)
        check_same(bad, start)
        assert not torch.equal(good['classifier.weight'], start['classifier.weight'])
