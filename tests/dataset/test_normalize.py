"""Normalization and flips on the device, compared with torchvision."""

import pickle

import pytest
import torch
from torchvision.transforms import functional

from lib.dataset.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, flip_images


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('bgr', [False, True])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_equals_torchvision(images, bgr, memory_format):
    ordered = images.flip(3) if bgr else images
    # torchvision's ToTensor and Normalize; for BGR the statistics keep their positions
    expected = functional.normalize(ordered.permute(0, 3, 1, 2).to(torch.float32) / 255, IMAGENET_MEAN, IMAGENET_STD)
    before = images.clone()
    result = Normalize(bgr=bgr, memory_format=memory_format)(images)
    assert result.dtype == torch.float32
    assert result.shape == (4, 3, 9, 7)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)
    assert torch.equal(images, before)
    assert result.is_contiguous(memory_format=memory_format)


def test_bgr_normalizes_blue_with_the_first_mean():
    blue = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
    blue[..., 2] = 255
    result = Normalize(mean=(0.5, 0.25, 0.125), std=(0.5, 0.5, 0.5), bgr=True)(blue)
    assert result.flatten().tolist() == pytest.approx([1.0, -0.5, -0.25])


def test_all_values_of_every_channel():
    values = torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1).expand(1, 256, 1, 3)
    result = Normalize()(values)[0, :, :, 0].double()
    mean, std = torch.tensor(IMAGENET_MEAN).double(), torch.tensor(IMAGENET_STD).double()
    expected = (torch.arange(256).double() / 255 - mean[:, None]) / std[:, None]
    assert (result - expected).abs().max() < 1e-6


@pytest.mark.parametrize('shape', [(0, 8, 8, 3), (1, 1, 1, 3)])
def test_smallest_batches(shape):
    assert Normalize()(torch.zeros(shape, dtype=torch.uint8)).shape == (shape[0], 3, *shape[1:3])


def test_pickles(images):
    normalize = pickle.loads(pickle.dumps(Normalize(bgr=True)))
    assert torch.equal(normalize(images), Normalize(bgr=True)(images))


@pytest.mark.parametrize('bad', [torch.zeros(1, 4, 4, 3), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)])
def test_other_inputs_are_rejected(bad):
    with pytest.raises(ValueError, match='uint8'):
        Normalize()(bad)


def test_bad_statistics_are_rejected():
    with pytest.raises(ValueError, match='std'):
        Normalize(std=(0.1, 0.0, 0.1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda_equals_cpu(images):
    result = Normalize()(images.cuda())
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), Normalize()(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize('positions', [[], [0], [1, 3], [0, 1, 2, 3]], ids=str)
def test_flip_images(images, positions):
    expected = torch.stack([functional.hflip(image.permute(2, 0, 1)).permute(1, 2, 0) for image in images])
    before = images.clone()
    result = flip_images(images, torch.tensor(positions, dtype=torch.int64))
    for position in range(4):
        assert torch.equal(result[position], (expected if position in positions else before)[position])
