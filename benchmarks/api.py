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
from benchmarks.saved_model import prediction_of, save_model
from lib.api import load
from lib.builders.loader import build_normalize, plain_view
from lib.commands.cli import cli_main, read_command
from lib.commands.loaded_model import load_model
from lib.dataset.crop_resize import crop_resize
from lib.dataset.images import read_image_file
from lib.dataset.lazy_image import open_lazy_image

NUM_CLASSES, SIZE = 81, 112


def sides(path: Path, photos: list[Path], engine: str) -> dict[str, Callable[[], int]]:
    """Return test.py and the interface, with an engine."""
    script = prediction_of(path, photos, '--RUN_ENGINE', engine, '--TEST_CONTACT_SHEET', 'False')

    def interface() -> int:
        return len(list(load(path, device='cpu', engine=engine).stream(photos)))

    return {'test_py': script, 'stream': interface}


def latency(path: Path, photos: list[Path], rounds: int) -> dict[str, float]:
    """Return the median time of one photo in ms, and its difference from that without the interface."""
    model = load(path, device='cpu', engine='torch')
    trained = load_model(read_command(['--RESUME_MODEL', str(path), '--RUN_DEVICE', 'cpu']))
    view, normalize = plain_view(trained.cfg), build_normalize(trained.cfg, trained.device)
    pixels = torch.empty((1, SIZE, SIZE, 3), dtype=torch.uint8)

    def without(photo: Path) -> None:
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
    photos = [root / name for name in names[: arguments.photos]]
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = ['--MODEL_BACKBONE', 'resnet18', '--INPUT_SIZE', str(SIZE), '--DATASET_ROOT', folder]
        path = save_model(Path(folder), options, NUM_CLASSES).path
        assert path is not None
        for engine, prefix in (('torch', ''), ('auto', 'auto_')):
            rates = alternate(sides(path, photos, engine), arguments.rounds)
            results |= {f'{prefix}{side}_images_per_second': rate for side, rate in rates.items()}
            results[f'{prefix}stream_ratio'] = rates['stream'] / rates['test_py']
        results |= latency(path, photos, 40 * arguments.rounds)
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
