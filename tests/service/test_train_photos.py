"""The nearest training photos of an answer, against sorting all photos of each class."""

import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lib.dataset.features import Features
from lib.dataset.images import ArrayImages
from lib.dataset.index import ClassIndex
from lib.service import train_photos
from lib.service.train_photos import MAX_PER_CLASS, SIDE, TrainPhotos


@pytest.fixture
def make_photos(monkeypatch):
    """Return a function that makes TrainPhotos of given features, labels and readable flags."""

    def make(values, labels, readable, names, per_answer=3):
        pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] + np.zeros((1, 300, 400, 3), np.uint8)

        class Split(SimpleNamespace):
            def __len__(self):
                return len(labels)

        split = Split(images=ArrayImages(pixels))
        data = SimpleNamespace(train=split, index=lambda: ClassIndex(labels, len(names)))
        features = Features(values, labels.astype(np.int64), readable, [])
        monkeypatch.setattr(
            train_photos, 'open_training_data', lambda cfg: SimpleNamespace(in_class_order=lambda names: data)
        )
        monkeypatch.setattr(train_photos, 'split_features', lambda trained, split, label: features)
        return TrainPhotos(SimpleNamespace(cfg=None, class_names=names), per_answer)

    return make


def test_photos_of_each_class_are_sorted_by_cosine(make_photos):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 60).astype(np.int32)
    values, readable = rng.normal(size=(60, 8)).astype(np.float32), rng.random(60) < 0.8
    names = ['tea', 'coffee', '<b>', 'juice', 'none']
    queries = rng.normal(size=(4, 8)).astype(np.float32)
    answers = [[names[c] for c in rng.permutation(5)[:3]] for _ in queries]
    found = make_photos(values, labels, readable, names).nearest(queries, answers)
    for query, answer, photos in zip(queries, answers, found, strict=True):
        cosine = values @ query / np.linalg.norm(values, axis=1) / np.linalg.norm(query)
        expected = []
        for name in answer:
            rows = [row for row in range(60) if names[labels[row]] == name and readable[row]]
            expected += [(row, name) for row in sorted(rows, key=lambda row: -cosine[row])[:3]]
        assert [(one['row'], one['name']) for one in photos] == expected
        assert [one['similarity'] for one in photos] == pytest.approx([cosine[row] for row, _ in expected], abs=1e-4)


def test_large_classes_and_classes_without_photos(make_photos):
    labels = np.zeros(5 * MAX_PER_CLASS // 2, np.int32)
    values = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    photos = make_photos(values, labels, np.ones(len(labels), bool), ['all', 'empty'])
    (found,) = photos.nearest(values[:1], [['empty', 'all']])
    assert [one['name'] for one in found] == ['all'] * 3
    assert found[0] == {'row': 0, 'name': 'all', 'similarity': 1.0}


def test_thumbnails_are_small_and_of_existing_rows(make_photos):
    photos = make_photos(np.ones((9, 2), np.float32), np.zeros(9, np.int32), np.ones(9, bool), ['tea'])
    image = Image.open(io.BytesIO(photos.thumbnail(8)))
    assert image.format == 'JPEG'
    assert image.size == (SIDE, SIDE * 3 // 4)
    assert image.getpixel((5, 5)) == (8, 8, 8)
    for row in (-1, 9):
        with pytest.raises(IndexError):
            photos.thumbnail(row)
