"""Restoring the state of a run from a checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lib.classifier.linear import LinearClassifier
from lib.model import Recognizer
from lib.optim.optimizer import register_load_hooks
from lib.trainer.checkpointing.state import Checkpoint, TrainProgress
from lib.trainer.train_state import OptimizerMismatch, TrainState


def trained(kind, **options):
    """Return the state after one step."""
    model = Recognizer(nn.Flatten(), LinearClassifier(3, 2))
    optimizer = kind(model.parameters(), lr=0.1, **options)
    register_load_hooks(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return TrainState(model, optimizer)


def checkpoint_of(state):
    return Checkpoint(
        state.model.state_dict(),
        progress=TrainProgress(epoch=4),
        optimizer=state.optimizer.state_dict(),
        path=Path('log/x/last.pth'),
    )


def test_the_optimizer_state_is_restored_and_its_options_are_not():
    before, state = trained(torch.optim.SGD, momentum=0.9), trained(torch.optim.SGD, momentum=0.5, weight_decay=0.01)
    state.restore(checkpoint_of(before))
    assert state.progress.epoch == 4
    torch.testing.assert_close(state.model.classifier.weight, before.model.classifier.weight)
    states = [one.optimizer.state[one.model.classifier.weight]['momentum_buffer'] for one in (state, before)]
    torch.testing.assert_close(*states)
    (group,) = state.optimizer.param_groups
    assert (group['momentum'], group['weight_decay']) == (0.5, 0.01)


def test_state_of_another_optimizer():
    before, state = trained(torch.optim.SGD, momentum=0.9), trained(torch.optim.AdamW)
    with pytest.raises(OptimizerMismatch, match=r'log/x/last.pth: its optimizer state does not fit'):
        state.restore(checkpoint_of(before))


def test_sgd_ignores_the_state_of_adam():
    state = trained(torch.optim.SGD, momentum=0.9)
    state.restore(checkpoint_of(trained(torch.optim.Adam)))
    state.optimizer.step()


def _all(fill):
    return {'classifier.weight': fill(2, 3), 'classifier.bias': fill(2)}


class CopyEMA:
    """A copy of a state_dict."""

    def __init__(self, state):
        self.state = dict(state)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = dict(state)


@pytest.mark.parametrize('ema_before', [True, False])
@pytest.mark.parametrize('ema_now', [True, False])
def test_the_ema_is_restored_beside_the_weights(ema_before, ema_now):
    state, trained_weights = trained(torch.optim.SGD), _all(torch.ones)
    checkpoint = checkpoint_of(trained(torch.optim.SGD))
    checkpoint.state_dict = _all(torch.zeros)
    checkpoint.training_state = trained_weights if ema_before else None
    state.ema = CopyEMA(state.model.state_dict()) if ema_now else None
    state.restore(checkpoint)
    expected = trained_weights if ema_before else checkpoint.state_dict
    torch.testing.assert_close(dict(state.model.state_dict()), expected)
    if ema_now:
        # The EMA of a run without one until now starts with the weights.
        torch.testing.assert_close(state.ema.state, checkpoint.state_dict)


def test_the_scaler_is_restored():
    state, before = trained(torch.optim.SGD), torch.amp.GradScaler('cpu', init_scale=8.0)
    state.scaler = torch.amp.GradScaler('cpu')
    checkpoint = checkpoint_of(trained(torch.optim.SGD))
    state.restore(checkpoint)
    assert state.scaler.get_scale() == 65536.0
    checkpoint.scaler = before.state_dict()
    state.restore(checkpoint)
    assert state.scaler.get_scale() == 8.0
