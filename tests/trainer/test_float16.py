"""Steps in float16: what overflows is passed over, and a run goes on with the scale that it had."""

from itertools import pairwise

import pytest
import torch

from lib.builders.optim import build_scaler
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.optim.gradients import make_scaler
from lib.optim.optimizer import KINDS, create_optimizer
from lib.runtime.device import pick_device
from lib.trainer.step import _step
from tests.ranks import run_ranks
from tests.trainer.steps import Setup, batch_of, learner_of, model_of

CPU = torch.device('cpu')
DECAY = 0.75


def setup_of(head='whole'):
    loss = 'ldam' if head == 'sampled' else 'mixed'  # labels are not smoothed over classes that are drawn
    return Setup(batch_size=12, at_once=4, head=head, loss=loss, clip=0.5, decay=DECAY, dtype=torch.float32)


def float16_learner(setup, kind='sgd', *, scale, growth_interval=2000, group=SINGLE_PROCESS):
    learner = learner_of(setup, group)
    learner.optimizer = create_optimizer(learner.model, kind=kind, lr=0.0, weight_decay=1e-3)
    learner.model.train_dtype = torch.float16
    learner.scaler = make_scaler(CPU, enabled=True, group=group)
    known = {'scale': float(scale), 'growth_interval': growth_interval}
    learner.scaler.load_state_dict(learner.scaler.state_dict() | known)
    return learner


def weights_of(learner):
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def check_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('head', ['whole', 'chunked', 'sampled'])
def test_steps_that_overflow_are_passed_over(head, kind):
    """Until the scale is small enough; then all is as if there had been none."""
    setup = setup_of(head)
    learner, scale = float16_learner(setup, kind, scale=2**40), 2.0**40
    start = weights_of(learner)
    while True:
        done = _step(learner, batch_of(setup, 0), 0)
        assert done.loss.isfinite(), 'an overflow of the gradients is no divergence'
        if learner.scaler.get_scale() == scale:
            break
        scale /= 2
        assert learner.scaler.get_scale() == scale
        check_same(weights_of(learner), start)
        check_same(learner.average.state_dict(), start)
    assert 1 < scale < 2**39
    fresh = float16_learner(setup, kind, scale=scale)
    _step(fresh, batch_of(setup, 0), 0)
    found = weights_of(learner)
    check_same(found, weights_of(fresh))
    check_same(learner.optimizer.state_dict(), fresh.optimizer.state_dict())
    assert not torch.equal(found['classifier.weight'], start['classifier.weight'])
    name = 'classifier.weight'
    expected = DECAY * start[name] + (1 - DECAY) * found[name]
    torch.testing.assert_close(learner.average.state_dict()[name], expected)


@pytest.mark.parametrize('head', ['whole', 'chunked'])
def test_it_is_close_to_float32(head):
    """Scaling and clipping in their right order: clipped are the gradients, not what they were scaled to."""
    setup, found = setup_of(head), []
    for scale in (None, 2**10):
        learner = learner_of(setup) if scale is None else float16_learner(setup, scale=scale)
        learner.optimizer = create_optimizer(learner.model, kind='sgd', lr=0.0, weight_decay=1e-3)
        start = weights_of(learner)['classifier.weight']
        for step in range(4):
            _step(learner, batch_of(setup, step), step)
        found.append(weights_of(learner)['classifier.weight'])
    moved = (found[0] - start).norm()
    assert moved > 0.05
    assert (found[1] - found[0]).norm() < 0.01 * moved


def test_a_run_goes_on_with_its_scale(tmp_path):
    """Bit for bit, through a file, while the scale goes up after each good step and down after each bad one."""
    setup = setup_of()

    def train(learner, steps):
        scales = []
        for step in steps:
            _step(learner, batch_of(setup, step), step)
            scales.append(learner.scaler.get_scale())
        return scales

    whole = float16_learner(setup, 'adamw', scale=2**24, growth_interval=2)
    scales = train(whole, range(16))
    ups = sum(after > before for before, after in pairwise(scales))
    downs = sum(after < before for before, after in pairwise(scales))
    assert ups >= 2
    assert downs >= 2
    for stop in (3, 9, 10):
        first = float16_learner(setup, 'adamw', scale=2**24, growth_interval=2)
        train(first, range(stop))
        parts = ('model', 'optimizer', 'scaler', 'average')
        torch.save({name: getattr(first, name).state_dict() for name in parts}, tmp_path / 'state.pth')
        second = float16_learner(setup, 'adamw', scale=1)
        for name, state in torch.load(tmp_path / 'state.pth', weights_only=True).items():
            getattr(second, name).load_state_dict(state)
        assert train(second, range(stop, 16)) == scales[stop:]
        check_same(weights_of(second), weights_of(whole))
        check_same(second.average.state_dict(), whole.average.state_dict())
        assert second.scaler.state_dict() == whole.scaler.state_dict()


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'auto', 'float16'])
def test_only_float16_is_scaled(precision):
    scaler = build_scaler(model_of(Setup(), None), pick_device('cpu', precision), SINGLE_PROCESS)
    assert (scaler is not None) is (precision == 'float16')


@pytest.mark.parametrize(('classes', 'asks'), [(None, False), (range(4), True)])
def test_ranks_agree_where_each_holds_other_classes(classes, asks):
    """Gradients that ranks share are alike on all of them, so nobody needs to ask."""
    asked = []

    class Noting(ProcessGroup):
        def all_reduce(self, tensor):
            asked.append(tensor.clone())
            return tensor

    model = model_of(Setup(dtype=torch.float32), classes)
    scaler = build_scaler(model, pick_device('cpu', 'float16'), Noting(0, 2))
    optimizer = create_optimizer(model, kind='sgd', lr=0.1)
    scaler.scale(model(torch.ones(2, 3, 2, 2)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert bool(asked) is asks


def with_a_bad_rank(rank, count):
    """Return scale and weights after a step that is bad on the last rank alone, and after a good one."""
    group, setup, found = ProcessGroup(rank, count), Setup(head='sharded', dtype=torch.float32, clip=0.5), []
    learner = float16_learner(setup, scale=2**8, group=group)
    found.append(weights_of(learner))
    for step, is_bad in enumerate([True, False]):
        weight = learner.model.classifier.weight
        hook = weight.register_hook(lambda g, bad=is_bad: g * torch.inf if bad and rank == count - 1 else g)
        whole = batch_of(setup, step)
        _step(learner, whole.part(group.shard_pairs(setup.batch_size)), step)
        hook.remove()
        found.append({**weights_of(learner), 'scale': torch.tensor(learner.scaler.get_scale())})
    return found


@pytest.mark.slow
def test_a_step_that_is_bad_on_one_rank_is_passed_over_by_all(tmp_path):
    for start, bad, good in run_ranks(with_a_bad_rank, 2, tmp_path):
        assert (bad.pop('scale'), good.pop('scale')) == (2**7, 2**7)
        check_same(bad, start)
        assert not torch.equal(good['classifier.weight'], start['classifier.weight'])
