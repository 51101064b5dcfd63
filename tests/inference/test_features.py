"""Predictions from stored features are those of a pass over the images."""

import numpy as np
import torch

from lib.classifier.linear import LinearClassifier
from lib.dataset.features import Features
from lib.inference import run as module
from lib.inference.engine import EagerEngine
from lib.inference.run import classify_features
from lib.metrics.predictions import predictions_from_logits
from lib.model import Recognizer

NUM_CLASSES = 8


def test_predictions_do_not_depend_on_the_number_of_logits_computed_at_once(monkeypatch):
    torch.manual_seed(0)
    model = Recognizer(torch.nn.Identity(), LinearClassifier(6, NUM_CLASSES)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    num_images = 23
    values = torch.randn(num_images, model.classifier.weight.shape[1])
    labels = torch.arange(num_images) % NUM_CLASSES
    labels[3] = -1
    readable = torch.ones(num_images, dtype=torch.bool)
    readable[5] = False
    features = Features(values.numpy(), labels.numpy(), readable.numpy(), [(5, 'gone')])
    with torch.inference_mode():
        logits = model.classify(values)
    expected = predictions_from_logits(logits, labels, readable)
    probabilities = logits.double().softmax(dim=1)
    monkeypatch.setattr(module, '_MAX_LOGITS', 4 * NUM_CLASSES)
    found = classify_features(EagerEngine(model), features)
    for predictions in (expected, found):
        decoded = readable.numpy()
        assert (predictions.predicted == np.where(decoded, probabilities.argmax(dim=1).numpy(), -1)).all()
        np.testing.assert_allclose(
            predictions.confidence[decoded], probabilities.max(dim=1).values.numpy()[decoded], 1e-5
        )
        known = decoded & (labels.numpy() >= 0)
        own = probabilities[torch.arange(num_images), labels.clamp(min=0)].log().numpy()
        np.testing.assert_allclose(predictions.losses[known], -own[known], rtol=1e-4, atol=1e-5)
        assert np.isnan(predictions.losses[~known]).all()
    part = features.at(np.array([5, 2]))
    assert part.bad == [(0, 'gone')]
    assert (part.values[1] == values[2].numpy()).all()
