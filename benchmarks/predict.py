"""Speed of prediction, from photos on the disk to the CSV, compared with the original entry.

REAL_PHOTOS=FOLDER python benchmarks/predict.py [--photos N] [--rounds N] [--json FILE]

The original: OpenCV, Pillow, torchvision and a default DataLoader of two workers, batches of 128, float32 in the
default memory format (benchmarks/original.py). Ours: test.py with its default batch size and workers, including the
reading of the checkpoint. Both sides have the same weights and photos; a few predictions differ, because resizing
differs. Results: resnet18_predict_speedup and resnest50_predict_speedup at 112 px, and the smaller of the two,
predict_speedup; resnet18_same and resnest50_same, the fraction of equal predictions.
"""

import csv
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.harness import alternate, finish, parse_arguments, real_photos, require
from benchmarks.original import original_model, original_predictions
from benchmarks.training import config_of
from lib.builders.model import new_model
from lib.commands.cli import cli_main, read_command
from lib.commands.loaded_model import load_model
from lib.commands.predict import predict
from lib.config.yaml_text import as_text
from lib.runtime.device import pick_device
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint

SIZE, NUM_CLASSES, WORKERS = 112, 81, 2


def sides(name: str, paths: list[Path], folder: Path) -> dict[str, Callable[[], int]]:
    """Return both sides for a backbone, with the same weights; they write ours/best_model.csv and theirs.csv."""
    options = ['--MODEL_BACKBONE', name, '--INPUT_SIZE', str(SIZE), '--DATASET_COLOR_SPACE', 'BGR']
    cfg = config_of([*options, '--LOG_ROOT', str(folder), '--NAME', 'ours', '--RUN_DEVICE', 'cpu'])
    model = new_model(cfg, NUM_CLASSES, pick_device('cpu'))
    checkpoint = Checkpoint(model.state_dict(), config=as_text(cfg), path=folder / 'ours' / 'best_model.pth')
    write_checkpoint(checkpoint.path, checkpoint)
    (folder / 'ours' / 'config.yaml').write_text(as_text(cfg), encoding='utf-8')
    photos = folder / 'list.csv'
    photos.write_text('\n'.join(map(str, paths)), encoding='utf-8')
    theirs = original_model(name, NUM_CLASSES)
    names = list(theirs.state_dict())
    theirs.load_state_dict(dict(zip(names, model.state_dict().values(), strict=True)))

    def ours() -> int:
        argv = ['--RESUME_MODEL', str(checkpoint.path), '--LOG_ROOT', str(folder), '--RUN_DEVICE', 'cpu']
        with photos.open(encoding='utf-8') as lines:
            sys.stdin, before = lines, sys.stdin
            try:
                predict(load_model(read_command([*argv, '--TEST_IMAGES', '-'])))
            finally:
                sys.stdin = before
        return len(paths)

    return {
        'ours': ours,
        'original': lambda: original_predictions(theirs, paths, SIZE, folder / 'theirs.csv', WORKERS),
    }


def same_predictions(folder: Path) -> float:
    """Return the fraction of photos with the same prediction on both sides."""
    predicted = []
    for path in (folder / 'ours' / 'best_model.csv', folder / 'theirs.csv'):
        with open(path, encoding='utf-8', newline='') as file:
            predicted.append([row[1] for row in csv.reader(file)][1:])
    return sum(one == other for one, other in zip(*predicted, strict=True)) / len(predicted[0])


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], rounds=(3, 'passes of each side'), photos=(512, 'photos'))
    require('cv2')
    root = real_photos()
    lines = (root / 'train.txt').read_text(encoding='utf-8').splitlines()
    paths = [root / line.split(',')[0].strip() for line in lines if line.strip()][: arguments.photos]
    results = {}
    torch.manual_seed(0)
    for name in ('resnet18', 'resnest50'):
        with tempfile.TemporaryDirectory() as folder:
            rates = alternate(sides(name, paths, Path(folder)), arguments.rounds)
            results |= {f'{name}_{side}_images_per_second': rate for side, rate in rates.items()}
            results[f'{name}_predict_speedup'] = rates['ours'] / rates['original']
            results[f'{name}_same'] = same_predictions(Path(folder))
    results['predict_speedup'] = min(results['resnet18_predict_speedup'], results['resnest50_predict_speedup'])
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
