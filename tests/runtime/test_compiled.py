"""A compiled module computes the same; if compilation fails, it logs one warning and computes the same."""

import logging
import shutil

import pytest
import torch
from torch import nn

from lib.runtime.device import Compiled
from lib.runtime.log import LOGGER

# Traces and differentiates like the default backend, without compiling machine code, which takes seconds.
FAST = 'aot_eager'
MACHINE_CODE = (
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler on a CPU'),
)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def batch(number, size):
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(number))


def train(call, module, sizes=(5, 5, 3, 5)):
    """Take some steps; return the outputs and random numbers, and the module's state afterwards."""
    optimizer, results = torch.optim.SGD(module.parameters(), lr=0.1), []
    for number, size in enumerate(sizes):
        torch.manual_seed(number)
        outputs = call(batch(number, size))
        results.append(outputs.detach())
        optimizer.zero_grad()
        outputs.square().sum().backward()
        optimizer.step()
        results.append(torch.rand(()))  # differs if another number of random numbers was drawn
    return results, dict(module.state_dict())


def without_dropout(module):
    """Dropout draws other random numbers in machine code."""
    module[3] = nn.Identity()
    return module


@pytest.fixture
def notes(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    monkeypatch.setattr(LOGGER, 'disabled', False)
    torch._dynamo.reset()
    with caplog.at_level(logging.WARNING, LOGGER.name):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == LOGGER.name]
    torch._dynamo.reset()


class Failing:
    """A backend that fails at graph `first` (counted from 0) and all later ones."""

    def __init__(self, first):
        self.first, self.num_graphs = first, 0

    def __call__(self, graph, inputs):
        self.num_graphs += 1
        if self.num_graphs > self.first:
            raise RuntimeError('no such compiler\nand more of it')
        return graph


@pytest.mark.long
@pytest.mark.parametrize('backend', [FAST, pytest.param('inductor', marks=MACHINE_CODE)])
def test_outputs_are_the_same(notes, backend):
    plain, module = without_dropout(net()), without_dropout(net())
    compiled = Compiled(module, backend=backend)
    results, expected = train(compiled, module), train(plain, plain)
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-6)
    assert module[1].num_batches_tracked == 4
    assert notes() == []


@pytest.mark.long
def test_module_is_compiled():
    """Otherwise, the other tests would compare the module with itself."""
    torch._dynamo.reset()
    backend, module = Failing(100), net()
    train(Compiled(module, backend=backend), module)
    assert backend.num_graphs >= 1


@pytest.mark.long
def test_compiling_draws_no_random_number():
    """A resumed run compiles in another step than the uninterrupted run."""
    torch._dynamo.reset()
    compiled = Compiled(net(), backend=FAST)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append((compiled(batch(1, 5)), torch.rand(())))
    torch.testing.assert_close(*results, rtol=0, atol=0)


# The first graph is for one size; the second one, for any size, is compiled in the third step.
@pytest.mark.parametrize('first', [0, 1])
def test_failed_compilation_runs_uncompiled(notes, first):
    plain, module = net(), net()
    results, expected = train(Compiled(module, backend=Failing(first)), module), train(plain, plain)
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    (note,) = notes()
    assert note.startswith('RUN.COMPILE: the model runs uncompiled, because compilation failed: ')
    assert note.endswith('RuntimeError: no such compiler')
    assert '\n' not in note


class InTwo(nn.Module):
    """Has two graphs: the first one has already run when compilation of the second one fails."""

    def __init__(self):
        super().__init__()
        self.first, self.second = net(), nn.Linear(3, 3)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def test_effects_of_the_first_graph_are_undone(notes):
    torch.manual_seed(0)
    plain = InTwo()
    torch.manual_seed(0)
    module = InTwo()
    backend = Failing(1)
    results, expected = train(Compiled(module, backend=backend), module), train(plain, plain)
    assert backend.num_graphs == 2
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    assert module.first[1].num_batches_tracked == 4
    assert len(notes()) == 1


def test_an_error_of_the_module_is_raised(notes):
    with pytest.raises(RuntimeError, match='shape'):
        Compiled(net(), backend=FAST)(torch.zeros(2, 9))


@pytest.mark.long
def test_names_and_parameters_are_those_of_the_module():
    module = net()
    compiled = Compiled(module)
    assert list(compiled.state_dict()) == [f'module.{name}' for name in module.state_dict()]
    # The first step of DataParallel; torch's compiled module forwards attribute assignments to the wrapped one.
    for one in compiled.modules():
        one._replicate_for_data_parallel()
    assert len(list(module.parameters())) == 6
