"""The exported module against PyTorch, and the detection of differences."""

import numpy as np
import pytest
import torch

from lib.backbone.resnet32 import ResNet32
from lib.classifier.linear import LinearClassifier
from lib.dataset.normalize import Normalize
from lib.export.formats import TOLERANCE, largest_difference
from lib.export.module import ExportedModel, Preprocessing
from lib.model import Recognizer

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def exported(bgr=False, inside=True):
    torch.manual_seed(0)
    recognizer = Recognizer(ResNet32(), LinearClassifier(64, 5))
    return recognizer.eval(), ExportedModel(recognizer, Preprocessing(16, 0.875, MEAN, STD, bgr, inside))


@pytest.mark.parametrize('bgr', [False, True])
def test_exported_normalization_equals_that_of_the_loader(bgr):
    recognizer, module = exported(bgr)
    pixels = torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = recognizer(Normalize(MEAN, STD, bgr=bgr)(pixels))
        logits, features = module(pixels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert features.shape == (4, 64)


@pytest.mark.parametrize('corrupt', [lambda x: x * 1.001, lambda x: x * np.nan, lambda x: x[..., ::-1]])
def test_differences_are_detected(corrupt):
    _, module = exported()
    batches = [torch.randint(256, (size, 16, 16, 3), dtype=torch.uint8) for size in (1, 3)]

    def run(images):
        with torch.inference_mode():
            return tuple(part.numpy() for part in module(images))

    assert largest_difference(module, run, batches) == 0
    assert largest_difference(module, lambda images: (run(images)[0], corrupt(run(images)[1])), batches) > TOLERANCE
