"""Properties of every mixer: label mass, purity, independence of batch splits, limiting cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.trainer.mixing.base import MixDraws, blend, partners, unmixed
from tests.oracles import mixing as oracle
from tests.trainer.mixing.batches import ALL, MIXERS, image_lam, mixer_of, painted_batch, random_batch

PIXELS = [name for name in MIXERS if name != 'manifold_features']


def same(first, second) -> bool:
    """Return whether two mixed batches are bit-identical."""
    pairs = [
        (first.images, second.images),
        (first.targets.labels, second.targets.labels),
        (first.targets.lam, second.targets.lam),
        (first.targets.weights, second.targets.weights),
        (first.lam, second.lam),
    ]
    equal = [a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs]
    return all(equal) and first.stage == second.stage


@pytest.mark.parametrize('name', ALL)
def test_mixing_is_a_function_of_seed_epoch_and_slot(name):
    images, labels = random_batch(0, 8)
    torch.manual_seed(1)
    first = mixer_of(name, seed=3)(images, labels, epoch=2, first_slot=16)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 - the result must not depend on the global generators
    assert same(first, mixer_of(name, seed=3)(images, labels, epoch=2, first_slot=16))
    others = [mixer_of(name, seed=3)(images, labels, epoch=1, first_slot=16)]
    if name != 'bbn':  # which has no random numbers
        others.append(mixer_of(name, seed=3)(images, labels, epoch=2, first_slot=18))
        others.append(mixer_of(name, seed=4)(images, labels, epoch=2, first_slot=16))
    assert not any(same(first, other) for other in others)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('sizes', [(4, 4), (2, 6), (2, 2, 2, 2)])
def test_mixing_does_not_depend_on_batch_splits(name, sizes):
    images, labels = random_batch(1, 8)
    mixer = mixer_of(name, alpha=0.4, probability=0.8)
    whole = mixer(images, labels, epoch=1, first_slot=32)
    ends = np.cumsum(sizes).tolist()
    parts = [
        mixer(images[end - size : end], labels[end - size : end], epoch=1, first_slot=32 + end - size)
        for end, size in zip(ends, sizes, strict=True)
    ]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    for kind in ('labels', 'lam', 'weights'):
        expected = getattr(whole.targets, kind)
        if expected is not None:
            assert torch.equal(expected, torch.cat([getattr(part.targets, kind) for part in parts])), kind
    if whole.lam is not None:
        assert torch.equal(whole.lam, torch.cat([part.lam for part in parts]))


@pytest.mark.parametrize('name', ALL)
def test_the_input_is_not_changed(name):
    images, labels = random_batch(2, 8)
    before = images.clone(), labels.clone()
    mixed = mixer_of(name)(images, labels, epoch=0, first_slot=0)
    if name in PIXELS:
        mixed.images.zero_()
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(MIXERS)),
    seed=st.integers(0, 2**40),
    alpha=st.sampled_from([1e-3, 0.2, 1.0, 3.0]),
    probability=st.floats(0, 1),
    num_pairs=st.integers(1, 8),
    first_pair=st.integers(0, 10**9),
)
def test_label_mass_is_1(name, seed, alpha, probability, num_pairs, first_pair):
    images, labels = random_batch(seed % 1000, 2 * num_pairs)
    mixer = mixer_of(name, seed=seed, alpha=alpha, probability=probability)
    mixed = mixer(images, labels, epoch=1, first_slot=2 * first_pair)
    lam = mixed.targets.lam
    assert lam.dtype == torch.float32
    assert lam.shape == mixed.targets.labels.shape == (len(mixed.images), 2)
    assert lam.min() >= 0
    assert (lam.sum(dim=1) == 1).all(), 'exactly, in float32'


@pytest.mark.parametrize('name', MIXERS)
def test_with_probability_0_nothing_is_mixed(name):
    images, labels = random_batch(3, 8)
    mixed = mixer_of(name, probability=0.0)(images, labels, epoch=0, first_slot=0)
    expected, hard = (images[::2], labels[::2]) if name == 'cmo' else (images, labels)
    assert torch.equal(mixed.images, expected)
    assert torch.equal(mixed.targets.hard, hard)
    assert (image_lam(mixed) == 1).all()
    if mixed.stage:
        assert torch.equal(blend(images, mixed.lam), images)


@pytest.mark.parametrize('name', MIXERS)
def test_the_last_epochs_are_not_mixed(name):
    images, labels = random_batch(4, 8)
    mixer = mixer_of(name, end_epoch=5)
    late = mixer(images, labels, epoch=5, first_slot=0)
    step = 2 if name == 'cmo' else 1
    assert same(late, unmixed(images[::step], labels[::step], epoch=5, first_slot=0))
    assert mixer(images, labels, epoch=4, first_slot=0).targets.lam is not None


@pytest.mark.parametrize('name', [name for name in MIXERS if name != 'cmo'])
@pytest.mark.parametrize('size', [1, 7])
def test_an_odd_last_image_is_unmixed(name, size):
    images, labels = random_batch(5, size)
    mixed = mixer_of(name)(images, labels, epoch=0, first_slot=0)
    assert mixed.images.shape == images.shape
    assert torch.equal(mixed.images[-1], images[-1])
    assert mixed.targets.labels[-1].tolist() == [labels[-1].item()] * 2
    assert mixed.targets.lam[-1].tolist() == [1.0, 0.0]
    whole = random_batch(5, 8)
    images, labels = torch.cat([images[:-1], whole[0][size - 1 :]]), torch.cat([labels[:-1], whole[1][size - 1 :]])
    even = mixer_of(name)(images, labels, epoch=0, first_slot=0)
    assert torch.equal(even.images[: size - 1], mixed.images[:-1])


@pytest.mark.parametrize('name', PIXELS)
def test_memory_stays_channels_last(name):
    images, labels = random_batch(6, 8)
    images = images.to(memory_format=torch.channels_last)
    mixed = mixer_of(name)(images, labels, epoch=0, first_slot=0)
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('size', [0, 1, 2, 5, 8])
def test_partners_are_neighbors(size):
    values = torch.arange(3 * size).view(size, 3)
    expected = [values[oracle.partner(place, size)].tolist() for place in range(size)]
    assert partners(values).tolist() == expected
    assert torch.equal(partners(partners(values)), values)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', ['mixup', 'manifold_pixels', 'remix'])
@pytest.mark.parametrize('alpha', [0.3, 1.0])
def test_pixels_follow_the_equation(name, seed, alpha):
    images, labels = random_batch(seed, 9)
    mixed = mixer_of(name, seed=seed, alpha=alpha)(images, labels, epoch=3, first_slot=18)
    lam = MixDraws(seed, alpha).lam_and_centers(3, 18, 9)[0]
    expected = oracle.mixup(images.numpy(), lam.tolist())
    np.testing.assert_allclose(mixed.images.numpy(), expected, atol=1e-6)
    assert mixed.targets.labels.tolist() == [
        [labels[place].item(), labels[oracle.partner(place, 9)].item()] for place in range(9)
    ]
    if name != 'remix':
        np.testing.assert_allclose(image_lam(mixed).numpy(), lam, atol=1e-7)


def test_labels_are_mixed_like_pixels():
    """Image i has color i + 1, so the mixed color is the lambda-weighted mean."""
    images, labels = painted_batch(6, 4, 4)
    mixed = mixer_of('mixup', seed=8)(images, labels, epoch=0, first_slot=0)
    colors = (mixed.targets.lam * (mixed.targets.labels + 1)).sum(dim=1)
    torch.testing.assert_close(mixed.images, colors.view(-1, 1, 1, 1).expand_as(images))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_blending_keeps_the_type_and_computes_in_float32(dtype):
    random = torch.Generator().manual_seed(0)
    values, lam = torch.randn(40, 5, generator=random).to(dtype), torch.rand(40, generator=random)
    found = blend(values, lam)
    expected = oracle.mixup(values.double().numpy(), lam.double().tolist())
    assert found.dtype == dtype
    # Rounded once, at the end.
    half_a_step = torch.finfo(dtype).eps / 2 * abs(expected)
    assert (abs(found.double().numpy() - expected) <= 1.001 * half_a_step + 1e-6).all()
