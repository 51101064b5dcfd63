"""A pass over a split: any engine, any sinks, resumed with a store."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from lib.backbone.resnet32 import ResNet32
from lib.classifier.linear import LinearClassifier
from lib.dataset.loader import Batch
from lib.inference.engine import EagerEngine
from lib.inference.forward import SingleForward
from lib.inference.run import evaluate, run
from lib.inference.sinks import feature_store_sink
from lib.model import Recognizer
from lib.runtime.column_store import open_or_create

NUM_CLASSES = 5


def batches(seed):
    """Two batches of noise, the second one smaller."""
    random = torch.Generator().manual_seed(seed)
    result = []
    for first, number in ((0, 4), (4, 3)):
        images = torch.randn(number, 3, 16, 16, generator=random)
        labels = torch.randint(NUM_CLASSES, (number,), generator=random)
        result.append(Batch(images, labels, torch.ones(number, dtype=torch.bool), torch.arange(first, first + number)))
    return result


def model(seed):
    torch.manual_seed(seed)
    return Recognizer(ResNet32(), LinearClassifier(64, NUM_CLASSES)).eval()


class Batches:
    """Batches as an EvalLoader gives them."""

    def __init__(self, batches):
        self._batches = batches

    def __len__(self):
        return len(self._batches)

    def batch_slices(self):
        starts = [sum(len(one.labels) for one in self._batches[:number]) for number in range(len(self) + 1)]
        return [slice(*pair) for pair in pairwise(starts)]

    def batches(self, slices):
        return (one for one, rows in zip(self._batches, self.batch_slices(), strict=True) if rows in slices)


COUNTS = np.full(NUM_CLASSES, 50)


def test_sinks_get_the_features_and_logits_of_the_model():
    recognizer, loader, outputs = model(2).train(), batches(2), []
    evaluate(
        EagerEngine(recognizer),
        Batches(loader),
        train_counts=COUNTS,
        sinks=[lambda batch, output: outputs.append((output.features, output.logits))],
    )
    assert recognizer.training
    features, logits = (torch.cat(part) for part in zip(*outputs, strict=True))
    recognizer.eval()
    with torch.inference_mode():
        assert torch.equal(features, torch.cat([recognizer.features(one.images) for one in loader]))
        assert torch.equal(logits, torch.cat([recognizer(one.images) for one in loader]))


def test_the_mode_is_restored_after_an_error():
    recognizer = model(0).train()

    def stop(batch, output):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(EagerEngine(recognizer), Batches(batches(0)), train_counts=COUNTS, sinks=[stop])
    assert recognizer.training
    assert not torch.is_inference_mode_enabled()


class MeanColorEngine:
    """An engine that is no Recognizer: features are mean colors, the logits a fixed product with them."""

    device, num_features, num_classes, classes = torch.device('cpu'), 3, NUM_CLASSES, range(NUM_CLASSES)

    def features(self, images):
        return images.mean(dim=(2, 3))

    def logits(self, features):
        return features @ torch.arange(3.0 * NUM_CLASSES).reshape(3, NUM_CLASSES)

    def inference(self):
        return torch.inference_mode()


def test_any_engine_is_evaluated():
    engine, loader = MeanColorEngine(), batches(1)
    found = evaluate(engine, Batches(loader), train_counts=COUNTS)
    logits = torch.cat([engine.logits(engine.features(one.images)) for one in loader])
    labels = torch.cat([one.labels for one in loader])
    assert (found.predicted == logits.argmax(dim=1).numpy()).all()
    assert found.metrics['top1'] == pytest.approx(float((logits.argmax(dim=1) == labels).float().mean()))


def test_a_pass_with_a_store_computes_only_missing_batches(tmp_path):
    engine, loader = MeanColorEngine(), batches(3)
    columns = {'features': (np.float32, (3,)), 'readable': (bool, ())}
    store = open_or_create(tmp_path / 'store', 7, columns, {})
    computed = []

    def fill(slices):
        store.done[:] = False
        for rows in slices:
            store.done[rows] = True
        forward = SingleForward(engine, Batches(loader))
        sinks = [feature_store_sink(store), lambda batch, output: computed.append(len(batch.labels))]
        run(forward, sinks, label='test', store=store)

    fill([slice(0, 4)])
    assert computed == [3]
    fill([])
    assert computed == [3, 4, 3]
    assert store.is_complete
    expected = torch.cat([engine.features(one.images) for one in loader])
    assert (store.columns['features'] == expected.numpy()).all()
