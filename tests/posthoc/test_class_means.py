"""Means of features per class, and the classifier that predicts the nearest one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lib.classifier.linear import LinearClassifier
from lib.dataset.loader import Batch
from lib.inference.engine import EagerEngine
from lib.model import Recognizer
from lib.posthoc.class_means import class_means, nearest_mean

LABELS = np.array([0, 2, 2, 1, 0, 2, 0, 1])


class Batches:
    """Batches of three as an EvalLoader gives them; row 5 cannot be decoded."""

    def __init__(self, images):
        self.images, self.num_images = images, len(images)

    def __len__(self):
        return -(-self.num_images // 3)

    def batch_slices(self):
        return [slice(start, min(start + 3, self.num_images)) for start in range(0, self.num_images, 3)]

    def batches(self, slices):
        for part in slices:
            rows = torch.arange(part.start, part.stop)
            yield Batch(self.images[rows], torch.from_numpy(LABELS)[rows], rows != 5, rows)


@pytest.fixture
def setting():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model = Recognizer(backbone, LinearClassifier(4, 4)).train()
    model(torch.randn(6, 3, 2, 2))  # running statistics that are not those of any batch
    images = torch.randn(8, 3, 2, 2)
    features = model.eval().features(images).detach().double()
    return SimpleNamespace(model=model.train(), loader=Batches(images), features=features)


@pytest.mark.parametrize('unit_length', [False, True])
def test_means_are_over_readable_rows_that_take_part(setting, unit_length):
    means, counts = class_means(
        EagerEngine(setting.model), setting.loader, np.array([0, 1, 2, 4, 5]), num_classes=4, unit_length=unit_length
    )
    features = setting.features
    if unit_length:
        features = features / features.norm(dim=1, keepdim=True)
    assert counts.tolist() == [2, 0, 2, 0]
    torch.testing.assert_close(means[0], (features[0] + features[4]) / 2)
    torch.testing.assert_close(means[2], (features[1] + features[2]) / 2)
    assert not means[[1, 3]].any()
    assert setting.model.training


def test_no_image_at_all(setting):
    with pytest.raises(ValueError, match='readable'):
        class_means(EagerEngine(setting.model), setting.loader, np.array([5]), num_classes=4)


@pytest.mark.parametrize('seed', range(3))
def test_the_linear_classifier_predicts_the_nearest_mean(seed):
    random = torch.Generator().manual_seed(seed)
    means, features = (torch.randn(size, 5, dtype=torch.float64, generator=random) for size in (7, 40))
    counts = torch.tensor([3, 1, 0, 2, 9, 1, 1])
    means[2] = 0  # no images, though many features are nearest to the origin
    weight, bias = nearest_mean(means, counts)
    logits = features.float() @ weight.T + bias
    distances = (features[:, None] - means).square().sum(dim=2)
    distances[:, 2] = torch.inf
    assert torch.equal(logits.argmax(dim=1), distances.argmin(dim=1))
    assert logits.isfinite().all()
    others = [0, 1, 3, 4, 5, 6]
    expected = features.square().sum(dim=1, keepdim=True) - distances[:, others]
    torch.testing.assert_close(logits[:, others].double(), expected, rtol=1e-4, atol=1e-4)
