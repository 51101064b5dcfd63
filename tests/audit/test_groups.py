import numpy as np
import pytest

from lib.audit.duplicates import components, first_equal, members, spread


def by_walking(pairs: list[tuple[int, int]], num_rows: int) -> list[int]:
    """The oracle: from each row, walk along the pairs as far as they lead."""
    beside = {row: {row} for row in range(num_rows)}
    for a, b in pairs:
        beside[a].add(b)
        beside[b].add(a)
    roots = []
    for row in range(num_rows):
        reached, todo = set(), [row]
        while todo:
            here = todo.pop()
            if here not in reached:
                reached.add(here)
                todo += beside[here]
        roots.append(min(reached))
    return roots


@pytest.mark.parametrize('seed', range(10))
def test_components(seed):
    print('seed', seed)
    random = np.random.default_rng(seed)
    pairs = random.integers(0, 60, (random.integers(0, 60), 2))
    assert components(pairs, 60).tolist() == by_walking(pairs.tolist(), 60)


def test_a_long_chain_is_one_component():
    rows = np.random.default_rng(0).permutation(100_000)
    assert not components(np.stack([rows[:-1], rows[1:]], axis=1), 100_000).any()


def test_first_equal():
    values = np.array([5, 3, 5, 9, 3, 5], np.uint64)
    assert first_equal(values).tolist() == [0, 1, 0, 3, 1, 0]
    assert first_equal(values[:0]).tolist() == []


def test_members():
    assert [rows.tolist() for rows in members(np.array([0, 1, 0, 3, 1, 5]))] == [[0, 2], [1, 4]]
    assert members(np.arange(4)) == []
    assert members(np.arange(0)) == []


def test_spread():
    keys, values = np.array([0, 0, 2, 2, 3]), np.array([4, 4, 0, 1, 7])
    assert spread(keys, values, 5).tolist() == [False, False, True, False, False]
