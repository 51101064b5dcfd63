"""Rows of known classes with further images: against loops, and against the classifiers that they become part of."""

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
from lib.posthoc.imprint import cross_fit_imprint
from lib.posthoc.row_updates import STRENGTHS, Choice, KnownRows, RowUpdates

NUM_CLASSES, WIDTH, SCALE = 9, 12, 8.0
KNOWN = np.array([1, 4, 7])
KINDS = {'linear': (None, 1), 'cosine': (SCALE, 1), 'centers': (SCALE, 2)}


class World:
    """Classes around random points, behind a ReLU; images of KNOWN lie `drift` beside their old points."""

    def __init__(self, seed, kind, drift=1.0, noise=0.7):
        self.random = np.random.default_rng(seed)
        self.scale, num_centers = KINDS[kind]
        self.points = self.random.standard_normal((NUM_CLASSES + 2, WIDTH)) + 0.5
        self.drift, self.noise = drift * self.random.standard_normal(self.points.shape), noise
        rows = torch.from_numpy(self.points[:NUM_CLASSES] - 0.5).float()
        if self.scale is None:
            self.classifier = LinearClassifier(WIDTH, NUM_CLASSES)
            self.classifier.bias.data = -0.5 * (rows * torch.from_numpy(self.points[:NUM_CLASSES]).float()).sum(dim=1)
        else:
            self.classifier = CosineClassifier(WIDTH, NUM_CLASSES, SCALE, num_centers=num_centers)
            if num_centers > 1:
                self.classifier.centers.data.normal_(generator=torch.Generator().manual_seed(seed))
        self.classifier.weight.data = rows
        self.counts = np.array([4, 20, 1])

    def draw(self, classes, each, *, drifted=False):
        labels = np.repeat(classes, each)
        noise = self.noise * self.random.standard_normal((len(labels), WIDTH))
        points = self.points[labels] + drifted * self.drift[labels]
        return np.maximum(0, points + noise).astype(np.float32), labels

    def engine(self, classifier=None):
        return EagerEngine(Recognizer(nn.Identity(), classifier or self.classifier).eval())

    def scored(self, drawn, without=KNOWN, *, are_new=False):
        return score_features(self.engine(), *drawn, are_new=are_new, without=without)

    def known(self):
        weight = self.classifier.weight.detach().double()[KNOWN, None]
        if hasattr(self.classifier, 'centers'):
            weight = torch.cat([weight, self.classifier.centers.detach().double()[KNOWN]], dim=1)
        bias = np.zeros(3) if self.scale else self.classifier.bias.detach().double().numpy()[KNOWN]
        return KnownRows(KNOWN, weight.numpy(), bias, self.counts)

    def updates(self, shots, old, max_loss=0.05):
        features, labels = shots
        of_known = self.scored((features, np.searchsorted(KNOWN, labels)), are_new=True)
        of_old = None if old is None else self.scored(old)
        return RowUpdates(self.known(), of_known, of_old, cosine_scale=self.scale, max_loss=max_loss)

    def changed(self, updates, choice):
        """Return the classifier with the rows of a choice."""
        state = {name: value.clone() for name, value in self.classifier.state_dict().items()}
        weight, bias = updates.rows(choice)
        state['weight'][KNOWN] = torch.from_numpy(weight[:, 0]).float()
        if 'centers' in state:
            state['centers'][KNOWN] = torch.from_numpy(weight[:, 1:]).float()
        if 'bias' in state:
            state['bias'][KNOWN] = torch.from_numpy(bias).float()
        if self.scale is None:
            other = LinearClassifier(WIDTH, NUM_CLASSES)
        else:
            other = CosineClassifier(WIDTH, NUM_CLASSES, SCALE, num_centers=self.classifier.num_centers)
        other.load_state_dict(state)
        return other


def unit(vector):
    return vector / np.linalg.norm(vector)


def slow_row(world, number, shots, old, strength):
    """Return the moved center of a class, its index among the class's centers, and the bias."""
    features = [feature for feature, label in zip(*shots, strict=True) if label == KNOWN[number]]
    unit_center, center = np.mean([unit(f) for f in old[0]], axis=0), old[0].astype(np.float64).mean(axis=0)
    direction = unit(np.mean([unit(f.astype(np.float64)) for f in features], axis=0) - unit_center)
    known = world.known()
    rows = known.weight[number]
    moving = int(np.argmax([unit(row) @ direction for row in rows]))
    fraction = strength * len(features) / (world.counts[number] + strength * len(features))
    moved = unit((1 - fraction) * unit(rows[moving]) + fraction * direction) * np.linalg.norm(rows[moving])
    return moved, moving, known.bias[number] + (rows[moving] - moved) @ center


@pytest.mark.parametrize('kind', KINDS)
def test_rows_are_those_of_a_loop(kind):
    world = World(0, kind)
    shots, old = world.draw(KNOWN, 3, drifted=True), world.draw(range(NUM_CLASSES), 6)
    updates = world.updates(shots, old)
    for index, strength in enumerate(STRENGTHS):
        weight, bias = updates.rows(Choice(index, 0.5))
        for number in range(len(KNOWN)):
            moved, moving, moved_bias = slow_row(world, number, shots, old, strength)
            np.testing.assert_allclose(weight[number, moving], moved, rtol=1e-5, atol=1e-6)
            others = np.delete(np.arange(weight.shape[1]), moving)
            np.testing.assert_array_equal(weight[number, others], world.known().weight[number, others])
            if kind == 'linear':
                assert bias[number] == pytest.approx(moved_bias + 0.5, rel=1e-4)
    np.testing.assert_allclose(updates.rows(Choice(0, 0))[0], world.known().weight, rtol=1e-12)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('seed', range(2))
