"""Speed of a training step compared with the original entry, and of a run compared with timm's train.py.

python benchmarks/step.py [--json FILE] [--only NAME ...] [--rounds N] [--timm FOLDER]

Original entry: synthetic batches, main.py's training loop in the precision that RUN.PRECISION auto selects; the
original's step is float32 in the default memory format (benchmarks/original.py). ResNet-18 and ResNeSt-50 with 1000
classes at 112 px, CIFAR's ResNet-32 with 100 classes at 32 px: resnet18_speedup, resnest50_speedup, resnet32_speedup.

timm: ResNet-18 at 112 px, batch 32, 1000 classes; timm_step_speedup on synthetic batches, timm_speedup with both
loaders (two workers) on the same JPEGs of 348 px, in the same precision. With --timm, a checkout of timm's repository,
train.py and main.py are run alternately, and the rates of all epochs but the first are read from their logs; without
it, timm's parts are combined like in train.py (benchmarks/peers_timm.py).

Speed of bfloat16 on this machine: bfloat16_convolution_speedup, compared with float32, in convolutions.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.harness import alternate, finish, new_parser
from benchmarks.original import OriginalTraining, original_model
from benchmarks.peers_timm import Recipe, TimmLoop, script_run
from benchmarks.training import ReadyBatches, converted_photos, epoch_of, options_of, training, write_photos
from lib.commands.cli import cli_main
from lib.config.options import local_path
from lib.formats.write import write_converted
from lib.runtime.device import pick_device
from lib.runtime.precision import StepFormat

# Prefix of the results: backbone, pixels, batch, classes, steps per round.
NETWORKS = {
    'resnet18': ('resnet18', 112, 32, 1000, 8),
    'resnest50': ('resnest50', 112, 16, 1000, 6),
    'resnet32': ('res32_cifar', 32, 128, 100, 8),
}
PHOTO, WORKERS, EPOCHS = 348, 2, 3
REPOSITORY = Path(__file__).resolve().parents[1]


def against_original(name: str, rounds: int) -> dict[str, float]:
    """Return both rates, and ours / theirs."""
    backbone, size, batch_size, num_classes, steps = NETWORKS[name]
    options = options_of(
        MODEL_BACKBONE=backbone, INPUT_SIZE=size, TRAIN_BATCH_SIZE=batch_size, RUN_DEVICE='cpu', RUN_NUM_WORKERS=0
    )
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), num_classes, 1 + batch_size // num_classes, size)
        with training(converted_photos(photos), options) as run:
            ready = ReadyBatches(
                torch.device('cpu'), batch_size=batch_size, size=size, num_classes=num_classes, steps=steps
            )
            run.trainer.loader = ready
            original = OriginalTraining(original_model(backbone, num_classes), lr=0.01)
            rates = alternate({'ours': epoch_of(run), 'original': lambda: original.epoch(ready.plain())}, rounds)
    return {
        f'{name}_images_per_second': rates['ours'],
        f'{name}_original_images_per_second': rates['original'],
        f'{name}_speedup': rates['ours'] / rates['original'],
    }


def against_timm(rounds: int, checkout: Path | None, num_photos: int = 1000) -> dict[str, float]:
    """Return rates and speedups over timm, for steps alone and with the loaders."""
    device = pick_device('cpu')
    recipe = Recipe('resnet18', 112, 32, num_photos, WORKERS, device.train_dtype)
    options = options_of(
        MODEL_BACKBONE=recipe.model, INPUT_SIZE=recipe.size, TRAIN_BATCH_SIZE=recipe.batch_size, RUN_DEVICE='cpu',
        RUN_NUM_WORKERS=WORKERS, RUN_PRECISION=StepFormat.of(device).precision,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder, 'photos'), num_photos, 1, PHOTO)
        with training(converted_photos(photos), options) as run:
            peer, whole = TimmLoop(recipe), run.trainer.loader
            run.trainer.loader = ready = ReadyBatches(
                torch.device('cpu'), batch_size=recipe.batch_size, size=recipe.size, num_classes=num_photos, steps=8
            )
            steps = alternate({'ours': epoch_of(run), 'timm': lambda: peer.epoch(ready.plain())}, rounds)
            if checkout is None:
                run.trainer.loader, batches = whole, peer.loader(photos)
                epochs = alternate({'ours': epoch_of(run), 'timm': lambda: peer.epoch(batches)}, min(rounds, 5))
        if checkout is not None:
            epochs = of_scripts(photos, Path(folder), options, recipe, checkout, min(rounds, 5))
    return {
        'timm_step_speedup': steps['ours'] / steps['timm'],
        'ours_epoch_images_per_second': epochs['ours'],
        'timm_epoch_images_per_second': epochs['timm'],
        'timm_speedup': epochs['ours'] / epochs['timm'],
    }


def of_scripts(
    photos: Path, folder: Path, options: list[str], recipe: Recipe, checkout: Path, rounds: int
) -> dict[str, float]:
    """Return the median rates of the epochs of main.py and train.py, without the first epoch of each run."""
    write_converted(converted_photos(photos), folder / 'data')
    train_py = script_run(checkout, photos, folder / 'timm', recipe, EPOCHS)
    ours, theirs = [], []
    for number in range(rounds):
        argv = [*options, '--DATASET_ROOT', str(folder / 'data'), '--TRAIN_MAX_EPOCH', str(EPOCHS)]
        argv += ['--LOG_ROOT', str(folder), '--NAME', f'ours{number}']
        subprocess.run([sys.executable, 'main.py', *argv], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        lines = (folder / f'ours{number}' / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
        entries = [json.loads(line) for line in lines]
        ours += [entry['images_per_second'] for entry in entries if entry['split'] == 'train'][1:]
        theirs += train_py()
    return {'ours': statistics.median(ours), 'timm': statistics.median(theirs)}


def convolutions(dtype: torch.dtype) -> int:
    """Run a 3 x 3 convolution of a ResNet at 112 px forward and backward; return the number of images."""
    shape, memory = (32, 128, 14, 14), torch.channels_last
    images = torch.randn(shape).to(dtype, memory_format=memory).requires_grad_()
    weight = torch.randn(128, 128, 3, 3).to(dtype, memory_format=memory).requires_grad_()
    for _ in range(10):
        torch.conv2d(images, weight, padding=1).sum().backward()
    return 10 * shape[0]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=7, metavar='N', help='rounds of each side (default: 7)')
    parser.add_argument('--only', nargs='+', choices=[*NETWORKS, 'timm'], help='comparisons to run (default: all)')
    parser.add_argument(
        '--timm', type=local_path, metavar='FOLDER', help="checkout of timm's repository, with train.py"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    chosen = arguments.only or [*NETWORKS, 'timm']
    kinds = alternate({str(kind): lambda kind=kind: convolutions(kind) for kind in (torch.bfloat16, torch.float32)}, 5)
    results = {'bfloat16_convolution_speedup': kinds['torch.bfloat16'] / kinds['torch.float32']}
    for name in chosen:
        results |= against_timm(arguments.rounds, arguments.timm) if name == 'timm' else {}
        results |= against_original(name, arguments.rounds) if name in NETWORKS else {}
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
