"""Several centers per class: the logit is that of the nearest, in whole, chunked, sampled and sharded classifiers."""

import pytest
import torch

from lib.classifier.base import transfer_rows
from lib.classifier.cosine import CosineClassifier
from lib.loss.arcface import ArcFace, margins_by_size
from lib.loss.chunked import chunked_loss
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.sampled_classes import take_rows
from lib.loss.sharded_logits import ClassSubset
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from tests.loss.cases import COUNTS
from tests.oracles import losses as oracle

NUM_FEATURES, NUM_CLASSES, SCALE, SEED = 4, len(COUNTS), 8.0, 41


def classifier_of(num_centers, classes=None):
    torch.manual_seed(SEED)
    return CosineClassifier(NUM_FEATURES, NUM_CLASSES, SCALE, num_centers=num_centers, classes=classes).double()


def some_images(batch=9):
    random = torch.Generator().manual_seed(SEED)
    features = torch.randn(batch, NUM_FEATURES, dtype=torch.float64, generator=random)
    return features, torch.randint(NUM_CLASSES, (batch,), generator=random)


def slow_logits(classifier, features):
    """Return the logits by one cosine at a time."""
    rows = [[row, *classifier.centers[c]] for c, row in enumerate(classifier.weight)]
    return torch.stack(
        [
            torch.stack([SCALE * max((w @ f) / (w.norm() * f.norm()) for w in centers) for centers in rows])
            for f in features
        ]
    )


def test_logits_are_those_of_the_nearest_center():
    classifier, (features, _) = classifier_of(3), some_images()
    inputs = [features.requires_grad_(), *classifier.parameters()]
    found, expected = classifier(features), slow_logits(classifier, features)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('num_centers', [1, 3])
@pytest.mark.parametrize('chunk', [0, 4])
def test_chunks_equal_the_whole(chunk, num_centers):
    classifier, (features, labels) = classifier_of(num_centers), some_images()
    loss = WeightedLoss(ArcFace(margins_by_size(COUNTS, 0.5, 0.05), SCALE), torch.tensor(COUNTS))
    inputs, targets = [features.requires_grad_(), *classifier.parameters()], Targets(labels)
    logits = classifier(features)
    expected = loss(logits, targets)
    found, predicted = chunked_loss(
        *classifier.factors(features),
        lambda z, rows, _: loss.total(z, targets.select(rows), None) / loss.normalizer(targets),
        chunk=chunk,
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(predicted, logits.argmax(dim=1))
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_sampled_classes_keep_their_centers():
    classifier, (features, labels) = classifier_of(3), some_images()
    rows = torch.tensor([0, 2, 5])
    labels = rows[labels % 3]
    x, weight, _ = classifier.factors(features)
    found, _ = chunked_loss(
        x,
        take_rows(weight, rows),
        None,
        lambda z, images, _: CrossEntropy()(z, labels[images]).sum(),
        subset=ClassSubset(rows, NUM_CLASSES),
    )
    expected = torch.nn.functional.cross_entropy(
        classifier(features)[:, rows], torch.searchsorted(rows, labels), reduction='sum'
    )
    parameters = list(classifier.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_one_center_without_margins_is_cosine_softmax():
    """The random numbers, the logits and the loss are those of the classifier without centers, bit for bit."""
    one, (features, labels) = classifier_of(1), some_images()
    torch.manual_seed(SEED)
    plain = CosineClassifier(NUM_FEATURES, NUM_CLASSES, SCALE).double()
    assert [name for name, _ in one.named_parameters()] == ['weight']
    assert torch.equal(one(features), plain(features))
    equal = [20] * NUM_CLASSES
    found = ArcFace(margins_by_size(equal, 0.0, 0.0), SCALE)(one(features), labels)
    assert torch.equal(found, CrossEntropy()(plain(features), labels))


def test_sub_center_arcface_equals_the_oracle():
    classifier, (features, labels) = classifier_of(3), some_images()
    found = ArcFace(margins_by_size(COUNTS, 0.5, 0.05), SCALE)(classifier(features), labels)
    logits = slow_logits(classifier, features)
    for i, label in enumerate(labels.tolist()):
        margin = oracle.margin_by_size(label, COUNTS, 0.5, 0.05)
        torch.testing.assert_close(found[i], oracle.arcface(logits[i], label, margin, SCALE), rtol=1e-9, atol=1e-12)


def test_shards_have_the_centers_of_the_whole():
    whole, shards = classifier_of(3), [classifier_of(3, classes) for classes in (range(2), range(2, NUM_CLASSES))]
    for name, parameter in whole.named_parameters():
        assert torch.equal(torch.cat([shard.get_parameter(name) for shard in shards]), parameter)


@pytest.mark.parametrize(('new', 'trained', 'is_taken'), [(3, 3, True), (3, 1, False), (2, 3, False), (1, 3, False)])
def test_rows_are_transferred_by_name_and_centers_where_their_number_is_the_same(new, trained, is_taken):
    state, old = classifier_of(new).state_dict(), {k: v + 1 for k, v in classifier_of(trained).state_dict().items()}
    found, unknown = transfer_rows(state, old, ['b', 'new'], ['a', 'b'])
    assert unknown == ['new']
    assert found.keys() == state.keys()
    assert torch.equal(found['weight'][0], old['weight'][1])
    if new > 1:
        assert torch.equal(found['centers'][0], old['centers'][1] if is_taken else state['centers'][0])
        assert torch.equal(found['centers'][1:], state['centers'][1:])
