"""Predictions from features that were computed before: classifiers on top of them take seconds."""

from lib.dataset.features import Features
from lib.inference.engine import Engine
from lib.metrics.predictions import Predictions, join_predictions, predictions_from_logits

_MAX_LOGITS = 2**24  # computed at once: 64 MB


def logit_batch_size(num_classes: int, num_images: int = 2**31) -> int:
    """Return how many images to classify at once, so that the memory of their logits is bounded."""
    return max(1, min(num_images, 512, _MAX_LOGITS // num_classes))


def classify_features(engine: Engine, features: Features) -> Predictions:
    """Predict images from their features, without storing logits."""
    size = logit_batch_size(engine.num_classes)
    with engine.inference():
        return join_predictions(
            [
                predictions_from_logits(engine.logits(values), labels, readable)
                for values, labels, readable in features.batches(size, engine.device)
            ]
        )