def test_scores_are_those_of_the_changed_classifier(kind, seed):
    world = World(seed, kind)
    shots, old = world.draw(KNOWN, 3, drifted=True), world.draw(range(NUM_CLASSES), 6)
    new = world.draw([NUM_CLASSES, NUM_CLASSES + 1], 4)[0], np.repeat([0, 1], 4)
    updates = world.updates(shots, old)
    for choice in (Choice(strength, shift) for strength in range(len(STRENGTHS)) for shift in (0, 0.7)):
        if choice.shift and kind != 'linear':
            continue
        engine = world.engine(world.changed(updates, choice))
        of_new = updates.applied(world.scored(new, are_new=True), choice, are_new=True)
        for images, found in ((old, updates.old_at(choice)), (new, of_new)):
            expected = score_features(engine, *images, are_new=images is new)
            np.testing.assert_allclose(found.best, expected.best, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(found.correct, expected.correct)


def slow_gain(world, updates, shots, old, index, shift):
    """Return the gain of a strength and a shift, each shot judged by rows without it, and the loss."""
    features, labels = shots
    classifier = world.changed(updates, Choice(index, shift))
    before, after = (score_features(world.engine(one), *old) for one in (world.classifier, classifier))
    lost = mean_class_accuracy(old[1], before.correct) - mean_class_accuracy(old[1], after.correct)
    voters = [row for row in range(len(labels)) if (labels == labels[row]).sum() > 1]
    correct = []
    for row in voters:
        rest, number = (
            (np.delete(features, row, axis=0), np.delete(labels, row)),
            int(np.searchsorted(KNOWN, labels[row])),
        )
        moved, moving, bias = slow_row(world, number, rest, old, STRENGTHS[index])
        without = world.changed(updates, Choice(index, shift))
        rows = without.weight.data if moving == 0 else without.centers.data[:, moving - 1]
        rows[KNOWN[number]] = torch.from_numpy(moved)
        if world.scale is None:
            without.bias.data[KNOWN[number]] = bias + shift
        correct.append(score_features(world.engine(without), features[row : row + 1], labels[row : row + 1]).correct[0])
    return mean_class_accuracy(labels[voters], np.array(correct)), lost


@pytest.mark.parametrize('kind', KINDS)
def test_nothing_better_is_found_by_trying(kind):
    """A class with one shot has no vote."""
    world = World(3, kind)
    features, labels = world.draw(KNOWN, 4, drifted=True)
    shots, old = (features[:9], labels[:9]), world.draw(range(NUM_CLASSES), 8)
    updates = world.updates(shots, old, max_loss=0.1)
    chosen = updates.choose()
    won, lost = slow_gain(world, updates, shots, old, *chosen)
    assert updates.left(chosen) == pytest.approx(0.1 - max(0, lost))
    for index in range(len(STRENGTHS)):
        for shift in (0, 0.3, 1, 3) if kind == 'linear' else (0,):
            other_won, other_lost = slow_gain(world, updates, shots, old, index, shift)
            error = np.sqrt(max(0, other_lost * (1 - other_lost)) / len(old[1]))
            assert other_lost + error > 0.1 or other_won - other_lost <= won - lost + 1e-9


@pytest.mark.parametrize('kind', KINDS)
def test_new_packaging_is_learned_at_a_limited_loss(kind):
    """Mean of eight worlds: held-out images of products that changed, fresh images of all others."""
    results = []
    for seed in range(8):
        world = World(seed, kind, drift=0.8)
        shots, old = world.draw(KNOWN, 5, drifted=True), world.draw(range(NUM_CLASSES), 10)
        updates = world.updates(shots, old, max_loss=0.05)
        changed = world.engine(world.changed(updates, updates.choose()))
        held, fresh = world.draw(KNOWN, 30, drifted=True), world.draw(range(NUM_CLASSES), 30)
        crossed = cross_fit_imprint(None, world.scored(old), norm=1.0, updates=updates)
        results.append([
            *(mean_class_accuracy(images[1], score_features(engine, *images).correct)
              for images in (held, fresh) for engine in (world.engine(), changed)),
            mean_class_accuracy(old[1], updates.old_at(Choice(0, 0)).correct) - mean_class_accuracy(old[1], crossed),
        ])  # fmt: skip
    held_before, held_after, fresh_before, fresh_after, crossed = np.mean(results, axis=0)
    assert held_after > held_before + 0.03
    assert fresh_after > fresh_before - 0.05
    assert crossed == pytest.approx(fresh_before - fresh_after, abs=0.03)


def test_without_old_images_it_is_the_running_mean():
    world = World(5, 'linear')
    updates = world.updates(world.draw(KNOWN, 3), None)
    assert updates.choose() == Choice(STRENGTHS.index(1.0), 0)
    assert updates.left(updates.choose()) == 0.05
    assert all(np.isfinite(part).all() for part in updates.rows(updates.choose()))
