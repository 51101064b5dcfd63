"""How well tools/clean.py finds wrong labels, and what correcting them is worth, on features of real photos.

python benchmarks/clean_quality.py --train FEATURES.npy ANNOTATIONS.json --valid FEATURES.npy ANNOTATIONS.json
    [--others FEATURES.npy] [--only noise|tail|others] [--rounds 2] [--seeds 3] [--first_seed 0] [--json FILE]

FEATURES.npy has one row per annotation, as TRAIN.FEATURES cached writes it (features.npy); classes.json beside the
annotations of train names the coarse classes. The labels are taken as right, and noise is drawn: symmetric (any other
class), within coarse classes, or in a few classes: half of the images of 12 classes have the label of one other class,
any one or of the same coarse class. For each, over all seeds: precision, recall and F1 of `mislabeled`; F1 of plain
confident learning with the same out-of-fold probabilities; and the accuracy on valid of an L2-regularized logistic
regression that is trained on the labels as drawn, without the images found, with the proposals as labels, and on the
right labels.

tail: 20 % symmetric noise in a long tail (imbalance 20): the fraction of right labels that are found, in classes of
fewer than 20 images, and of at least 40, and their ratio; and the same of right labels that are out of catalog.

others: images of another data set are added with random labels, 5 % of all: the fraction of them that is out of
catalog, and that of the rest.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness import finish, new_parser
from lib.commands.cli import cli_main
from lib.config.options import local_path
from lib.dataset.annotations import read_annotations, read_classes
from lib.posthoc.cleaning_rounds import judge_in_rounds
from lib.posthoc.judged_images import JudgedImages
from lib.posthoc.label_errors import KINDS, Findings
from lib.posthoc.out_of_fold import Candidates

NOISE = {
    'symmetric 0': 0.0, 'symmetric 10': 0.1, 'symmetric 20': 0.2, 'symmetric 40': 0.4, 'coarse 20': 0.2,
    'few classes': 0.5, 'few coarse classes': 0.5,
}  # fmt: skip
NUM_NOISY = 12  # classes of which half of the images have the label of one other class
MISLABELED, OUT_OF_CATALOG = KINDS.index('mislabeled'), KINDS.index('out_of_catalog')
FEW, MANY, IMBALANCE, OTHERS = 20, 40, 20, 0.05


def judged(
    values: np.ndarray, labels: np.ndarray, num_classes: int, seed: int, rounds: int
) -> tuple[Candidates, Findings]:
    """Return the candidates and findings of the last round, as tools/clean.py computes them."""
    images = JudgedImages(values, np.arange(len(labels)), labels, num_classes, np.ones(len(labels), np.float32))
    with tempfile.TemporaryDirectory() as folder:
        # Mapped files stay readable after the folder is deleted.
        return list(judge_in_rounds(images, Path(folder), head='linear', num_rounds=rounds, seed=seed))[-1]


def confident_learning(candidates: Candidates) -> np.ndarray:
    """Return which labels are wrong by plain confident learning (Northcutt et al., JAIR 2021, eq. 1), (n,) bool.

    A class is likely where its probability is at least the mean over the images with that label; a label is wrong where
    the most likely of these classes is another one.
    """
    labels = candidates.labels
    own = np.exp(candidates.own - candidates.log_sum)
    counts = np.bincount(labels, minlength=candidates.num_classes)
    thresholds = np.where(counts, np.bincount(labels, own, candidates.num_classes) / np.maximum(counts, 1), 2.0)
    probabilities = np.exp(candidates.logits - candidates.log_sum[:, None])
    above = np.where(probabilities >= thresholds[candidates.classes], probabilities, -1)
    best = np.take_along_axis(candidates.classes, above.argmax(axis=1)[:, None], 1)[:, 0]
    return (above.max(axis=1) > 0) & (best != labels)


def f1_of(found: np.ndarray, wrong: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall."""
    return 2 * (found & wrong).sum() / max(1, found.sum() + wrong.sum())


