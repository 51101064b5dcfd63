"""Time of an epoch of a classifier on cached features compared with one on images, and accuracy of a linear probe.

REAL_PHOTOS=FOLDER python benchmarks/cached_features.py [--size N] [--rounds N] [--json FILE]

ImageNet weights from pip (EfficientNet-Lite0, 224 px), frozen; Grocery Store Dataset; linear classifier, SGD, batch 32.
One side decodes the photos and runs the backbone in every epoch, the other one reads the stored features.
Results: head_speedup, time of an epoch on images / time of an epoch on features; extract_images_per_second, of the pass
that computes the features; probe_valid_top1 and probe_seconds, accuracy of configs/method/linear_probe.yaml on the
validation photos and its time with that pass.
"""

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import alternate, finish, parse_arguments, real_photos
from benchmarks.training import epoch_of, training
from lib.builders.features import cached_features
from lib.commands.cli import cli_main
from lib.commands.train import TrainingRun
from lib.config.yaml_text import as_node, as_values
from lib.formats.converted import ConvertedDataset
from lib.formats.text_lists import convert_grocery_store

HEAD = ('--config', 'configs/GroceryStore_pretrained.yaml', '--MODEL_TUNE', 'head', '--MODEL_FREEZE_STAGES', '0')
PROBE = ('--config', 'configs/GroceryStore_pretrained.yaml', 'configs/method/linear_probe.yaml')
PROBE += ('--MODEL_FREEZE_STAGES', '0')


def sized(options: tuple[str, ...], size: int) -> list[str]:
    """Return options with an image size."""
    return [*options, '--INPUT_SIZE', str(size), '--INPUT_TEST_SIZE', '0', '--RUN_DEVICE', 'cpu']


def extraction(run: TrainingRun, folder: Path) -> float:
    """Store the features of all images of a run in `folder`; return images per second."""
    cfg = as_node({**as_values(run.cfg), 'TRAIN.FEATURES': 'cached', 'TRAIN.FEATURE_CACHE': str(folder)})
    started = time.perf_counter()
    features = cached_features(cfg, run.data, run.trainer.state.model, run.device, run.trainer.group)
    num_images = len(features.train[0]) + (len(features.valid) if features.valid else 0)
    return num_images / (time.perf_counter() - started)


def head_speeds(photos: ConvertedDataset, size: int, rounds: int) -> dict[str, float]:
    """Return images per second of both sides, and of the pass that computes the features."""
    options = sized(HEAD, size)
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        on_images = stack.enter_context(training(photos, options))
        speed = extraction(on_images, cache / 'measured')
        cached = ('--TRAIN_FEATURES', 'cached', '--TRAIN_FEATURE_CACHE', str(cache))
        on_features = stack.enter_context(training(photos, [*options, *cached]))
        rates = alternate({'features': epoch_of(on_features), 'images': epoch_of(on_images)}, rounds)
    return {**{f'{name}_images_per_second': rate for name, rate in rates.items()}, 'extract_images_per_second': speed}


def probe(photos: ConvertedDataset, size: int) -> dict[str, float]:
    """Return the accuracy of a linear probe on the validation photos, and its time with the pass over all photos."""
    started = time.perf_counter()
    with training(photos, sized(PROBE, size)) as run:
        run.trainer.fit()
        best = run.trainer.state.selection.selected_epoch
        lines = [line for line in run.trainer.folder.history() if line['split'] == 'valid' and line['epoch'] == best]
    return {'probe_valid_top1': lines[0]['top1'], 'probe_seconds': time.perf_counter() - started}


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0], rounds=(2, 'epochs of each side'), size=(224, 'image size, pixels')
    )
    photos = convert_grocery_store(real_photos())
    results = {**probe(photos, arguments.size), **head_speeds(photos, arguments.size, arguments.rounds)}
    speedup = results['features_images_per_second'] / results['images_images_per_second']
    finish({**results, 'head_speedup': speedup}, arguments.json)


if __name__ == '__main__':
    cli_main(main)
