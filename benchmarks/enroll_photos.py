"""Enrolling and clustering classes of real photos that neither features nor classifier have been trained on.

python benchmarks/enroll_photos.py --train FEATURES.npy ANNOTATIONS.json --valid FEATURES.npy ANNOTATIONS.json
    [--new 20] [--shots 5] [--draws 4] [--json FILE]

FEATURES.npy has one row per annotation, of pretrained weights, as TRAIN.FEATURES cached writes it. In each draw, some
classes are new; a linear classifier is trained on the others, eight images of each of which are for evaluation, and the
validation images for all choices. Mean class accuracies, means over draws:

- new, old_before, old_after: of rows that are imprinted from a few training images per new class (new: on the others).
- index_new, index_old_before, index_old_after: of the product of the nearest photo among the training images, to which
  the same images are added.
- known_before, known_after: ten of the old classes have three training images and get as many further images as a new
  class; measured on the rest. known_all_before, known_all_after: of all old classes, on the images for evaluation.
- purity_N, chance_N, coverage_N, clusters_N: N images of each new class, clustered without labels; purity of the
  clusters, that of shuffled ones, the fraction of images in clusters, and their number.
"""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness import finish, new_parser
from lib.classifier.linear import LinearClassifier
from lib.commands.cli import cli_main
from lib.dataset.annotations import read_annotations
from lib.inference.engine import EagerEngine
from lib.inference.neighbors import nearest
from lib.metrics.accuracy import mean_class_accuracy
from lib.model import Recognizer
from lib.posthoc.candidate_scores import ScoredFeatures, score_features
from lib.posthoc.clusters import cluster_unknown, purity
from lib.posthoc.imprint import imprint
from lib.posthoc.row_updates import KnownRows, RowUpdates

NUM_TEST, NUM_RARE, RARE_IMAGES, MAX_LOSS = 8, 10, 3, 0.02
STEPS, RATE, DECAY, SHUFFLES = 150, 0.01, 0.01, 20
CLUSTERED = (6, 20)  # images per new class

Labeled = tuple[np.ndarray, np.ndarray]  # features (n, d), labels (n,)


