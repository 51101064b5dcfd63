"""Imprinted rows against loops over images, and against the classifiers that they become part of."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LinearClassifier
from lib.inference.engine import EagerEngine
from lib.metrics.accuracy import mean_class_accuracy
from lib.model import Recognizer
from lib.posthoc.candidate_scores import score_features
from lib.posthoc.class_means import nearest_mean
from lib.posthoc.imprint import CENTERINGS, SCALES, cross_fit_imprint, imprint

NUM_OLD, NUM_NEW, WIDTH, COSINE_SCALE = 12, 3, 16, 16.0
HOW = {'linear': None, 'cosine': COSINE_SCALE}


class World:
    """Classes around random points, behind a ReLU; the first NUM_OLD have a trained classifier."""

    def __init__(self, seed, kind='linear', noise=0.8):
        self.random = np.random.default_rng(seed)
        self.noise = noise
        self.centers = self.random.standard_normal((NUM_OLD + NUM_NEW, WIDTH)) + 0.5
        features, labels = self.draw(range(NUM_OLD), 40)
        means = torch.stack([torch.from_numpy(features[labels == label]).double().mean(0) for label in range(NUM_OLD)])
        if kind == 'linear':
            classifier = LinearClassifier(WIDTH, NUM_OLD)
            weight, bias = nearest_mean(means, torch.full((NUM_OLD,), 40))
            classifier.bias.data = bias
        else:
            classifier, weight = CosineClassifier(WIDTH, NUM_OLD, COSINE_SCALE), (means - 0.7 * means.mean(0)).float()
        classifier.weight.data = weight
        self.model = Recognizer(nn.Identity(), classifier).eval()
        self.norm = float(weight.norm(dim=1).median())
        self.how = {'norm': self.norm, 'cosine_scale': HOW[kind]}

    def draw(self, classes, each):
        labels = np.repeat(list(classes), each)
        noise = self.noise * self.random.standard_normal((len(labels), WIDTH))
        return np.maximum(0, self.centers[labels] + noise).astype(np.float32), labels

    def old(self, each):
        return score_features(EagerEngine(self.model), *self.draw(range(NUM_OLD), each))

    def new(self, each):
        features, labels = self.draw(range(NUM_OLD, NUM_OLD + NUM_NEW), each)
        return score_features(EagerEngine(self.model), features, labels - NUM_OLD, are_new=True)

    def extended(self, chosen):
        """Return the classifier with the new rows."""
        old = self.model.classifier
        both = (
            LinearClassifier
            if isinstance(old, LinearClassifier)
            else lambda *sizes: CosineClassifier(*sizes, COSINE_SCALE)
        )(WIDTH, NUM_OLD + NUM_NEW)
        both.weight.data = torch.cat([old.weight.data, torch.from_numpy(chosen.weight).float()])
        if isinstance(old, LinearClassifier):
            both.bias.data = torch.cat([old.bias.data, torch.from_numpy(chosen.bias).float()])
        return both


def unit(vector):
    return vector / np.linalg.norm(vector)


def slow_scores(features, shots, center, how, centering, leave_out=None):
    """Return scores of new classes (n, k) at scale 1 and shift 0, one image and class at a time."""
    found = np.empty((len(features), NUM_NEW))
    for label in range(NUM_NEW):
        members = [row for row in range(len(shots)) if shots.labels[row] == label and row != leave_out]
        mean = np.mean([unit(shots.features()[row]) for row in members], axis=0)
        row = unit(mean - centering * center[0])
        for number, feature in enumerate(features):
            if how['cosine_scale']:
                found[number, label] = how['cosine_scale'] * row @ unit(feature)
            else:
                found[number, label] = how['norm'] * row @ (feature - center[1])
    return found


def slow_gain(shots, old, how, scale, shift, centering):
    """Return (lost, won) of one choice of parameters."""
    center = np.mean([unit(f) for f in old.features()], axis=0), old.features().mean(0)
    beaten = slow_scores(old.features(), shots, center, how, centering).max(1) * scale + shift > old.best
    lost = mean_class_accuracy(old.labels, old.correct) - mean_class_accuracy(old.labels, old.correct & ~beaten)
    correct = []
    others = slow_scores(shots.features(), shots, center, how, centering)
    for row, label in enumerate(shots.labels):
        scores = others[row].copy()
        scores[label] = slow_scores(shots.features()[row : row + 1], shots, center, how, centering, row)[0, label]
        correct.append(scores.argmax() == label and scores[label] * scale + shift > shots.best[row])
    return lost, mean_class_accuracy(shots.labels, np.array(correct))


@pytest.mark.parametrize('kind', HOW)
@pytest.mark.parametrize('seed', range(3))
def test_nothing_better_is_found_by_trying(kind, seed):
    world = World(seed, kind)
    shots, old = world.new(3), world.old(5)
    chosen = imprint(shots, old, max_loss=0.1, **world.how)
    lost, won = slow_gain(shots, old, world.how, chosen.scale, chosen.shift, chosen.centering)
    assert (chosen.lost, chosen.won) == pytest.approx((lost, won))
    assert lost <= 0.1
    random = np.random.default_rng(seed)
    for _ in range(25):
        scale = 1.0 if kind == 'cosine' else random.choice(SCALES)
        shift = 0.0 if kind == 'cosine' else chosen.shift + random.normal(0, world.norm * 3)
        centering = random.choice(CENTERINGS) if kind == 'cosine' else 1.0
        lost, won = slow_gain(shots, old, world.how, scale, shift, centering)
        allowed = lost + np.sqrt(lost * (1 - lost) / len(old)) <= 0.1
        assert not allowed or won - lost <= chosen.won - chosen.lost + 1e-12


@pytest.mark.parametrize('kind', HOW)
@pytest.mark.parametrize('seed', range(3))
def test_the_extended_classifier_predicts_the_same(kind, seed):
    world = World(seed, kind)
    chosen = imprint(world.new(5), world.old(8), **world.how)
    classifier = world.extended(chosen)
    for images, offset in ((world.old(30), 0), (world.new(30), NUM_OLD)):
        with torch.inference_mode():
            predicted = classifier(torch.from_numpy(images.source)).argmax(1).numpy()
        wins = chosen.wins(images, world.how['cosine_scale'])
        assert (np.where(predicted >= NUM_OLD, predicted - NUM_OLD, -1) == wins).all()
        correct = images.correct & (wins < 0) if offset == 0 else wins == images.labels
        assert ((predicted == images.labels + offset) == correct).all()


@pytest.mark.long
@pytest.mark.parametrize('kind', HOW)
def test_estimated_gains_and_losses_hold_on_other_images(kind):
    """Over twenty worlds: cross-fitting estimates the loss on fresh images, leaving one out the gain."""
    results = []
    for seed in range(20):
        world = World(seed, kind, noise=1.0)
        shots, old, fresh, held = world.new(5), world.old(15), world.old(60), world.new(40)
        chosen = imprint(shots, old, max_loss=0.05, **world.how)
        after = cross_fit_imprint(shots, old, max_loss=0.05, **world.how)
        still_correct = fresh.correct & (chosen.wins(fresh, world.how['cosine_scale']) < 0)
        results.append(
            (
                mean_class_accuracy(old.labels, old.correct) - mean_class_accuracy(old.labels, after),
                mean_class_accuracy(fresh.labels, fresh.correct) - mean_class_accuracy(fresh.labels, still_correct),
                chosen.won,
                mean_class_accuracy(held.labels, chosen.wins(held, world.how['cosine_scale']) == held.labels),
            )
        )
    crossed, lost, promised, won = np.mean(results, axis=0)
    assert crossed == pytest.approx(lost, abs=0.012)
    assert lost < 0.05
    assert promised == pytest.approx(won, abs=0.08)
    assert won > 0.4  # one in fifteen by chance


@pytest.mark.parametrize('kind', HOW)
def test_one_image_per_class(kind):
    world = World(4, kind)
    chosen = imprint(world.new(1), world.old(20), **world.how)
    assert chosen.won is None
    assert chosen.lost <= 0.01 or kind == 'cosine'
    held = world.new(30)
    assert mean_class_accuracy(held.labels, chosen.wins(held, world.how['cosine_scale']) == held.labels) > 0.2


@pytest.mark.parametrize('kind', HOW)
@pytest.mark.parametrize('each', [1, 4])
def test_without_old_images(kind, each):
    world = World(5, kind)
    chosen = imprint(world.new(each), None, **world.how)
    assert chosen.lost is None
    assert chosen.scale == 1
    assert chosen.centering == 1 or each > 1
    assert np.isfinite(chosen.weight).all()
    assert np.isfinite(chosen.bias).all()


def test_a_single_new_class():
    world = World(6)
    images = world.new(5)
    one = images.at(np.flatnonzero(images.labels == 0))
    for old in (world.old(10), None):
        chosen = imprint(one, old, **world.how)
        assert chosen.weight.shape == (1, WIDTH)
        assert np.isfinite(chosen.weight).all()
