from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib.classifier.linear import LinearClassifier
from lib.errors import UserError
from lib.model import Recognizer
from lib.optim.optimizer import keep_state_fit
from lib.trainer.checkpointing.state import Checkpoint, TrainProgress
from lib.trainer.trainer import restore


def trained(kind, **options):
    """Return a model and its optimiser after one step."""
    model = Recognizer(nn.Flatten(), LinearClassifier(3, 2))
    optimizer = kind(model.parameters(), lr=0.1, **options)
    keep_state_fit(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return SimpleNamespace(model=model, optimizer=optimizer, average=None, scaler=None)


def checkpoint_of(learner):
    state = learner.model.state_dict()
    return Checkpoint(
        state, progress=TrainProgress(epoch=4), optimizer=learner.optimizer.state_dict(), path=Path('log/x/last.pth')
    )


def test_state_is_the_checkpoints_and_options_are_the_configs():
    before, learner = trained(torch.optim.SGD, momentum=0.9), trained(torch.optim.SGD, momentum=0.5, weight_decay=0.01)
    assert restore(learner, checkpoint_of(before)).epoch == 4
    torch.testing.assert_close(learner.model.classifier.weight, before.model.classifier.weight)
    states = [one.optimizer.state[one.model.classifier.weight]['momentum_buffer'] for one in (learner, before)]
    torch.testing.assert_close(*states)
    (group,) = learner.optimizer.param_groups
    assert (group['momentum'], group['weight_decay']) == (0.5, 0.01)


def test_state_of_another_optimizer():
    before, learner = trained(torch.optim.SGD, momentum=0.9), trained(torch.optim.AdamW)
    with pytest.raises(UserError, match=r'log/x/last.pth: .* OPTIMIZER.TYPE.* --RESUME_MODE finetune'):
        restore(learner, checkpoint_of(before))


def test_adams_state_is_not_in_the_way_of_sgd():
    learner = trained(torch.optim.SGD, momentum=0.9)
    restore(learner, checkpoint_of(trained(torch.optim.Adam)))
    learner.optimizer.step()


def _all(fill):
    return {'classifier.weight': fill(2, 3), 'classifier.bias': fill(2)}


class Average:
    """A copy of a state_dict."""

    def __init__(self, state):
        self.state = dict(state)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = dict(state)


@pytest.mark.parametrize('averaged_before', [True, False])
@pytest.mark.parametrize('averages_now', [True, False])
def test_the_average_predicts_and_the_weights_are_trained(averaged_before, averages_now):
    learner, trained_weights = trained(torch.optim.SGD), _all(torch.ones)
    checkpoint = checkpoint_of(trained(torch.optim.SGD))
    checkpoint.state_dict = _all(torch.zeros)
    checkpoint.training_state = trained_weights if averaged_before else None
    learner.average = Average(learner.model.state_dict()) if averages_now else None
    restore(learner, checkpoint)
    expected = trained_weights if averaged_before else checkpoint.state_dict
    torch.testing.assert_close(dict(learner.model.state_dict()), expected)
    if averages_now:
        # That of a run that had none begins with the weights.
        torch.testing.assert_close(learner.average.state, checkpoint.state_dict)


def test_the_scaler_goes_on():
    learner, before = trained(torch.optim.SGD), torch.amp.GradScaler('cpu', init_scale=8.0)
    learner.scaler = torch.amp.GradScaler('cpu')
    checkpoint = checkpoint_of(trained(torch.optim.SGD))
    restore(learner, checkpoint)
    assert learner.scaler.get_scale() == 65536.0
    checkpoint.scaler = before.state_dict()
    restore(learner, checkpoint)
    assert learner.scaler.get_scale() == 8.0
