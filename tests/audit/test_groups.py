import numpy as np
import pytest

from lib.audit.duplicates import component_rows, components, first_occurrence, has_mixed_values


def roots_by_search(pairs: list[tuple[int, int]], num_rows: int) -> list[int]:
    """Search from each row along the pairs (the oracle)."""
    neighbors = {row: {row} for row in range(num_rows)}
    for a, b in pairs:
        neighbors[a].add(b)
        neighbors[b].add(a)
    roots = []
    for row in range(num_rows):
        reached, stack = set(), [row]
        while stack:
            node = stack.pop()
            if node not in reached:
                reached.add(node)
                stack += neighbors[node]
        roots.append(min(reached))
    return roots


@pytest.mark.parametrize('seed', range(10))
def test_components(seed):
    print('seed', seed)
    random = np.random.default_rng(seed)
    pairs = random.integers(0, 60, (random.integers(0, 60), 2))
    assert components(pairs, 60).tolist() == roots_by_search(pairs.tolist(), 60)


def test_a_long_chain_is_one_component():
    rows = np.random.default_rng(0).permutation(100_000)
    assert not components(np.stack([rows[:-1], rows[1:]], axis=1), 100_000).any()


def test_first_occurrence():
    values = np.array([5, 3, 5, 9, 3, 5], np.uint64)
    assert first_occurrence(values).tolist() == [0, 1, 0, 3, 1, 0]
    assert first_occurrence(values[:0]).tolist() == []


def test_component_rows():
    assert [rows.tolist() for rows in component_rows(np.array([0, 1, 0, 3, 1, 5]))] == [[0, 2], [1, 4]]
    assert component_rows(np.arange(4)) == []
    assert component_rows(np.arange(0)) == []


def test_has_mixed_values():
    keys, values = np.array([0, 0, 2, 2, 3]), np.array([4, 4, 0, 1, 7])
    assert has_mixed_values(keys, values, 5).tolist() == [False, False, True, False, False]
