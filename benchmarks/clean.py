"""Label errors found by label cleaning, compared with cleanlab: F1, peak memory and time; and 3 million images.

python benchmarks/clean.py [--only f1|scale|large] [--features FILE.npy --annotations FILE.json] [--json FILE]

f1: both sides get the same out-of-fold probabilities, of our linear head in five folds, at 20 % symmetric noise; three
draws. The features are drawn in 200 long-tailed classes of similar families, or given with --features (one row per
annotation). f1_ratio: F1 of ours / F1 of find_label_issues with the best of its options `filter_by`, chosen by the true
labels; f1_default_ratio: with its default; f1_batched_ratio: / F1 of the out-of-core find_label_issues_batched.

scale: 200,000 images, 5,000 classes, float32 probabilities in a memory-mapped file, which each side reads in a new
process. Ours includes the selection of the ten best classes. memory_ratio and time_ratio: / cleanlab's default;
batched_...: / find_label_issues_batched. Memory is the peak of the anonymous memory of the process and its workers
(RssAnon or Pss_Anon, sampled; shared pages count once), minus that before the call: no page cache, so not the file.
Time: the wall time of the call, without imports; the file is in the page cache if it fits.

large: 3 million images, 50,030 long-tailed classes, 64 features. large_minutes: the head that tools/clean.py
takes, the ten best classes of each image, images out of the catalog, label errors. large_gb: the same memory, before
the call included. The files, about 1.3 GB, are in a temporary folder.
"""

import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.child import measure
from benchmarks.harness import finish, new_parser, require
from lib.commands.cli import cli_main
from lib.config.options import local_path
from lib.errors import UserError
from lib.posthoc.crossfit import stratified_folds
from lib.posthoc.discriminant import FoldedDiscriminants
from lib.posthoc.judged_images import JudgedImages
from lib.posthoc.label_errors import KINDS, find_label_errors
from lib.posthoc.out_of_catalog import find_strangers
from lib.posthoc.out_of_fold import Candidates, choose_head, out_of_fold_candidates
from lib.runtime.json_file import read_json

NUM_CANDIDATES, NUM_FOLDS, SEEDS, NOISE = 10, 5, (0, 1, 2), 0.2
CPU = torch.device('cpu')
PARTS = ('f1', 'scale', 'large')
FILTERS = (
    'prune_by_noise_rate', 'prune_by_class', 'both', 'confident_learning', 'predicted_neq_given',
    'low_normalized_margin', 'low_self_confidence',
)  # fmt: skip
_ROWS = 2000  # at a time


