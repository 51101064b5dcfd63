"""Speed of prediction, from photos on the disk to the CSV, compared with the original entry.

REAL_PHOTOS=FOLDER python benchmarks/predict.py [--photos N] [--rounds N] [--json FILE]

The original: OpenCV, Pillow, torchvision and a default DataLoader of two workers, batches of 128, float32 in the
default memory format (benchmarks/original.py). Ours: test.py with its default batch size and workers, including the
reading of the checkpoint and of a cached graph, without the contact sheet, which the original does not have. Imports,
the conversion for an engine, the choice among engines, the calibration of int8 and the first measurement of its cost
are part of the warm-up. All sides have the same weights and photos; a few predictions differ from the original's,
because resizing differs.

At 112 px, for ResNet-18 and ResNeSt-50: NAME_predict_speedup (RUN.ENGINE auto, float32), NAME_bf16_predict_speedup,
NAME_int8_predict_speedup, NAME_engine_speedup (auto over RUN.ENGINE torch), NAME_same (fraction of predictions that
equal the original's). predict_speedup, bf16_predict_speedup, int8_predict_speedup and engine_speedup are the smaller
ones of both networks. lite0_predict_speedup: tf_efficientnet_lite0 at 224 px, on half of the photos.

The accuracy of a network that has learned something, tf_efficientnet_lite0 with ImageNet weights at 160 px and the
class means of the training photos as classifier, on the validation photos: bf16_error_points and int8_error_points, the
increase of the mean class error over float32 in percentage points, with the ends of the paired 95 % interval.
engine_different: the fraction of all photos for which RUN.ENGINE auto predicts another class than PyTorch by more than
a tie, a difference of 1e-4 of the logits.

tau_engine_speedup: tau_norm.py as a process, with this network at 224 px on the validation photos, whose features are
not cached: time with RUN.ENGINE torch / time with auto. As after training, the graph is cached.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# The original does not use huge pages as our scripts do; in this process, none of the sides does.
os.environ['THP_MEM_ALLOC_ENABLE'] = '0'

import numpy as np
import torch

from benchmarks.harness import alternate, finish, parse_arguments, real_photos, require
from benchmarks.original import original_model, original_predictions
from benchmarks.saved_model import prediction_of, save_model
from benchmarks.training import config_of
from lib.builders.data import open_training_data, open_valid_split
from lib.builders.split import DatasetSplit
from lib.commands.cli import cli_main, read_command
from lib.commands.command import Command
from lib.commands.loaded_model import LoadedModel, load_model, split_features
from lib.commands.train import prepare_training
from lib.inference.run import classify_features
from lib.metrics.precision_cost import ALL, precision_cost

NUM_CLASSES, WORKERS = 81, 2
REPOSITORY = Path(__file__).resolve().parents[1]
# Side -> the options of test.py.
OURS = {
    'torch': ('--RUN_ENGINE', 'torch'),
    'auto': ('--RUN_ENGINE', 'auto'),
    'bf16': ('--RUN_ENGINE_PRECISION', 'bf16'),
    'int8': ('--RUN_ENGINE_PRECISION', 'int8'),
}


@dataclass(frozen=True)
class Photos:
    """Photos of a split with their classes."""

    paths: Sequence[Path]
    labels: Sequence[int]

    @classmethod
    def read(cls, root: Path, split: str) -> 'Photos':
        """Read a list of the Grocery Store Dataset."""
        rows = [line.split(',') for line in (root / f'{split}.txt').read_text(encoding='utf-8').splitlines() if line]
        return cls([root / row[0].strip() for row in rows], [int(row[1]) for row in rows])

    def first(self, number: int) -> 'Photos':
        """Return the first photos."""
        return replace(self, paths=self.paths[:number], labels=self.labels[:number])

    def write(self, path: Path) -> str:
        """Write an annotation file and return its path."""
        entries = [
            {'category_id': label, 'fpath': str(photo)} for photo, label in zip(self.paths, self.labels, strict=True)
        ]
        path.write_text(json.dumps({'annotations': entries, 'num_classes': NUM_CLASSES}), encoding='utf-8')
        return str(path)


def sides(name: str, size: int, photos: Photos, folder: Path, ours: Sequence[str]) -> dict[str, Callable[[], int]]:
    """Return all sides for a backbone, with the same weights; they write SIDE.csv."""
    options = ['--MODEL_BACKBONE', name, '--INPUT_SIZE', str(size), '--DATASET_COLOR_SPACE', 'BGR']
    annotations = photos.write(folder / 'photos.json')
    options += ['--DATASET_TRAIN_JSON', annotations, '--DATASET_VALID_JSON', annotations]
    checkpoint = save_model(folder, options, NUM_CLASSES)
    theirs = original_model(name, NUM_CLASSES)
    names = list(theirs.state_dict())
    theirs.load_state_dict(dict(zip(names, checkpoint.state_dict.values(), strict=True)))

    def test(options: Sequence[str]) -> Callable[[], int]:
        assert checkpoint.path is not None
        # The original writes the CSV only.
        return prediction_of(checkpoint.path, photos.paths, *options, '--TEST_CONTACT_SHEET', 'False')

    def original() -> int:
        return original_predictions(theirs, list(photos.paths), size, folder / 'theirs.csv', WORKERS)

    return {'original': original, **{side: test(OURS[side]) for side in ours}}


def same_predictions(folder: Path) -> float:
    """Return the fraction of photos with the same prediction on both sides."""
    predicted = []
    (ours,) = (folder / 'run').glob('*predictions*.csv')
    for path in (ours, folder / 'theirs.csv'):
        with open(path, encoding='utf-8', newline='') as file:
            predicted.append([row[1] for row in csv.reader(file)][1:])
    return sum(one == other for one, other in zip(*predicted, strict=True)) / len(predicted[0])


def speed(photos: Photos, rounds: int) -> dict[str, float]:
    """Return the rates of all sides, and their ratios."""
    results: dict[str, float] = {}
    for name in ('resnet18', 'resnest50'):
        with tempfile.TemporaryDirectory() as folder:
            rates = alternate(sides(name, 112, photos, Path(folder), list(OURS)), rounds)
            results[f'{name}_same'] = same_predictions(Path(folder))
        results |= {f'{name}_{side}_images_per_second': rate for side, rate in rates.items()}
        results[f'{name}_predict_speedup'] = rates['auto'] / rates['original']
        results |= {f'{name}_{side}_predict_speedup': rates[side] / rates['original'] for side in ('bf16', 'int8')}
        results[f'{name}_engine_speedup'] = rates['auto'] / rates['torch']
    for figure in ('predict_speedup', 'bf16_predict_speedup', 'int8_predict_speedup', 'engine_speedup'):
        results[figure] = min(results[f'{name}_{figure}'] for name in ('resnet18', 'resnest50'))
    half = photos.first(-(-len(photos.paths) // 2))
    with tempfile.TemporaryDirectory() as folder:
        rates = alternate(sides('tf_efficientnet_lite0', 224, half, Path(folder), ['auto']), rounds)
    results |= {f'lite0_{side}_images_per_second': rate for side, rate in rates.items()}
    results['lite0_predict_speedup'] = rates['auto'] / rates['original']
    return results


def trained_network(train: Photos, valid: Photos, rounds: int) -> dict[str, float]:
    """Return the loss of accuracy by lower precisions, the photos that engines predict otherwise, and tau_norm.py."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ['--MODEL_BACKBONE', 'tf_efficientnet_lite0', '--MODEL_PRETRAINED', 'bundled', '--INPUT_SIZE', '160']
        options += ['--MODEL_CLASSIFIER_INIT', 'class_means', '--TRAIN_MAX_EPOCH', '0', '--RUN_DEVICE', 'cpu']
        options += ['--DATASET_TRAIN_JSON', train.write(folder / 'train.json'), '--NAME', 'run', '--LOG_ROOT', name]
        options += ['--DATASET_VALID_JSON', valid.write(folder / 'valid.json'), '--RUN_ENGINE', 'openvino']
        with prepare_training(Command(config_of(options), None)) as run:
            run.trainer.fit()
        argv = ['--RESUME_MODEL', str(folder / 'run' / 'best_model.pth'), '--LOG_ROOT', name, '--RUN_DEVICE', 'cpu']
        trained = {name: load_model(read_command([*argv, '--RUN_ENGINE', name])) for name in ('torch', 'openvino')}
        cfg = trained['torch'].cfg
        splits = {'train': open_training_data(cfg).train, 'valid': open_valid_split(cfg)}
        results, num_different = {}, 0
        for label, split in splits.items():
            logits = {engine: logits_of(model, split, f'{engine}-{label}') for engine, model in trained.items()}
            predicted = logits['openvino'].argmax(dim=1, keepdim=True)
            behind = logits['torch'].amax(dim=1) - logits['torch'].gather(1, predicted)[:, 0]
            num_different += int((behind > 1e-4).sum())
        results['engine_different'] = num_different / sum(map(len, splits.values()))
        model = trained['openvino']
        predictions = {
            precision: classify_features(
                model.engine, split_features(model, splits['valid'], 'valid', precision=precision)
            )
            for precision in ('float32', 'bf16', 'int8')
        }
        for precision in ('bf16', 'int8'):
            cost = precision_cost(predictions['float32'], predictions[precision], np.zeros(NUM_CLASSES, np.int64))
            low, high = cost.groups[ALL].interval
            results[f'{precision}_error_points'] = 100 * cost.loss
            results |= {f'{precision}_error_points_low': 100 * low, f'{precision}_error_points_high': 100 * high}
        return {**results, 'tau_engine_speedup': tau_speedup([*argv, '--INPUT_TEST_SIZE', '224'], folder, rounds)}


