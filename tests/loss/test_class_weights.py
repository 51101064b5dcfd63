"""Class weights against their formulas and limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.loss.weighted import effective_number, inverse_frequency


def with_mean_1(raw):
    """Scale weights to a mean of 1 over the classes with a weight above 0."""
    present = [weight for weight in raw if weight]
    return [weight * len(present) / sum(present) for weight in raw]


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.one_of(st.integers(0, 2), st.integers(0, 10**6)), min_size=1, max_size=12).filter(any),
    beta=st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.9999]),
    exponent=st.floats(0, 2),
)
def test_equal_their_formulas(counts, beta, exponent):
    by_number = [(1 - beta) / (1 - beta**count) if count else 0.0 for count in counts]
    by_count = [1 / count**exponent if count else 0.0 for count in counts]
    for found, raw in [
        (effective_number(torch.tensor(counts), beta), by_number),
        (inverse_frequency(torch.tensor(counts), exponent), by_count),
    ]:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor(with_mean_1(raw)), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('counts', [[500, 70, 1, 0, 12, 3], [1, 1], [8000]])
def test_limits(counts):
    counts = torch.tensor(counts)
    ones = (counts > 0).float()
    torch.testing.assert_close(effective_number(counts, 0.0), ones)
    torch.testing.assert_close(inverse_frequency(counts, 0.0), ones)
    # beta -> 1 is inverse frequency, up to terms of order (1 - beta) n.
    almost = effective_number(counts, 1 - 1e-12)
    torch.testing.assert_close(almost, inverse_frequency(counts, 1.0), rtol=1e-6, atol=1e-12)
