"""CutMix and CMO: boxes against counted pixels, their centers and sizes."""

import numpy as np
import pytest
import torch
from scipy import stats

from lib.trainer.mixing.base import MixDraws, cut_boxes, paste
from tests.oracles import mixing as oracle
from tests.trainer.mixing.batches import mixer_of, painted_batch, random_batch

SIDES = [(8, 8), (7, 11), (1, 5), (32, 32)]


def counted(images: torch.Tensor, color: torch.Tensor) -> torch.Tensor:
    """Return the number of pixels of each image (batch, 3, H, W) that have a color (batch,) in all channels."""
    return (images == color.view(-1, 1, 1, 1)).all(dim=1).sum(dim=(1, 2))


@pytest.mark.parametrize(('height', 'width'), SIDES)
@pytest.mark.parametrize('seed', range(3))
def test_lam_of_cutmix_is_the_fraction_of_pixels(height, width, seed):
    images, labels = painted_batch(40, height, width)
    mixed = mixer_of('cutmix', seed=seed)(images, labels, epoch=1, first_slot=80)
    for column in (0, 1):
        number = counted(mixed.images, mixed.targets.labels[:, column] + 1).double() / (height * width)
        torch.testing.assert_close(mixed.targets.lam[:, column].double(), number, rtol=0, atol=2**-24)
    own = counted(mixed.images, labels + 1)
    assert torch.equal(mixed.targets.lam[:, 0], (1 - (height * width - own).double() / (height * width)).float())
    assert len(set(own.tolist())) >= 4, 'boxes of many sizes'


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('probability', [0.5, 1.0])
def test_lam_of_cmo_is_the_fraction_of_pixels(seed, probability):
    images, labels = painted_batch(40, 9, 8)
    mixed = mixer_of('cmo', seed=seed, probability=probability)(images, labels, epoch=1, first_slot=80)
    assert len(mixed.images) == 20
    assert mixed.targets.labels.tolist() == [[2 * place, 2 * place + 1] for place in range(20)]
    background = counted(mixed.images, labels[::2] + 1)
    foreground = counted(mixed.images, labels[1::2] + 1)
    assert ((background + foreground) == 72).all()
    assert torch.equal(mixed.targets.lam[:, 0], (1 - foreground.double() / 72).float())
    untouched = (foreground == 0).sum().item()
    assert untouched >= 3 if probability == 0.5 else untouched <= 3


def test_cmo_is_cutmix_of_the_even_slots():
    """Each slot draws its own box."""
    images, labels = random_batch(3, 16, side=12)
    cmo, cutmix = (mixer_of(name, seed=2)(images, labels, epoch=1, first_slot=32) for name in ('cmo', 'cutmix'))
    assert torch.equal(cmo.images, cutmix.images[::2])
    assert torch.equal(cmo.targets.labels, cutmix.targets.labels[::2])
    assert torch.equal(cmo.targets.lam, cutmix.targets.lam[::2])


@pytest.mark.parametrize('name', ['cutmix', 'cmo'])
def test_the_patch_comes_from_the_same_position(name):
    images, labels = random_batch(0, 16, side=12)
    mixed = mixer_of(name, seed=2)(images, labels, epoch=0, first_slot=0)
    own, other = (images[::2], images[1::2]) if name == 'cmo' else (images, images.view(8, 2, 3, 12, 12).flip(1))
    other = other.reshape(own.shape)
    from_own, from_other = (mixed.images == own).all(dim=1), (mixed.images == other).all(dim=1)
    assert (from_own ^ from_other).all()
    for place, inside in enumerate(from_other.numpy()):
        rows, columns = inside.any(axis=1), inside.any(axis=0)
        assert np.array_equal(inside, rows[:, None] & columns), f'image {place}: no rectangle'
        for line in (rows, columns):
            assert np.count_nonzero(np.diff(line.astype(int), prepend=0, append=0)) in (0, 2), 'one stretch'


@pytest.mark.parametrize(('height', 'width'), SIDES)
@pytest.mark.parametrize('seed', range(3))
def test_boxes_follow_the_equation(height, width, seed):
    random = np.random.default_rng(seed)
    lam, centers = random.random(60), random.random((60, 2))
    boxes, exact_lam = cut_boxes(lam, centers, height, width)
    for drawn, center, (top, bottom, left, right), exact in zip(lam, centers, boxes, exact_lam, strict=True):
        expected = oracle.box_pixels(drawn, tuple(center), height, width)
        assert {(y, x) for y in range(top, bottom) for x in range(left, right)} == expected
        assert exact == 1 - len(expected) / (height * width)


def test_boxes_at_the_limits():
    centers = np.array([[0.0, 0.0], [0.5, 0.5], [0.999999, 0.999999]])
    boxes, exact_lam = cut_boxes(np.ones(3), centers, 8, 8)
    assert exact_lam.tolist() == [1, 1, 1]
    images = torch.rand(3, 3, 8, 8)
    assert torch.equal(paste(images, torch.zeros_like(images), boxes), images)
    boxes, exact_lam = cut_boxes(np.zeros(3), centers, 8, 8)
    assert boxes.tolist() == [[0, 4, 0, 4], [0, 8, 0, 8], [3, 8, 3, 8]]
    assert exact_lam.tolist() == [0.75, 0, 1 - 25 / 64]


@pytest.mark.parametrize('seed', range(3))
def test_centers_are_uniform_over_the_image(seed):
    """Chi-square over all pixels: small boxes are complete around their center's pixel (3 x 3 here)."""
    centers = MixDraws(seed, 1.0).lam_and_centers(0, 0, 20_000)[1]
    boxes, _ = cut_boxes(np.full(20_000, 1 - 9 / 100), centers, 10, 10)
    # The side that ends within the image determines the center, clipped or not.
    top, bottom, left, right = boxes.T
    row = np.where(bottom == 10, top + 1, bottom - 2)
    column = np.where(right == 10, left + 1, right - 2)
    counts = np.bincount(10 * row + column, minlength=100)
    assert stats.chisquare(counts).pvalue > 1e-4, counts


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('alpha', [0.5, 1.0])
def test_unclipped_boxes_have_the_drawn_area(seed, alpha):
    """Sides in 64 pixels follow sqrt(1 - l): bins of whole sides against the distribution of l."""
    lam = MixDraws(seed, alpha).lam_and_centers(0, 0, 20_000)[0]
    boxes, _ = cut_boxes(lam, np.full((20_000, 2), 0.5), 64, 64)
    sides = boxes[:, 1] - boxes[:, 0]
    assert np.array_equal(sides, boxes[:, 3] - boxes[:, 2])
    steps = np.arange(8, 65, 8) - 0.5  # sides up to 7, 8 to 15, ...
    reached = stats.beta.sf(1 - (steps / 64) ** 2, alpha, alpha)  # P(side < step), 1 - l being distributed as l
    expected = np.diff([0.0, *reached, 1.0]) * 20_000
    found = np.histogram(sides, bins=[-0.5, *steps, 64.5])[0]
    assert stats.chisquare(found, expected).pvalue > 1e-4, (found, expected)