def tau_speedup(argv: Sequence[str], folder: Path, rounds: int) -> float:
    """Return the time of tau_norm.py with PyTorch over its time with RUN.ENGINE auto; `argv`: the model."""

    def side(engine: str) -> Callable[[], int]:
        def run() -> int:
            shutil.rmtree(folder / 'run' / 'features')
            shutil.rmtree(folder / 'tau', ignore_errors=True)
            options = ['--TAU_NORM_LOG_ROOT', str(folder / 'tau'), '--RUN_ENGINE', engine]
            subprocess.run([sys.executable, 'tau_norm.py', *argv, *options], cwd=REPOSITORY, check=True)
            return 1

        return run

    rates = alternate({engine: side(engine) for engine in ('torch', 'auto')}, rounds)
    return rates['auto'] / rates['torch']


@torch.inference_mode()
def logits_of(trained: LoadedModel, split: DatasetSplit, label: str) -> torch.Tensor:
    """Return the logits of all images (num_images, num_classes)."""
    return trained.engine.logits(torch.from_numpy(np.array(split_features(trained, split, label).values)))


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        rounds=(2, 'passes of each side'),
        photos=(512, 'photos'),
        trained=(1, '0: skip the trained network'),
    )
    require('cv2')
    root = real_photos()
    train, valid = (Photos.read(root, split) for split in ('train', 'val'))
    torch.manual_seed(0)
    results = speed(train.first(arguments.photos), arguments.rounds)
    if arguments.trained:
        results |= trained_network(train, valid, arguments.rounds)
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
