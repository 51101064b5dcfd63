"""Long-tailed subsets, as tools/convert.py --imbalance selects them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.errors import UserError
from lib.formats.converted import ConvertedDataset, ConvertedSplit, with_imbalance


def converted(counts, seed=0, **others):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    train = ConvertedSplit([f'{row}.jpg' for row in range(len(labels))], labels)
    return ConvertedDataset({'train': train, **others}, [f'class {c}' for c in range(len(counts))], None, '.')


def counts_of(converted):
    return np.bincount(converted.splits['train'].labels, minlength=len(converted.names)).tolist()


def expected_sizes(counts, ratio):
    """Compute the sizes class by class (the oracle)."""
    ranked = sorted((c for c in range(len(counts)) if counts[c]), key=lambda c: (-counts[c], c))
    sizes = [0] * len(counts)
    for rank, label in enumerate(ranked):
        fraction = ratio ** (-rank / (len(ranked) - 1)) if len(ranked) > 1 else 1.0
        # The small number undoes rounding below an integer.
        sizes[label] = min(counts[label], max(1, math.floor(max(counts) * fraction + 1e-7)))
    return sizes


def test_by_hand():
    assert counts_of(with_imbalance(converted([16, 16, 16, 16, 16]), ratio=16, seed=0)) == [16, 8, 4, 2, 1]
    # Ranked by size, ties by id; a class smaller than the size of its rank is not changed; no class becomes empty.
    assert counts_of(with_imbalance(converted([3, 0, 90, 100, 90]), ratio=1000, seed=0)) == [1, 0, 10, 100, 1]
    assert counts_of(with_imbalance(converted([100, 2, 100]), ratio=4, seed=0)) == [100, 2, 50]
    assert counts_of(with_imbalance(converted([5]), ratio=4, seed=0)) == [5]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
    ratio=st.integers(5, 4000).map(lambda quarters: quarters / 4),
    seed=st.integers(0, 2**32),
)
def test_any_counts(counts, ratio, seed):
    before = converted(counts, seed=seed)
    after = with_imbalance(before, ratio=ratio, seed=seed)
    sizes = counts_of(after)
    assert sizes == expected_sizes(counts, ratio)
    present = [size for size in sizes if size]
    smallest = min(min(count for count in counts if count), max(1, math.floor(max(counts) / ratio + 1e-7)))
    if len(present) > 1:
        assert (max(present), min(present)) == (max(counts), smallest), 'as documented'
    label_of = dict(before.splits['train'])
    selected = list(after.splits['train'])
    assert all(label_of[path] == label for path, label in selected)
    rows = [int(path.removesuffix('.jpg')) for path, _ in selected]
    assert rows == sorted(set(rows)), 'each once, in their order'


def test_the_subset_depends_on_the_seed_and_every_image_can_be_selected():
    before = converted([40, 40])
    often = np.zeros(80, int)
    for seed in range(200):
        first, again = (with_imbalance(before, ratio=4, seed=seed).splits['train'] for _ in range(2))
        assert first.paths == again.paths
        often[[int(path.removesuffix('.jpg')) for path in first.paths]] += 1
    small = often[before.splits['train'].labels == 1]  # 10 of 40 are selected: 50 times each on average, deviation 6.1
    assert (np.abs(small - 50) < 5 * 6.1).all()
    assert small.std() > 2, 'not always the same'


def test_the_subset_of_a_class_does_not_depend_on_other_classes():
    """More images of one class do not change which images of another are selected."""
    first = with_imbalance(converted([30, 20, 20]), ratio=9, seed=5).splits['train']
    names = {c: [name for name, label in first if label == c] for c in range(3)}
    labels = np.concatenate([converted([30, 20, 20]).splits['train'].labels, np.zeros(6, np.int32)])
    more = ConvertedSplit([f'{row}.jpg' for row in range(len(labels))], labels)
    second = with_imbalance(ConvertedDataset({'train': more}, ['a', 'b', 'c'], None, '.'), ratio=9, seed=5).splits[
        'train'
    ]
    for c in (1, 2):
        found = [name for name, label in second if label == c]
        assert set(names[c]) <= set(found), 'n_max is larger, so a few more are selected'


def test_other_splits_are_not_changed():
    val, test = ConvertedSplit(['v.jpg'] * 3, np.zeros(3, np.int32)), ConvertedSplit(['t.jpg'], None)
    before = converted([9, 9], val=val, test=test)
    after = with_imbalance(before, ratio=3, seed=0)
    assert after.splits['val'] is val
    assert after.splits['test'] is test
    assert list(after.splits) == list(before.splits)
    assert counts_of(before) == [9, 9], 'the input neither'


@pytest.mark.parametrize('splits', [{}, {'train': ConvertedSplit(['x.jpg'], None)}])
def test_no_labeled_training_split(splits):
    with pytest.raises(UserError, match='--imbalance selects training images, but SOURCE has none with labels'):
        with_imbalance(ConvertedDataset(splits, ['a'], None, '.'), ratio=3, seed=0)
