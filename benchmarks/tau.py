"""Time of the exact search for tau with 50,030 classes, and of the whole tau_norm.py, compared with evaluations.

python benchmarks/tau.py [--images N] [--photos N] [--rounds N] [--json FILE]

choose_ratio: time of choosing tau on 2,048 features (in the batches of tau_norm.py) / time of a plain evaluation of the
same features (logits with bias, counts of correct predictions). tau_exact_grid_speedup: compared with a grid of ten
values of tau, for each of which the weights are rescaled and all logits recomputed, but without the backbone.

tau_norm.py as a process (start-up, reading and writing a checkpoint of 50,030 classes, features of the photos, report)
with the default engine, which is chosen and converted in it, and with RUN.ENGINE torch, on a ResNet-50 at 112 px:
tau_norm_speedup: time with torch / time with the default engine.
script_ratio: time / time of ten evaluation passes of PyTorch over the same photos, which a grid of ten values takes.
script_same_engine_ratio: the same, of ten passes of the default engine, converted before. It needs one pass itself, so
both ratios are 0.1 plus everything else if the engine is PyTorch.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.harness import alternate, finish, parse_arguments
from benchmarks.saved_model import save_model
from benchmarks.training import write_photos
from lib.builders.data import open_valid_split
from lib.commands.cli import cli_main, read_command
from lib.commands.loaded_model import FEATURES, load_model
from lib.inference.run import logit_batch_size
from lib.metrics.accuracy import ClassCounts
from lib.metrics.predictions import batch_predictions
from lib.posthoc.tau_sweep import TauSweep

NUM_CLASSES, NUM_FEATURES, MAX_TAU, PHOTO, PASSES = 50_030, 2048, 2.0, 348, 1
BATCH_SIZE = logit_batch_size(NUM_CLASSES)
REPOSITORY = Path(__file__).resolve().parents[1]
GRID = np.linspace(0.1, 1.0, 10)


def long_tailed_classifier() -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias; the norms of the rows fall with the rank of the class, as after training."""
    weight = torch.nn.functional.normalize(torch.randn(NUM_CLASSES, NUM_FEATURES), dim=1)
    norms = torch.linspace(2.0, 0.7, NUM_CLASSES) * torch.empty(NUM_CLASSES).normal_(1.0, 0.05)
    return weight * norms[torch.randperm(NUM_CLASSES), None], torch.randn(NUM_CLASSES) * 0.1


