"""Augmentations: seeded per slot, without effect on torch's global generator."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from lib.dataset.augment import POLICIES, Augment
from lib.dataset.images import ArrayImages
from lib.dataset.index import ClassIndex
from lib.dataset.reader import BatchReader, BatchRequest
from lib.dataset.transforms import RandomResizedCrop

ALL = [
    *(Augment(policy=name) for name in POLICIES),
    Augment(jitter=(0.4, 0.4, 0.4, 0.1)),
    Augment(erase_probability=1.0),
    Augment(jitter=(0.2, 0.2, 0.2, 0.0), policy='trivial_augment', erase_probability=0.5),
]


def noise(seed=0, size=32):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


def augmented(augment, seed):
    pixels = noise()
    augment(pixels, seed)
    return pixels


@pytest.mark.parametrize('augment', ALL, ids=repr)
def test_the_result_depends_on_the_seed_alone_and_the_global_generator_is_restored(augment):
    torch.manual_seed(11)
    first = augmented(augment, 5)
    after = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(after, torch.rand(3)), 'the dropout of the model would change'
    torch.manual_seed(12)
    assert torch.equal(first, augmented(augment, 5))
    assert len({augmented(augment, seed).numpy().tobytes() for seed in range(20)}) > 5


def test_equals_torchvision():
    pixels = augmented(Augment(policy='rand_augment', num_ops=3, magnitude=12), 7)
    torch.manual_seed(7)
    theirs = v2.RandAugment(num_ops=3, magnitude=12, fill=[124, 116, 104])(noise().permute(2, 0, 1))
    assert torch.equal(pixels, theirs.permute(1, 2, 0))


def test_erasing_has_its_probability_and_fills_with_the_mean_color():
    augment = Augment(erase_probability=0.3)
    erased = [augmented(augment, seed) for seed in range(400)]
    changed = [pixels for pixels in erased if not torch.equal(pixels, noise())]
    assert stats.binomtest(len(changed), 400, 0.3).pvalue > 1e-3
    for pixels in changed:
        assert (pixels[(pixels != noise()).any(2)] == torch.tensor([124, 116, 104])).all()


def test_a_slot_is_augmented_independently_of_its_batch():
    labels = np.zeros(8, np.int32)
    images = ArrayImages(np.stack([noise(row).numpy() for row in range(8)]))
    index = ClassIndex(labels, 1)
    reader = BatchReader(images, labels, RandomResizedCrop(16), 3, 'replace', index, Augment(policy='trivial_augment'))
    whole = reader[BatchRequest(2, 0, np.arange(8))].pixels
    halves = torch.cat([reader[BatchRequest(2, start, np.arange(start, start + 4))].pixels for start in (0, 4)])
    assert torch.equal(whole, halves)
    reader.augment = None
    assert not torch.equal(whole, reader[BatchRequest(2, 0, np.arange(8))].pixels)
