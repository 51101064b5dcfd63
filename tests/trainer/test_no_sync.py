"""A step asks the device for nothing: each answer would wait for all that was sent to it before."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lib.trainer.step import _step
from tests.trainer.steps import Setup, batch_of, learner_of

# What brings numbers to the CPU, or makes a shape depend on them.
ASKS = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'equal', 'masked_select', 'unique', '_unique2', 'bincount')


class Asked(TorchDispatchMode):
    """Notes such operations, with the number of numbers that were looked at."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ASKS:
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
    allowed = len(learner.parts.slices) if setup.head != 'whole' else 0
    assert asked.found == ['_local_scalar_dense'] * min(allowed, len(asked.found))
    assert done.loss.isfinite()


def test_asking_is_noticed():
    with Asked() as asked:
        assert torch.ones(()).item() == 1
    assert asked.found == ['_local_scalar_dense']