def features_of(weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return features (num_images, NUM_FEATURES): the direction of their class plus noise."""
    directions = torch.nn.functional.normalize(weight[labels], dim=1)
    return 4 * directions + 0.6 * torch.randn(len(labels), NUM_FEATURES)


@torch.inference_mode()
def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        images=(2000, 'images to choose tau on'),
        photos=(2000, 'photos for tau_norm.py; 0: skip it'),
        rounds=(3, 'passes of each side'),
    )
    torch.manual_seed(0)
    results = choosing(arguments.images, arguments.rounds)
    if arguments.photos:
        results |= script(arguments.photos)
    finish(results, arguments.json)


def choosing(num_images: int, rounds: int) -> dict[str, float]:
    """Return rates, errors and ratios of evaluation, exact search and grid."""
    weight, bias = long_tailed_classifier()
    labels = torch.randint(NUM_CLASSES, (num_images,))
    features = features_of(weight, labels)
    batches = list(zip(features.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))
    train_counts = np.ones(NUM_CLASSES, np.int64)
    errors = {}

    def error_of(weight: torch.Tensor, bias: torch.Tensor | None) -> float:
        counts = ClassCounts(NUM_CLASSES, weight.device)
        for batch, batch_labels in batches:
            logits = torch.nn.functional.linear(batch, weight, bias)
            readable = torch.ones(len(batch), dtype=torch.bool)
            counts.add(batch_predictions(logits, batch_labels), batch_labels, readable)
        return counts.metrics(train_counts)['mean_class_error']

    def evaluation() -> int:
        errors['before'] = error_of(weight, bias)
        return len(labels)

    def exact() -> int:
        sweep = TauSweep(weight, bias, max_tau=MAX_TAU)
        for batch, batch_labels in batches:
            sweep.update(batch, batch_labels)
        chosen, _ = sweep.finish().choose('mean_class_error')
        errors['exact'] = chosen.value
        return len(labels)

    def grid() -> int:
        norms = weight.norm(dim=1, keepdim=True)
        errors['grid'] = min(error_of(weight / norms**tau, None) for tau in GRID)
        return len(labels)

    rates = alternate({'evaluation': evaluation, 'exact': exact, 'grid': grid}, rounds)
    results = {f'{name}_images_per_second': rate for name, rate in rates.items()}
    results |= {f'{name}_mean_class_error': value for name, value in errors.items()}
    results['choose_ratio'] = rates['evaluation'] / rates['exact']
    return {**results, 'tau_exact_grid_speedup': rates['exact'] / rates['grid']}


def script(num_photos: int) -> dict[str, float]:
    """Return the seconds of tau_norm.py and of evaluation passes, and their ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = write_photos(folder / 'photos', 1, num_photos, PHOTO)
        paths = sorted(str(path) for path in (photos / 'train').rglob('*.jpg'))
        labels = np.random.default_rng(0).integers(NUM_CLASSES, size=len(paths)).tolist()
        entries = [{'category_id': label, 'fpath': path} for label, path in zip(labels, paths, strict=True)]
        (folder / 'valid.json').write_text(json.dumps({'annotations': entries, 'num_classes': NUM_CLASSES}))
        options = ['--MODEL_BACKBONE', 'resnet50', '--INPUT_SIZE', '112']
        options += ['--DATASET_VALID_JSON', str(folder / 'valid.json')]
        classifier = dict(zip(('classifier.weight', 'classifier.bias'), long_tailed_classifier(), strict=True))
        path = save_model(folder, options, NUM_CLASSES, classifier).path
        options = ['--RESUME_MODEL', str(path), '--LOG_ROOT', name, '--RUN_DEVICE', 'cpu']
        seconds = {engine: _script_seconds(options, folder, engine) for engine in ('torch', 'auto')}
        passes = _pass_seconds(options)
    return {
        'script_torch_seconds': seconds['torch'],
        'script_seconds': seconds['auto'],
        'evaluation_torch_seconds': passes['torch'],
        'evaluation_seconds': passes['auto'],
        'tau_norm_speedup': seconds['torch'] / seconds['auto'],
        'script_ratio': seconds['auto'] / (10 * passes['torch']),
        'script_same_engine_ratio': seconds['auto'] / (10 * passes['auto']),
    }


def _script_seconds(options: list[str], folder: Path, engine: str) -> float:
    """Return the seconds of tau_norm.py without features of an earlier run."""
    shutil.rmtree(folder / 'run' / FEATURES, ignore_errors=True)
    output = ['--RUN_ENGINE', engine, '--TAU_NORM_LOG_ROOT', str(folder / f'tau_{engine}')]
    started = time.perf_counter()
    subprocess.run([sys.executable, 'tau_norm.py', *options, *output], cwd=REPOSITORY, check=True)
    return time.perf_counter() - started


def _pass_seconds(options: list[str]) -> dict[str, float]:
    """Return the seconds of an evaluation pass of each engine, after one that chooses and converts it."""

    def side(engine: str) -> Callable[[], int]:
        trained = load_model(read_command([*options, '--RUN_ENGINE', engine]))
        split = open_valid_split(trained.cfg)

        def run() -> int:
            trained.evaluate(split, label=engine)
            return 1

        return run

    rates = alternate({engine: side(engine) for engine in ('torch', 'auto')}, PASSES)
    return {engine: 1 / rate for engine, rate in rates.items()}


if __name__ == '__main__':
    cli_main(main)
