"""Open-set rejection: how well scores separate unknown products, and whether a wanted false-acceptance rate holds.

python benchmarks/open_set.py --train FEATURES.npy ANNOTATIONS.json --valid FEATURES.npy ANNOTATIONS.json
    [--left_out 20] [--splits 20] [--dimensions 256] [--json FILE]

FEATURES.npy has one row per annotation, of a backbone that was not trained on these classes, as TRAIN.FEATURES cached
writes it (features.npy). In each split some classes, drawn at random, are unknown: neither the linear classifier nor
the prototypes are fitted to them, and their validation images are the unknown ones. To take seconds per split, the
features are the first principal components, fitted to the known classes. For each score, means over the
splits: AUROC, FPR95 and OSCR; and for the wanted rates of 1 and 5 %, the false-acceptance rate (mean over unknown
classes), its standard error, the guaranteed rate, and the fraction of the images of known classes that is accepted.

Thresholds are chosen on the validation images of known classes, each class left out in turn; for `given`, on the
training images of half of the unknown classes, and the rates are those of the other half.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.clean_quality import read_split
from benchmarks.harness import finish, new_parser
from lib.classifier.cosine import unit
from lib.commands.cli import cli_main
from lib.dataset.features import Features
from lib.metrics.open_set import open_set_metrics
from lib.posthoc.linear_head import LinearHead
from lib.posthoc.open_set import LogitScore, PrototypeScore, conformal_threshold, fit_prototypes

CPU = torch.device('cpu')
RATES = (0.01, 0.05)
PENALTY = 1e-3  # of the squared weights, in features of unit variance on average


def fit_head(values: torch.Tensor, labels: torch.Tensor, num_classes: int) -> LinearHead:
    """Return L2-regularized logistic regression (L-BFGS)."""
    center, scale = values.mean(dim=0), values.std(dim=0).square().mean().sqrt()
    weight = torch.zeros(num_classes, values.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, history_size=10, line_search_fn='strong_wolfe')
    scaled = (values - center) / scale

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(scaled @ weight.T + bias, labels) + PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight, bias = weight.detach() / scale, bias.detach()
    return LinearHead(weight, bias - weight @ center)


class Scores:
    """All scores of the benchmark, of models fitted to the training images of the known classes.

    Args:
        values: (n, num_features) float32.
        labels: (n,) int64 below num_classes.
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
        features = Features(values, labels, np.ones(len(labels), bool), [])
        self._labels = torch.from_numpy(labels)
        self.head = fit_head(torch.from_numpy(values), self._labels, num_classes)
        self.prototypes = fit_prototypes(features, num_classes, device=CPU, about={})
        folds = self.prototypes.folds
        self._galleries = [torch.from_numpy(one.whitening(values)) for one in (*folds, self.prototypes.prototypes)]

    @torch.inference_mode()
    def __call__(self, values: np.ndarray, left_out: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the scores (m,) of images, by name; `left_out`: (m,) classes."""
        features = torch.from_numpy(values)
        logits = self.head.logits(features)
        classes = torch.full((len(values),), -1) if left_out is None else torch.from_numpy(left_out)
        scores = {
            'max_logit': LogitScore('max_logit')(logits, features, classes),
            'energy': LogitScore('energy')(logits, features, classes),
            'prototype': self.prototypes(logits, features, classes),
            'neighbor': self._nearest(self.prototypes, features, classes),
        }
        return {name: score.numpy() for name, score in scores.items()}

    def predicted(self, values: np.ndarray) -> np.ndarray:
        """Return the classes that the linear classifier predicts, (m,)."""
        return self.head.logits(torch.from_numpy(values)).argmax(dim=1).numpy()

    def _nearest(self, score: PrototypeScore, features: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
        """Return the cosine similarity to the nearest training image of another class, whitened as for prototypes."""
        result = torch.empty(len(features))
        fits = [*score.folds, score.prototypes]
        fold = torch.where(left_out < 0, len(score.folds), left_out % len(score.folds))
        for number, (fit, gallery) in enumerate(zip(fits, self._galleries, strict=True)):
            rows = torch.nonzero(fold == number).squeeze(1)
            queries = unit(torch.from_numpy(fit.whitening(features[rows].numpy())))
            same = left_out[rows][:, None] == self._labels[None]
            result[rows] = (queries @ gallery.T).masked_fill(same, -torch.inf).amax(dim=1) if len(rows) else 0
        return result


def split_rows(args: argparse.Namespace, seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the name of each score and its numbers for one draw of unknown classes."""
    (values, labels), (valid_values, valid_labels) = args.train, args.valid
    num_classes = int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    unknown = rng.permutation(num_classes)[: args.left_out]
    given = unknown[: len(unknown) // 2]
    new_label = np.full(num_classes, -1)
    known = np.setdiff1d(np.arange(num_classes), unknown)
    new_label[known] = np.arange(len(known))
    of_train, of_valid = new_label[labels], new_label[valid_labels]
    values, valid_values = principal(values, of_train >= 0, valid_values, args.dimensions)
    scores = Scores(values[of_train >= 0], of_train[of_train >= 0], len(known))
    inside, outside = valid_values[of_valid >= 0], valid_values[of_valid < 0]
    classes, products = of_valid[of_valid >= 0], valid_labels[of_valid < 0]
    calibration = np.isin(labels, given)
    of_known, of_unknown, left_out = scores(inside), scores(outside), scores(inside, classes)
    of_given, correct = scores(values[calibration]), scores.predicted(inside) == classes
    for name in of_known:
        numbers = open_set_metrics(of_known[name], correct, of_unknown[name])
        for rate in RATES:
            percent = f'{100 * rate:g}%'
            threshold = conformal_threshold(left_out[name], classes, rate)
            numbers[f'rate {percent}'] = class_rate(threshold.accepts(of_unknown[name]), products)
            numbers[f'guaranteed {percent}'] = threshold.guaranteed
            numbers[f'known {percent}'] = threshold.accepts(of_known[name]).mean()
            threshold = conformal_threshold(of_given[name], labels[calibration], rate)
            others = ~np.isin(products, given)
            numbers[f'given {percent}'] = class_rate(threshold.accepts(of_unknown[name])[others], products[others])
            numbers[f'given guaranteed {percent}'] = threshold.guaranteed
        yield name, numbers


def principal(
    values: np.ndarray, fitted: np.ndarray, others: np.ndarray, dimensions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return principal components of training and validation features, fitted to some of the former."""
    torch.manual_seed(0)
    some = torch.from_numpy(values[fitted])
    axes = torch.pca_lowrank(some, min(dimensions, *some.shape), niter=2)[2].numpy()
    center = some.mean(dim=0).numpy()
    return (values - center) @ axes, (others - center) @ axes


def class_rate(accepted: np.ndarray, products: np.ndarray) -> float:
    """Return the mean over products of the fraction of accepted images."""
    return float(np.mean([accepted[products == product].mean() for product in np.unique(products)]))


def main() -> None:
    parser = new_parser(__doc__.partition('\n')[0])
    for name in ('train', 'valid'):
        parser.add_argument(f'--{name}', nargs=2, metavar=('FEATURES', 'ANNOTATIONS'), required=True)
    parser.add_argument('--left_out', type=int, default=20, metavar='N', help='unknown classes (default: 20)')
    parser.add_argument('--splits', type=int, default=20, metavar='N', help='draws of them (default: 20)')
    parser.add_argument('--dimensions', type=int, default=256, metavar='N', help='of the features (default: 256)')
    args = parser.parse_args()
    args.train, args.valid = read_split(*args.train), read_split(*args.valid)
    drawn: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.splits):
        for name, numbers in split_rows(args, seed):
            drawn.setdefault(name, []).append(numbers)
    figures = {}
    for name, rows in drawn.items():
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        for rate in RATES:
            key = f'rate {100 * rate:g}%'
            means[f'{key} error'] = float(np.std([row[key] for row in rows]) / np.sqrt(len(rows)))
        print(f'{name:10}', '  '.join(f'{key} {100 * value:.1f}' for key, value in means.items()))
        figures |= {f'{name}_{key}'.replace(' ', '_').replace('%', ''): value for key, value in means.items()}
    finish(figures, args.json)


if __name__ == '__main__':
    cli_main(main)
