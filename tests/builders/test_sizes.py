"""INPUT.SIZE_SCHEDULE in the loader, the model and the caches."""

import numpy as np
import pyarrow as pa
import pytest

from lib.builders.loader import build_train_loader, train_sizes
from lib.builders.model import new_model
from lib.builders.split import DatasetSplit
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node
from lib.dataset.images import ArrayImages
from lib.dataset.index import ClassIndex
from lib.errors import UserError
from lib.runtime.device import pick_device
from tests.defaults import DEFAULTS

DEVICE = pick_device('cpu', 'float32')


def config(**changes):
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    return as_node(DEFAULTS | {'NAME': 'x', 'RUN.NUM_WORKERS': 0} | changes)


@pytest.mark.parametrize(
    ('size', 'schedule', 'expected'),
    [
        (112, (), {0: 112}),
        (112, (0, 64), {0: 64}),
        (112, (3, 64), {0: 112, 3: 64}),
        (32, (0, 8, 2, 16, 7, 48), {0: 8, 2: 16, 7: 48}),
    ],
)
def test_sizes(size, schedule, expected):
    assert train_sizes(config(INPUT__SIZE=size, INPUT__SIZE_SCHEDULE=schedule)) == expected


@pytest.mark.parametrize('transform', KEYS['INPUT.TRAIN_TRANSFORM'].choices)
def test_the_loader_follows(transform):
    cfg = config(
        INPUT__SIZE=16, INPUT__SIZE_SCHEDULE=(1, 8, 2, 24), INPUT__TRAIN_TRANSFORM=transform, TRAIN__BATCH_SIZE=2
    )
    labels = np.zeros(4, np.int32)
    split = DatasetSplit(ArrayImages(np.zeros((4, 20, 20, 3), np.uint8)), labels, 1, pa.array(['a'] * 4), 'train')
    loader = build_train_loader(cfg, split, ClassIndex(labels, 1), DEVICE)
    sizes = [[batch.images.shape[2] for batch in loader.batches(epoch)] for epoch in range(4)]
    assert sizes == [[16, 16], [8, 8], [24, 24], [24, 24]]


def test_a_size_that_the_backbone_does_not_accept():
    for fine in ((), (0, 32), (5, 32)):
        new_model(config(MODEL__BACKBONE='test_vit', INPUT__SIZE=32, INPUT__SIZE_SCHEDULE=fine), 3, DEVICE)
    cfg = config(MODEL__BACKBONE='test_vit', INPUT__SIZE=32, INPUT__SIZE_SCHEDULE=(0, 32, 2, 40))
    with pytest.raises(UserError, match=r"'test_vit' does not accept images of INPUT.SIZE_SCHEDULE 40 px: "):
        new_model(cfg, 3, DEVICE)
