"""torch.compile where it works; the module as it is, and one note, where it does not."""

import shutil

import pytest
import torch
from torch import nn

from lib.runtime.compiled import Compiled
from lib.runtime.log import LOGGER


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5))


def outcome(module, images):
    """Return what a module gives in training, its gradients and its buffers afterwards."""
    torch.manual_seed(1)
    result = module(images)
    result.sum().backward()
    return [result.detach(), *(p.grad for p in module.parameters()), *module.buffers()]


@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler on a CPU')
@pytest.mark.slow
def test_it_gives_the_same(caplog):
    images = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    plain, compiled = (nn.Sequential(*list(module())[:3]) for _ in range(2))
    torch.testing.assert_close(outcome(Compiled(compiled), images), outcome(plain, images), rtol=1e-5, atol=1e-6)
    assert 'uncompiled' not in caplog.text


def test_where_compiling_fails_it_runs_as_it_is(monkeypatch, caplog):
    calls = []

    def broken(module):
        def call(*inputs):
            calls.append(1)
            module(*inputs)  # which moves its running statistics, and draws
            raise RuntimeError('no compiler\nfound anywhere')

        return call

    monkeypatch.setattr(torch, 'compile', broken)
    images = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    compiled = Compiled(module())
    torch.testing.assert_close(outcome(compiled, images), outcome(module(), images), rtol=0, atol=0)
    compiled(images)
    assert calls == [1]
    notes = [record.getMessage() for record in caplog.records if record.name == LOGGER.name]
    assert notes == ['RUN.COMPILE: the model runs uncompiled, since compiling failed: RuntimeError: no compiler']
