"""A pass over a split."""

import torch

from lib.backbone.resnet32 import ResNet32
from lib.classifier.linear import LinearClassifier
from lib.dataset.loader import Batch
from lib.inference.run import evaluate
from lib.model import Recognizer

NUM_CLASSES = 5


def batches(seed):
    """Two batches of noise, the second one smaller."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for number in (4, 3):
        images = torch.randn(number, 3, 16, 16, generator=random)
        labels = torch.randint(NUM_CLASSES, (number,), generator=random)
        found.append(Batch(images, labels, torch.ones(number, dtype=torch.bool), torch.arange(number)))
    return found


def model(seed):
    torch.manual_seed(seed)
    return Recognizer(ResNet32(), LinearClassifier(64, NUM_CLASSES)).eval()


def run(recognizer, loader):
    seen = []
    found = evaluate(
        recognizer,
        loader,
        num_classes=NUM_CLASSES,
        train_counts=torch.full((NUM_CLASSES,), 50).numpy(),
        look_at=lambda batch, features, logits: seen.append((features, logits)),
    )
    return found, *(torch.cat(part) for part in zip(*seen, strict=True))


def test_logits_are_those_of_the_model():
    recognizer, loader = model(2), batches(2)
    logits = run(recognizer, loader)[2]
    with torch.inference_mode():
        expected = torch.cat([recognizer(one.images) for one in loader])
    assert torch.equal(logits, expected)
