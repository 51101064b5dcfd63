"""A pass over a split, with and without mirror images."""

import pytest
import torch

from lib.backbone.resnet32 import ResNet32
from lib.classifier.cosine import Cosine
from lib.classifier.linear import Linear
from lib.dataset.loader import Batch
from lib.evaluation.evaluate import evaluate
from lib.model import Recognizer

NUM_CLASSES = 5


def batches(seed, symmetric=False):
    """Two batches of noise, the second one smaller."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for number in (4, 3):
        images = torch.randn(number, 3, 16, 16, generator=random)
        if symmetric:
            images = torch.cat([images[..., :8], images[..., :8].flip(-1)], dim=-1)
        labels = torch.randint(NUM_CLASSES, (number,), generator=random)
        found.append(Batch(images, labels, torch.ones(number, dtype=torch.bool), torch.arange(number)))
    return found


def model(kind, seed):
    torch.manual_seed(seed)
    classifier = Cosine(64, NUM_CLASSES, scale=16.0) if kind == 'cosine' else Linear(64, NUM_CLASSES)
    return Recognizer(ResNet32(), classifier).eval()


def run(recognizer, loader, **options):
    seen = []
    found = evaluate(
        recognizer,
        loader,
        num_classes=NUM_CLASSES,
        train_counts=torch.full((NUM_CLASSES,), 50).numpy(),
        look_at=lambda batch, features, logits: seen.append((features, logits)),
        **options,
    )
    return found, *(torch.cat(part) for part in zip(*seen, strict=True))


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kind', ['linear', 'cosine'])
def test_flip_is_the_mean_of_two_passes(kind, seed):
    recognizer, loader = model(kind, seed), batches(seed)
    found, features, logits = run(recognizer, loader, flip=True)
    plain = run(recognizer, loader)
    mirrored = [Batch(torch.flip(one.images, dims=[3]), one.labels, one.readable, one.rows) for one in loader]
    other = run(recognizer, mirrored)
    for mean, one, two in ((features, plain[1], other[1]), (logits, plain[2], other[2])):
        torch.testing.assert_close(mean, (one.double() + two.double()).float() / 2, rtol=1e-6, atol=1e-6)
        assert not torch.equal(mean, one)
    assert found.predicted.tolist() == logits.argmax(dim=1).tolist(), 'the mean logits decide'
    labels = torch.cat([one.labels for one in loader])
    loss = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert found.metrics['loss'] == pytest.approx(loss.item(), rel=1e-5)


def test_flip_leaves_symmetric_images_as_they_are():
    recognizer, loader = model('linear', 1), batches(1, symmetric=True)
    assert torch.equal(loader[0].images, loader[0].images.flip(-1))
    found, features, logits = run(recognizer, loader, flip=True)
    plain = run(recognizer, loader)
    assert torch.equal(features, plain[1])
    assert torch.equal(logits, plain[2])
    assert found.metrics == plain[0].metrics


def test_nothing_is_mirrored_unless_asked_for():
    recognizer, loader = model('linear', 2), batches(2)
    logits = run(recognizer, loader)[2]
    with torch.inference_mode():
        expected = torch.cat([recognizer(one.images) for one in loader])
    assert torch.equal(logits, expected)
