"""L-BFGS of heads on stored features against scikit-learn, and with blocks, views, ranks and weights."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LinearClassifier
from lib.dataset.features import FeatureReader, Features
from lib.dataset.loader import FullBatchLoader
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.loss.balanced_softmax import BalancedSoftmax
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.optim.optimizer import create_lbfgs
from lib.trainer.lbfgs import LBFGSStep, regularization_path
from lib.trainer.objective import Objective
from lib.trainer.train_state import TrainState
from tests.ranks import run_ranks

NUM_CLASSES, NUM_FEATURES, NUM_IMAGES = 4, 6, 90


class NoBackbone(nn.Identity):
    num_features = NUM_FEATURES


def labels_and_values(seed=0):
    """Return overlapping classes of different size, far from the origin and of very different variances."""
    random = np.random.default_rng(seed)
    labels = random.choice(NUM_CLASSES, NUM_IMAGES, p=[0.5, 0.3, 0.15, 0.05])
    centers = random.normal(size=(NUM_CLASSES, NUM_FEATURES))
    values = 7 + (centers[labels] + 2 * random.normal(size=(NUM_IMAGES, NUM_FEATURES))) * [1, 1, 1, 1, 1, 5]
    return labels, values.astype(np.float32)


def step_of(
    first_lambda,
    *,
    block=32,
    num_views=1,
    classifier=None,
    loss=None,
    factors=None,
    weights=None,
    group=SINGLE_PROCESS,
    bad=(),
):
    labels, values = labels_and_values()
    readable = np.ones(NUM_IMAGES, bool)
    readable[list(bad)] = False
    views = [
        Features(values + 0.5 * view, labels, readable, [(row, 'cut short') for row in bad])
        for view in range(num_views)
    ]
    reader = FeatureReader(views, torch.device('cpu'), str, 0)
    loader = FullBatchLoader(reader, np.arange(NUM_IMAGES), block, weights=weights, group=group)
    torch.manual_seed(0)
    model = Recognizer(NoBackbone(), classifier or LinearClassifier(NUM_FEATURES, NUM_CLASSES))
    counts = np.bincount(labels, minlength=NUM_CLASSES)
    step = LBFGSStep(
        state=TrainState(model, create_lbfgs(model)),
        objective=Objective(WeightedLoss((loss or CrossEntropy)(), counts) if loss is None else loss(counts)),
        schedule=regularization_path(first_lambda),
        blocks=loader.blocks,
        class_factors=factors,
        group=group,
    )
    return step, loader


def fitted(first_lambda=1e-3, epoch=0, **options):
    step, _ = step_of(first_lambda, **options)
    result = step(None, epoch)
    return step.state.model.classifier, result


def standardized(values):
    """Return the features for which lambda is defined."""
    centered = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    return centered / np.sqrt(np.square(centered).sum(axis=1).mean())


@pytest.mark.parametrize('epoch', [0, 1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    'weighted',
    ['', 'classes and images', *(pytest.param(one, marks=pytest.mark.slow) for one in ('classes', 'images'))],
)
def test_equals_scikit_learn(epoch, weighted):
    """Same objective within 1e-5, and the same predictions; C is 1 / (n lambda)."""
    from sklearn.linear_model import LogisticRegression  # here, since ranks import this module, too

    labels, values = labels_and_values()
    of_class, of_image = np.array([0.5, 1.0, 2.0, 4.0]), np.random.default_rng(1).uniform(0.1, 1, NUM_IMAGES)
    factors = torch.from_numpy(of_class).float()
    weights = (of_class[labels] if 'classes' in weighted else 1) * (
        of_image if 'images' in weighted else np.ones(NUM_IMAGES)
    )
    decay, inputs = 1e-4 * 10 ** (epoch / 2), standardized(values)
    peer = LogisticRegression(C=1 / (weights.sum() * decay), tol=1e-10, max_iter=10_000)
    peer.fit(inputs, labels, sample_weight=weights)
    classifier, result = fitted(
        1e-4,
        epoch,
        factors=(lambda _: factors) if 'classes' in weighted else None,
        weights=of_image.astype(np.float32) if 'images' in weighted else None,
    )
    expected = inputs @ peer.coef_.T + peer.intercept_
    logits = classifier(torch.from_numpy(values)).detach().double().numpy()
    scale = np.sqrt(np.square(values - values.mean(axis=0)).sum(axis=1).mean())
    rows = [classifier.weight.detach().numpy() * scale, peer.coef_]
    losses = [_loss(z, labels, weights) for z in (logits, expected)]
    ours, theirs = (loss + decay / 2 * np.square(w).sum() for loss, w in zip(losses, rows, strict=True))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert float(result.loss) == pytest.approx(losses[1], abs=1e-4)
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert int(result.num_right) == (expected.argmax(axis=1) == labels).sum()
    differences = logits - expected  # a constant per image
    np.testing.assert_allclose(differences - differences.mean(axis=1, keepdims=True), 0, atol=5e-2)


def _loss(logits, labels, weights):
    losses = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1)
    return float(((losses - logits[np.arange(len(labels)), labels]) * weights).sum() / weights.sum())


@pytest.mark.parametrize('block', [7, NUM_IMAGES])
def test_blocks_change_nothing(block):
    expected, _ = fitted(block=32)
    classifier, _ = fitted(block=block)
    torch.testing.assert_close(classifier.weight, expected.weight, rtol=0, atol=1e-3)
    torch.testing.assert_close(classifier.bias, expected.bias, rtol=0, atol=1e-2)


def test_every_view_counts():
    """The loss is the mean over the images of all views."""
    labels, values = labels_and_values()
    step, loader = step_of(1e-3, num_views=3)
    assert (loader.batch_size, loader.local_batch_size, loader.steps_per_epoch) == (3 * NUM_IMAGES, 3 * NUM_IMAGES, 1)
    seen = torch.cat([batch.images for batch in loader.blocks()])
    np.testing.assert_array_equal(seen.numpy(), np.concatenate([values + 0.5 * view for view in range(3)]))
    result = step(None, 0)
    logits = step.state.model.classifier(seen).detach().numpy()
    assert float(result.loss) == pytest.approx(_loss(logits, np.tile(labels, 3), np.ones(3 * NUM_IMAGES)), abs=1e-5)


def test_an_epoch_has_one_batch_that_names_undecodable_images():
    _, loader = step_of(1e-3, bad=[3, 50], num_views=2)
    (batch,) = loader.batches(0)
    assert batch.bad == 2 * [(3, 'cut short'), (50, 'cut short')]
    assert list(loader.batches(0, first_step=1)) == []


def test_a_fit_depends_on_its_start_alone():
    """As in a resumed run, which has the weights of the epoch before, and an optimizer without state."""
    step, _ = step_of(1e-5)
    step(None, 0)
    other, _ = step_of(1e-5)
    other.state.model.load_state_dict(step.state.model.state_dict())
    other.state.optimizer.load_state_dict(step.state.optimizer.state_dict())
    assert not step.state.optimizer.state_dict()['state']
    for one in (step, other):
        one(None, 1)
    assert torch.equal(step.state.model.classifier.weight, other.state.model.classifier.weight)


def test_without_regularization_an_epoch_continues_the_fit():
    step, _ = step_of(0.0)
    losses = [float(step(None, epoch).loss) for epoch in range(3)]
    assert losses == sorted(losses, reverse=True)


def test_a_cosine_classifier_ignores_lambda():
    """Its logits do not depend on the length of its rows, so a penalty would only shrink them."""

    def cosine():
        torch.manual_seed(0)
        return CosineClassifier(NUM_FEATURES, NUM_CLASSES, 8.0)

    weak, first = fitted(1e-6, classifier=cosine())
    strong, second = fitted(10.0, classifier=cosine())
    assert torch.equal(weak.weight, strong.weight)
    assert float(first.loss) == float(second.loss) < np.log(NUM_CLASSES)


def test_another_loss():
    """Balanced softmax is cross entropy of logits with ln n added, so its best bias is lower by ln n."""
    counts = np.bincount(labels_and_values()[0], minlength=NUM_CLASSES)
    plain, _ = fitted(1e-3)
    balanced, _ = fitted(1e-3, loss=lambda counts: WeightedLoss(BalancedSoftmax(counts), counts))
    difference = (plain.bias - balanced.bias).detach() - torch.from_numpy(np.log(counts)).float()
    torch.testing.assert_close(difference - difference.mean(), torch.zeros(NUM_CLASSES), rtol=0, atol=5e-2)
    torch.testing.assert_close(balanced.weight, plain.weight, rtol=0, atol=5e-3)


def weights_of_a_rank(rank: int, count: int) -> dict:
    """Run in each process."""
    classifier, result = fitted(1e-4, group=ProcessGroup(rank, count), block=20)
    return {'weight': classifier.weight.detach(), 'bias': classifier.bias.detach(), 'loss': result.loss}


@pytest.mark.process
@pytest.mark.long
def test_two_ranks_equal_one(tmp_path):
    expected, result = fitted(1e-4)
    found = run_ranks(weights_of_a_rank, 2, tmp_path)
    assert torch.equal(found[0]['weight'], found[1]['weight'])
    torch.testing.assert_close(found[0]['weight'], expected.weight.detach(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found[0]['bias'], expected.bias.detach(), rtol=0, atol=1e-2)
    assert float(found[0]['loss'] + found[1]['loss']) == pytest.approx(float(result.loss), abs=1e-5)


def test_path():
    path = regularization_path(1e-7)
    assert [path(epoch) for epoch in (0, 2, 8)] == pytest.approx([1e-7, 1e-6, 1e-3])