def with_noise(labels: np.ndarray, num_classes: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Return labels of which a fraction are replaced by one of the other classes."""
    noisy = labels.copy()
    wrong = rng.permutation(len(labels))[: round(noise * len(labels))]
    noisy[wrong] = (labels[wrong] + rng.integers(1, num_classes, len(wrong))) % num_classes
    return noisy


def candidates_of(probabilities: np.ndarray, labels: np.ndarray) -> Candidates:
    """Return the ten best classes of each row of probabilities (n, num_classes), which may be memory-mapped."""
    num_images, num_classes = probabilities.shape
    k = min(NUM_CANDIDATES, num_classes)
    classes, logits = np.empty((num_images, k), np.int32), np.empty((num_images, k), np.float32)
    own, log_sum, log_sum_2 = (np.empty(num_images, np.float32) for _ in range(3))
    for start in range(0, num_images, _ROWS):
        part = slice(start, min(start + _ROWS, num_images))
        block = torch.from_numpy(np.array(probabilities[part]))
        best = block.topk(k, dim=1)
        classes[part], logits[part] = best.indices, best.values.log()
        own[part] = block[torch.arange(len(block)), torch.from_numpy(labels[part])].log()
        log_sum[part] = block.sum(dim=1).log()
        log_sum_2[part] = 2 * block.norm(dim=1).log()
    similarities = np.broadcast_to(np.float32(np.nan), (num_images, k))  # without features there are none
    none = np.zeros((num_images, 0), np.int32), np.zeros((num_images, 0), np.float32)  # neighbors
    return Candidates(
        classes, logits, own, log_sum, log_sum_2, labels, num_classes, similarities[:, 0], similarities, *none
    )


def find_with_ours(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which labels are wrong, (n,) bool."""
    return find_label_errors(candidates_of(probabilities, labels)).kind == KINDS.index('mislabeled')


def find_with_cleanlab(filter_by: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the same function by cleanlab. `filter_by`: one of FILTERS, or 'batched'."""
    from cleanlab.experimental.label_issues_batched import find_label_issues_batched
    from cleanlab.filter import find_label_issues

    def find(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter('ignore')  # a line for each class with few images
            if filter_by == 'batched':
                return find_label_issues_batched(labels, probabilities, return_mask=True, n_jobs=None, verbose=False)
            return find_label_issues(labels, probabilities, filter_by=filter_by)

    return find


# F1


def drawn_images(
    num_images: int, num_classes: int, width: int, spread: float, rng: np.random.Generator, path: Path
) -> np.ndarray:
    """Write features (n, width) of long-tailed classes, of which four at a time are similar; return the labels.

    Args:
        spread: of the images of a class; centers of families have spread 1, classes in their family 0.7.
    """
    counts = np.geomspace(200, 5, num_classes)
    labels = rng.choice(num_classes, num_images, p=counts / counts.sum())
    centers = rng.standard_normal((num_classes // 4 + 1, width))[np.arange(num_classes) // 4]
    centers = (centers + 0.7 * rng.standard_normal((num_classes, width))).astype(np.float32)
    values = np.lib.format.open_memmap(path, 'w+', np.float32, (num_images, width))
    for start in range(0, num_images, _ROWS):
        part = slice(start, min(start + _ROWS, num_images))
        noise = rng.standard_normal((part.stop - start, width), dtype=np.float32)
        values[part] = centers[labels[part]] + spread * noise
    return labels


def out_of_fold_probabilities(values: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (n, num_classes) float32 by the linear head of tools/clean.py, in five folds."""
    images = JudgedImages(values, np.arange(len(labels)), labels, num_classes, np.ones(len(labels), np.float32))
    folds = stratified_folds(labels, NUM_FOLDS, seed=0)
    probabilities = np.empty((len(labels), num_classes), np.float32)
    for fold, head in enumerate(FoldedDiscriminants(images, folds, CPU).heads()):
        held_out = np.flatnonzero(folds == fold)
        probabilities[held_out] = head.logits(images.at(held_out, CPU)[0]).softmax(dim=1)
    return probabilities


def f1_of(found: np.ndarray, wrong: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall."""
    return 2 * (found & wrong).sum() / max(1, found.sum() + wrong.sum())


def f1_scores(features: Path | None, annotations: Path | None) -> dict[str, float]:
    """Return the mean F1 over the draws: of ours, and of every option of cleanlab."""
    sides = {name: find_with_cleanlab(name) for name in (*FILTERS, 'batched')}
    sides = {'ours': find_with_ours, **sides}
    scores: dict[str, list[float]] = {name: [] for name in sides}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        if features and annotations:
            values = np.load(features, mmap_mode='r')
            labels = np.array([entry['category_id'] for entry in read_json(annotations)['annotations']])
            if len(labels) != len(values):
                raise UserError(f'{features}: {len(values)} rows, but {annotations} has {len(labels)} annotations')
        else:
            with tempfile.TemporaryDirectory() as folder:
                labels = drawn_images(8000, 200, 64, 1.7, rng, Path(folder) / 'features.npy')
                values = np.load(Path(folder) / 'features.npy')
        num_classes = int(labels.max()) + 1
        noisy = with_noise(labels, num_classes, NOISE, rng)
        probabilities = out_of_fold_probabilities(values, noisy, num_classes)
        for name, find in sides.items():
            scores[name].append(f1_of(find(probabilities, noisy), noisy != labels))
    results = {f'{name}_f1': float(np.mean(values)) for name, values in scores.items()}
    best = max(results[f'{name}_f1'] for name in FILTERS)
    compared = {
        'f1_ratio': best,
        'f1_default_ratio': results[f'{FILTERS[0]}_f1'],
        'f1_batched_ratio': results['batched_f1'],
    }
    return {**results, **{name: results['ours_f1'] / value for name, value in compared.items()}}


# Memory and time


def write_probabilities(folder: Path, num_images: int, num_classes: int) -> None:
    """Write probabilities.npy, noisy labels.npy and their truth.npy."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, num_images)
    np.save(folder / 'truth.npy', labels)
    np.save(folder / 'labels.npy', with_noise(labels, num_classes, NOISE, rng))
    path = folder / 'probabilities.npy'
    probabilities = np.lib.format.open_memmap(path, 'w+', np.float32, (num_images, num_classes))
    for start in range(0, num_images, _ROWS):
        logits = rng.standard_normal((min(_ROWS, num_images - start), num_classes), dtype=np.float32)
        logits[np.arange(len(logits)), labels[start : start + _ROWS]] += rng.normal(9, 3, len(logits))
        probabilities[start : start + _ROWS] = torch.from_numpy(logits).softmax(dim=1)


def write_catalog(folder: Path, num_images: int, num_classes: int) -> None:
    """Write features.npy, noisy labels.npy and their truth.npy."""
    rng = np.random.default_rng(0)
    labels = drawn_images(num_images, num_classes, 64, 1.0, rng, folder / 'features.npy')
    np.save(folder / 'truth.npy', labels)
    np.save(folder / 'labels.npy', with_noise(labels, num_classes, 0.05, rng))


def side_of_scale(folder: Path, side: str) -> Callable[[], dict[str, float]]:
    """Return a function that finds wrong labels, and returns F1."""
    probabilities = np.load(folder / 'probabilities.npy', mmap_mode='r')
    labels, truth = np.load(folder / 'labels.npy'), np.load(folder / 'truth.npy')
    find = find_with_ours if side == 'ours' else find_with_cleanlab(side)
    return lambda: {'f1': f1_of(find(probabilities, labels), labels != truth)}


def side_of_large(folder: Path, num_classes: str) -> Callable[[], dict[str, float]]:
    """Return a function that finds wrong labels from features, and returns its times and F1."""
    values, labels = np.load(folder / 'features.npy', mmap_mode='r'), np.load(folder / 'labels.npy')
    weights = np.ones(len(labels), np.float32)
    images = JudgedImages(values, np.arange(len(labels)), labels, int(num_classes), weights)
    head = choose_head(images.num_classes, images.num_features, NUM_FOLDS)

    def run() -> dict[str, float]:
        started = time.perf_counter()
        candidates = out_of_fold_candidates(images, folder, head=head, num_candidates=NUM_CANDIDATES)
        scored = time.perf_counter()
        strangers = find_strangers(images, candidates)
        found = find_label_errors(candidates, out_of_catalog=strangers).kind == KINDS.index('mislabeled')
        ended = time.perf_counter()
        f1 = f1_of(found, np.load(folder / 'truth.npy') != labels)
        return {'score_minutes': (scored - started) / 60, 'decide_minutes': (ended - scored) / 60, 'f1': f1}

    return run


def scale(num_images: int, num_classes: int) -> dict[str, float]:
    """Return seconds and memory of the three sides, and the ratios."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        write_probabilities(Path(name), num_images, num_classes)
        for side, prefix in (('ours', 'ours'), ('batched', 'batched'), (FILTERS[0], 'cleanlab')):
            values = measure(side_of_scale, Path(name), side)
            results[f'{prefix}_seconds'] = values['seconds']
            results[f'{prefix}_gb'] = values['peak_gb'] - values['before_gb']
            results[f'{prefix}_scale_f1'] = values['f1']
    for prefix, name in (('', 'cleanlab'), ('batched_', 'batched')):
        results[f'{prefix}memory_ratio'] = results['ours_gb'] / results[f'{name}_gb']
        results[f'{prefix}time_ratio'] = results['ours_seconds'] / results[f'{name}_seconds']
    return results


def large(num_images: int, num_classes: int) -> dict[str, float]:
    """Return minutes and memory of the largest catalog."""
    with tempfile.TemporaryDirectory() as name:
        write_catalog(Path(name), num_images, num_classes)
        values = measure(side_of_large, Path(name), str(num_classes))
    stages = {f'large_{name}': values[name] for name in ('score_minutes', 'decide_minutes', 'f1')}
    return {**stages, 'large_minutes': values['seconds'] / 60, 'large_gb': values['peak_gb']}


def main() -> None:
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument('--only', choices=PARTS, help='one of the three parts (default: all)')
    parser.add_argument('--features', metavar='FILE', type=local_path, help='features.npy, one row per annotation')
    parser.add_argument('--annotations', metavar='FILE', type=local_path, help='JSON with the labels of these features')
    sizes = {'images': (200_000, 'scale'), 'classes': (5000, 'scale')}
    sizes |= {'large_images': (3_000_000, 'large'), 'large_classes': (50_030, 'large')}
    for name, (default, part) in sizes.items():
        meaning = f'number of {name.removeprefix("large_")} of part {part} (default: {default})'
        parser.add_argument(f'--{name}', type=int, default=default, metavar='N', help=meaning)
    arguments = parser.parse_args()
    parts = (arguments.only,) if arguments.only else PARTS
    if (arguments.features is None) != (arguments.annotations is None):
        raise UserError('--features and --annotations belong together: give both, or none')
    if parts != ('large',):
        require('cleanlab')
    results: dict[str, float] = {}
    if 'f1' in parts:
        results |= f1_scores(arguments.features, arguments.annotations)
    if 'scale' in parts:
        results |= scale(arguments.images, arguments.classes)
    if 'large' in parts:
        results |= large(arguments.large_images, arguments.large_classes)
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