class Draw:
    """A random choice of new classes. Labels count from 0 among the old classes, and from 0 among the new ones."""

    def __init__(self, train: Labeled, valid: Labeled, num_new: int, num_shots: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        values, labels = train
        num_classes = int(labels.max()) + 1
        is_new = np.zeros(num_classes, bool)
        is_new[self.random.permutation(num_classes)[:num_new]] = True
        number = np.where(is_new, np.cumsum(is_new), np.cumsum(~is_new)) - 1
        self.num_old, self.num_shots = num_classes - num_new, num_shots
        labels, of_new = number[labels], is_new[labels]
        self.new = values[of_new], labels[of_new]
        old_valid = ~is_new[valid[1]]
        self.valid = valid[0][old_valid], number[valid[1][old_valid]]
        old = values[~of_new], labels[~of_new]
        is_test = self.some_of(old[1], NUM_TEST)
        self.test, rest = part_of(old, is_test), part_of(old, ~is_test)
        self.rare = np.sort(self.random.permutation(self.num_old)[:NUM_RARE])
        is_trained = ~np.isin(rest[1], self.rare) | self.some_of(rest[1], RARE_IMAGES)
        self.train, self.further = part_of(rest, is_trained), part_of(rest, ~is_trained)

    def some_of(self, labels: np.ndarray, number: int) -> np.ndarray:
        """Return which of the images are among `number` random ones of their class, (n,) bool."""
        order = self.random.permutation(len(labels))
        order = order[np.argsort(labels[order], kind='stable')]
        _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
        chosen = np.zeros(len(labels), bool)
        chosen[order] = np.arange(len(order)) - np.repeat(first, counts) < number
        return chosen


def part_of(images: Labeled, rows: np.ndarray) -> Labeled:
    return images[0][rows], images[1][rows]


def trained(images: Labeled, num_classes: int) -> LinearClassifier:
    """Train a linear classifier on all images at a time."""
    torch.manual_seed(0)
    values, labels = map(torch.from_numpy, images)
    classifier = LinearClassifier(values.shape[1], num_classes)
    optimizer = torch.optim.AdamW(classifier.parameters(), RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(classifier(values), labels).backward()
        optimizer.step()
    return classifier.eval()


def accuracy(images: ScoredFeatures, correct: np.ndarray) -> float:
    return mean_class_accuracy(images.labels, correct)


def in_catalog(images: Labeled, gallery: Labeled) -> float:
    """Return the accuracy of the class of the nearest photo."""
    return mean_class_accuracy(images[1], gallery[1][nearest(images[0], gallery[0], 1).rows[:, 0]] == images[1])


def new_classes(draw: Draw, engine: EagerEngine, norm: float) -> dict[str, float]:
    is_shot = draw.some_of(draw.new[1], draw.num_shots)
    shots, held = part_of(draw.new, is_shot), part_of(draw.new, ~is_shot)
    of_shots, of_held = (score_features(engine, *images, are_new=True) for images in (shots, held))
    test = score_features(engine, *draw.test)
    chosen = imprint(of_shots, score_features(engine, *draw.valid), norm=norm, max_loss=MAX_LOSS)
    behind = np.concatenate([draw.train[0], shots[0]]), np.concatenate([draw.train[1], draw.num_old + shots[1]])
    return {
        'new': accuracy(of_held, chosen.wins(of_held, None) == of_held.labels),
        'old_before': accuracy(test, test.correct),
        'old_after': accuracy(test, test.correct & (chosen.wins(test, None) < 0)),
        'index_new': in_catalog((held[0], draw.num_old + held[1]), behind),
        'index_old_before': in_catalog(draw.test, draw.train),
        'index_old_after': in_catalog(draw.test, behind),
    }


def known_classes(draw: Draw, engine: EagerEngine, classifier: LinearClassifier) -> dict[str, float]:
    is_shot = draw.some_of(draw.further[1], draw.num_shots)
    shots, held = part_of(draw.further, is_shot), part_of(draw.further, ~is_shot)
    weight, bias = (rows.detach().double().numpy()[draw.rare] for rows in (classifier.weight, classifier.bias))
    counts = np.bincount(draw.train[1], minlength=draw.num_old)[draw.rare]

    def scored(images: Labeled) -> ScoredFeatures:
        return score_features(engine, *images, without=draw.rare)

    updates = RowUpdates(
        KnownRows(draw.rare, weight[:, None], bias, counts),
        scored((shots[0], np.searchsorted(draw.rare, shots[1]))), scored(draw.valid),
        cosine_scale=None, max_loss=MAX_LOSS,
    )  # fmt: skip
    results = {}
    for name, images in (('known', held), ('known_all', draw.test)):
        before, after = score_features(engine, *images), updates.applied(scored(images), updates.choose())
        results |= {f'{name}_before': accuracy(before, before.correct), f'{name}_after': accuracy(after, after.correct)}
    return results


def clusters(draw: Draw) -> dict[str, float]:
    results: dict[str, float] = {}
    for number in CLUSTERED:
        values, labels = part_of(draw.new, draw.some_of(draw.new[1], number))
        found = cluster_unknown(values, *draw.valid)
        chance = [purity(draw.random.permutation(found.numbers), labels) for _ in range(SHUFFLES)]
        results |= {
            f'purity_{number}': purity(found.numbers, labels),
            f'chance_{number}': statistics.mean(chance),
            f'coverage_{number}': float((found.numbers >= 0).mean()),
            f'clusters_{number}': len(found.sizes),
        }
    return results


def opened(files: list[str]) -> Labeled:
    features, annotations = files
    return np.load(features).astype(np.float32), read_annotations(annotations).labels.astype(np.int64)


def main() -> None:
    parser = new_parser(__doc__.splitlines()[0])
    for split in ('train', 'valid'):
        parser.add_argument(f'--{split}', nargs=2, required=True, metavar=('FEATURES', 'ANNOTATIONS'))
    for name, default in (('new', 20), ('shots', 5), ('draws', 4)):
        parser.add_argument(f'--{name}', type=int, default=default, metavar='N', help=f'(default: {default})')
    arguments = parser.parse_args()
    train, valid = opened(arguments.train), opened(arguments.valid)
    draws = []
    for seed in range(arguments.draws):
        draw = Draw(train, valid, arguments.new, arguments.shots, seed)
        classifier = trained(draw.train, draw.num_old)
        engine = EagerEngine(Recognizer(torch.nn.Identity(), classifier).eval())
        norm = float(classifier.weight.detach().norm(dim=1).median())
        draws.append(new_classes(draw, engine, norm) | known_classes(draw, engine, classifier) | clusters(draw))
    finish({name: statistics.mean(draw[name] for draw in draws) for name in draws[0]}, arguments.json)


if __name__ == '__main__':
    cli_main(main)
