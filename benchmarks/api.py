"""Speed of the Python interface (lib/api.py), compared with test.py and with the network alone.

REAL_PHOTOS=FOLDER python benchmarks/api.py [--photos N] [--rounds N] [--json FILE]

ResNet-18 at 112 px with random weights. stream_ratio: photos per second of `list(model.stream(paths))` over those of
test.py, from its command line to its CSV; both load the checkpoint and compute with RUN.ENGINE torch.
auto_stream_ratio: the same with RUN.ENGINE auto. Above 1, the interface is faster.

overhead_ms: median time of `model.predict(path)` for one photo, minus that of its parts without the interface: to
decode and crop the photo, to normalize it, and the network. latency_ms: the time of the former.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.harness import alternate, finish, parse_arguments, real_photos
from benchmarks.training import config_of
from lib.api import load
from lib.builders.loader import build_normalize, plain_view
from lib.builders.model import new_model
from lib.commands.cli import cli_main, read_command
from lib.commands.loaded_model import load_model
from lib.commands.predict import predict
from lib.config.yaml_text import as_text
from lib.dataset.crop_resize import crop_resize
from lib.dataset.images import read_image_file
from lib.dataset.lazy_image import open_lazy_image
from lib.runtime.device import pick_device
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint

NUM_CLASSES, SIZE = 81, 112


def write_model(folder: Path) -> Path:
    """Write a checkpoint with random weights."""
    options = ['--MODEL_BACKBONE', 'resnet18', '--INPUT_SIZE', str(SIZE), '--LOG_ROOT', str(folder), '--NAME', 'run']
    cfg = config_of([*options, '--DATASET_ROOT', str(folder), '--RUN_DEVICE', 'cpu'])
    path = folder / 'run' / 'best_model.pth'
    write_checkpoint(
        path, Checkpoint(new_model(cfg, NUM_CLASSES, pick_device('cpu')).state_dict(), config=as_text(cfg))
    )
    (path.parent / 'config.yaml').write_text(as_text(cfg), encoding='utf-8')
    return path


def sides(path: Path, photos: list[str], engine: str) -> dict[str, Callable[[], int]]:
    """Return test.py and the interface, with an engine."""
    listed = path.with_name(f'{engine}.txt')
    listed.write_text('\n'.join(photos), encoding='utf-8')
    argv = ['--RESUME_MODEL', str(path), '--LOG_ROOT', str(path.parent.parent), '--TEST_IMAGES', str(listed)]
    argv += ['--RUN_DEVICE', 'cpu', '--RUN_ENGINE', engine, '--TEST_CONTACT_SHEET', 'False']

    def script() -> int:
        predict(load_model(read_command(argv)))
        return len(photos)

    def interface() -> int:
        return len(list(load(path, device='cpu', engine=engine).stream(photos)))

    return {'test_py': script, 'stream': interface}


def latency(path: Path, photos: list[str], rounds: int) -> dict[str, float]:
    """Return the median time of one photo in ms, and its difference from that without the interface."""
    model = load(path, device='cpu', engine='torch')
    trained = load_model(read_command(['--RESUME_MODEL', str(path), '--RUN_DEVICE', 'cpu']))
    view, normalize = plain_view(trained.cfg), build_normalize(trained.cfg, trained.device)
    pixels = torch.empty((1, SIZE, SIZE, 3), dtype=torch.uint8)

    def without(photo: str) -> None:
        image = open_lazy_image(read_image_file(photo))
        crop_resize(image, view.crop_params(image.width, image.height), pixels[0].numpy())
        with torch.inference_mode():
            trained.model(normalize(pixels)).topk(3)

    trained.model.eval()
    times: dict[Callable, list[float]] = {model.predict: [], without: []}
    for number in range(rounds):
        for run, seconds in times.items():
            started = time.perf_counter()
            run(photos[number % len(photos)])
            seconds.append(time.perf_counter() - started)
    of_predict, of_parts = times.values()
    differences = np.subtract(of_predict, of_parts)
    return {
        'latency_ms': 1000 * statistics.median(of_predict),
        'overhead_ms': 1000 * float(np.median(differences)),
    }


def main() -> None:
    arguments = parse_arguments(
        'Speed of the Python interface.', photos=(1500, 'number of photos'), rounds=(5, 'measurements of each side')
    )
    root = real_photos()
    names = [
        line.split(',')[0].strip() for line in (root / 'train.txt').read_text(encoding='utf-8').splitlines() if line
    ]
    photos = [str(root / name) for name in names[: arguments.photos]]
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder))
        for engine, prefix in (('torch', ''), ('auto', 'auto_')):
            rates = alternate(sides(path, photos, engine), arguments.rounds)
            results |= {f'{prefix}{side}_images_per_second': rate for side, rate in rates.items()}
            results[f'{prefix}stream_ratio'] = rates['stream'] / rates['test_py']
        results |= latency(path, photos, 40 * arguments.rounds)
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