def with_noise(labels: np.ndarray, kind: str, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return labels with noise of a kind of NOISE; `groups`: the coarse class of each class."""
    noisy = labels.copy()
    if 'few' in kind:
        for label in rng.permutation(len(groups))[:NUM_NOISY].tolist():
            others = other_classes(label, groups, 'coarse' in kind)
            rows = rng.permutation(np.flatnonzero(labels == label))
            if len(others):
                noisy[rows[: round(NOISE[kind] * len(rows))]] = rng.choice(others)
        return noisy
    for row in rng.permutation(len(labels))[: round(NOISE[kind] * len(labels))].tolist():
        others = other_classes(labels[row], groups, 'coarse' in kind)
        if len(others):
            noisy[row] = rng.choice(others)
    return noisy


def other_classes(label: int, groups: np.ndarray, is_coarse: bool) -> np.ndarray:
    """Return the classes that a wrong label may be."""
    others = np.flatnonzero(groups == groups[label]) if is_coarse else np.arange(len(groups))
    return others[others != label]


def accuracy(
    train: tuple[np.ndarray, np.ndarray], valid: tuple[np.ndarray, np.ndarray], num_classes: int, rows: np.ndarray
) -> float:
    """Return the accuracy on valid, in percent, of logistic regression (L-BFGS, penalty 0.01 |W|^2) on some rows."""
    mean, deviation = train[0].mean(axis=0), train[0].std(axis=0) + 1e-6
    values, labels = torch.from_numpy((train[0][rows] - mean) / deviation), torch.from_numpy(train[1][rows])
    weight = torch.zeros(num_classes, values.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, history_size=10, line_search_fn='strong_wolfe')

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(values @ weight.T + bias, labels) + 0.01 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.inference_mode():
        predicted = (torch.from_numpy((valid[0] - mean) / deviation) @ weight.T + bias).argmax(dim=1).numpy()
    return 100 * float((predicted == valid[1]).mean())


def long_tail(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return rows whose class counts fall exponentially, the largest IMBALANCE times the smallest, at least 3."""
    counts = np.bincount(labels)
    kept = []
    for rank, label in enumerate(np.argsort(-counts).tolist()):
        number = max(3, int(counts.max() * IMBALANCE ** (-rank / max(1, len(counts) - 1))))
        kept.append(rng.permutation(np.flatnonzero(labels == label))[:number])
    return np.sort(np.concatenate(kept))


def noise_rows(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the kind of noise and its numbers in percent, means over the seeds."""
    (values, labels), valid = args.train, args.valid
    num_classes, every = len(args.groups), np.ones(len(labels), bool)
    oracle = accuracy(args.train, valid, num_classes, every)
    for kind in NOISE:
        sums: dict[str, list[float]] = {}
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            noisy = with_noise(labels, kind, args.groups, np.random.default_rng(seed))
            candidates, findings = judged(values, noisy, num_classes, seed, args.rounds)
            found, wrong = findings.kind == MISLABELED, noisy != labels
            proposed = np.where(found & (findings.proposal >= 0), findings.proposal, noisy).astype(np.int64)
            numbers = {
                'noise': wrong.mean(),
                'found': found.mean(),
                'precision': (found & wrong).sum() / max(1, found.sum()),
                'recall': (found & wrong).sum() / max(1, wrong.sum()),
                'f1': f1_of(found, wrong),
                'confident learning f1': f1_of(confident_learning(candidates), wrong),
                'right proposals': (proposed == labels)[found & wrong].mean() if (found & wrong).any() else np.nan,
                'as labeled': accuracy((values, noisy), valid, num_classes, every) / 100,
                'dropped': accuracy((values, noisy), valid, num_classes, ~found) / 100,
                'relabeled': accuracy((values, proposed), valid, num_classes, every) / 100,
                'oracle': oracle / 100,
            }
            for name, number in numbers.items():
                sums.setdefault(name, []).append(100 * float(number))
        yield kind, {name: float(np.mean(given)) for name, given in sums.items()}


def tail_row(args: argparse.Namespace) -> dict[str, float]:
    """Return the percentages of right and of wrong labels that are found, by class size as labeled, over all seeds.

    few_to_many: ratio of the first, with the ends of its 95 % interval, by a bootstrap of the draws. outside: right
    labels that are out of catalog.
    """
    found, total = np.zeros((2, args.seeds, 2, 3))  # draw; few, many; right, wrong, right that are out of catalog
    for number in range(args.seeds):
        rng = np.random.default_rng(args.first_seed + number)
        rows = long_tail(args.train[1], rng)
        labels = args.train[1][rows]
        noisy = with_noise(labels, 'symmetric 20', args.groups, rng)
        kind = judged(args.train[0][rows], noisy, len(args.groups), args.first_seed + number, args.rounds)[1].kind
        sizes = np.bincount(noisy, minlength=len(args.groups))[noisy]
        for index, group in enumerate((sizes < FEW, sizes >= MANY)):
            right, wrong = group & (noisy == labels), group & (noisy != labels)
            for column, (part, as_kind) in enumerate(
                ((right, MISLABELED), (wrong, MISLABELED), (right, OUT_OF_CATALOG))
            ):
                found[number, index, column] = (kind[part] == as_kind).sum()
                total[number, index, column] = part.sum()
    drawn = np.random.default_rng(0).integers(0, args.seeds, (10_000, args.seeds))
    few, many = (found[drawn, index, 0].sum(axis=1) / total[drawn, index, 0].sum(axis=1) for index in (0, 1))
    low, high = np.quantile(few / np.maximum(many, 1e-9), (0.025, 0.975))
    (few_found, few_recall, few_out), (many_found, many_recall, many_out) = 100 * found.sum(axis=0) / total.sum(axis=0)
    return {
        'few found': few_found,
        'many found': many_found,
        'few_to_many': few_found / max(many_found, 1e-9),
        'low': low,
        'high': high,
        'few recall': few_recall,
        'many recall': many_recall,
        'few outside': few_out,
        'many outside': many_out,
        'few_to_many outside': few_out / max(many_out, 1e-9),
    }


def others_row(args: argparse.Namespace) -> dict[str, float]:
    """Return the percentages that are out of catalog: of added images of another data set, and of the rest."""
    outside, inside = [], []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        rng = np.random.default_rng(seed)
        number = min(len(args.others), round(OTHERS / (1 - OTHERS) * len(args.train[1])))
        added = args.others[rng.permutation(len(args.others))[:number]]
        labels = np.concatenate([args.train[1], rng.integers(0, len(args.groups), number)])
        kind = judged(np.concatenate([args.train[0], added]), labels, len(args.groups), seed, args.rounds)[1].kind
        flagged = kind == OUT_OF_CATALOG
        outside.append(flagged[-number:].mean())
        inside.append(flagged[:-number].mean())
    return {'others found': 100 * float(np.mean(outside)), 'rest flagged': 100 * float(np.mean(inside))}


def read_split(features: str, annotations: str) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 features (n, width) and int64 labels (n,)."""
    values = np.load(local_path(features), allow_pickle=False).astype(np.float32)
    return values, read_annotations(local_path(annotations)).labels.astype(np.int64)


def main() -> None:
    parser = new_parser(__doc__.partition('\n')[0])
    for name in ('train', 'valid'):
        parser.add_argument(f'--{name}', nargs=2, metavar=('FEATURES', 'ANNOTATIONS'), required=True)
    parser.add_argument('--others', metavar='FEATURES', type=local_path)
    parser.add_argument('--rounds', type=int, default=1, metavar='N', help='CLEAN.ROUNDS (default: 1)')
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='draws (default: 3)')
    parser.add_argument('--first_seed', type=int, default=0, metavar='N')
    parser.add_argument('--only', choices=('noise', 'tail', 'others'), help='one of the parts (default: all)')
    args = parser.parse_args()
    annotations = Path(args.train[1])
    args.train, args.valid = read_split(*args.train), read_split(*args.valid)
    num_classes = int(args.train[1].max()) + 1
    classes = read_classes(annotations.with_name('classes.json'), num_classes, str(annotations))
    parents = classes.parents if classes is not None and classes.parents else [[str(c)] for c in range(num_classes)]
    args.groups = np.unique(['/'.join(path) for path in parents], return_inverse=True)[1]
    figures = {}
    rows: list[tuple[str, dict[str, float]]] = []
    if args.only in (None, 'noise'):
        rows += noise_rows(args)
    if args.only in (None, 'tail'):
        rows.append(('tail', tail_row(args)))
    if args.others is not None and args.only in (None, 'others'):
        args.others = np.load(args.others, allow_pickle=False).astype(np.float32)
        rows.append(('others', others_row(args)))
    for kind, numbers in rows:
        print(f'{kind:14}', '  '.join(f'{name} {number:.1f}' for name, number in numbers.items()))
        figures |= {f'{kind} {name}'.replace(' ', '_'): number for name, number in numbers.items()}
    finish(figures, args.json)


if __name__ == '__main__':
    cli_main(main)
