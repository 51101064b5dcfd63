"""Time of a training epoch on real photos, including the loader, compared with the original entry.

REAL_PHOTOS=FOLDER python benchmarks/epoch.py [--json FILE]     (pip install -r benchmarks/requirements-bench.txt)

ResNet-18 at 112 px, batch 32. The original: OpenCV and torchvision in a default DataLoader, float32 in the default
memory format, plain SGD (benchmarks/original.py), two workers. Ours: loader and training loop of main.py in the
precision that RUN.PRECISION auto selects, with two workers and with the default number. Random crops and flips on all
sides, no validation. Results: epoch_speedup, two workers each; epoch_default_speedup, ours with the default number.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import alternate, finish, parse_arguments, real_photos, require
from benchmarks.original import OriginalPhotos, OriginalTraining, default_loader, original_model
from benchmarks.training import epoch_of, options_of, training
from lib.commands.cli import cli_main
from lib.formats.converted import ConvertedDataset, ConvertedSplit
from lib.formats.text_lists import convert_grocery_store

SIZE, BATCH_SIZE, WORKERS = 112, 32, 2


def training_photos(num_photos: int) -> ConvertedDataset:
    """Return `num_photos` training photos at equal distances in the list; 0: all."""
    dataset = convert_grocery_store(real_photos())
    split = dataset.splits['train']
    step = max(1, len(split.paths) // num_photos) if num_photos else 1
    chosen = slice(None, num_photos * step if num_photos else None, step)
    return ConvertedDataset(
        {'train': ConvertedSplit(split.paths[chosen], split.labels[chosen])}, dataset.names, None, dataset.root
    )


def compare(photos: ConvertedDataset, rounds: int) -> dict[str, float]:
    """Return rates and ratios."""
    split = photos.splits['train']
    paths = [photos.root / path for path in split.paths]
    loader = default_loader(OriginalPhotos(paths, SIZE, split.labels.tolist()), BATCH_SIZE, WORKERS)
    original = OriginalTraining(original_model('resnet18', len(photos.names)), lr=0.01)
    common = {'MODEL_BACKBONE': 'resnet18', 'INPUT_SIZE': SIZE, 'TRAIN_BATCH_SIZE': BATCH_SIZE, 'RUN_DEVICE': 'cpu'}
    with ExitStack() as stack:
        two = stack.enter_context(training(photos, options_of(**common, RUN_NUM_WORKERS=WORKERS)))
        default = stack.enter_context(training(photos, options_of(**common)))
        sides = {
            'ours': epoch_of(two),
            'ours_default': epoch_of(default),
            'original': lambda: original.epoch(loader),
        }
        rates = alternate(sides, rounds)
    return {
        **{f'{name}_images_per_second': rate for name, rate in rates.items()},
        'epoch_speedup': rates['ours'] / rates['original'],
        'epoch_default_speedup': rates['ours_default'] / rates['original'],
    }


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0], rounds=(3, 'epochs of each side'), photos=(0, 'photos per epoch, 0: all')
    )
    require('cv2')
    finish(compare(training_photos(arguments.photos), arguments.rounds), arguments.json)


if __name__ == '__main__':
    cli_main(main)
