"""Is the precision (on GPUs: the memory format) that is chosen by timing a few steps the faster one in training?

python benchmarks/precision.py [--json FILE] [--only NAME ...] [--rounds N] [--device DEVICE]

ResNet-18 and ResNeSt-50 at 112 px, EfficientNet-Lite0 at 128 px, ViT-tiny at 112 px. The choice is that of main.py with
RUN.PRECISION auto and RUN.MEMORY_FORMAT auto. Then main.py's training loop runs in each candidate alternately, on
synthetic batches. NAME_chosen_speedup: the chosen one compared with the fastest other one, above 1 if the choice is
right; NAME_bfloat16_speedup compared with float32, or NAME_contiguous_speedup compared with channels_last;
NAME_measurement_seconds: time until the choice.
"""

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import alternate, finish, new_parser
from benchmarks.training import ReadyBatches, config_of, converted_photos, epoch_of, options_of, training, write_photos
from lib.builders.model import new_model
from lib.builders.precision import images_per_step, measure_steps
from lib.commands.cli import cli_main
from lib.config.defaults import Config
from lib.distributed.process_group import SINGLE_PROCESS
from lib.errors import UserError
from lib.runtime.device import Device, pick_device
from lib.runtime.precision import StepFormat, candidates, times_text
from lib.runtime.timings import fastest

# Prefix of the results: backbone, pixels, batch on a CPU, batch on a GPU.
NETWORKS = {
    'resnet18': ('resnet18', 112, 32, 256),
    'resnest50': ('resnest50', 112, 16, 256),
    'lite0': ('tf_efficientnet_lite0', 128, 32, 256),
    'vit_tiny': ('vit_tiny_patch16_224', 112, 32, 256),
}
NUM_CLASSES, STEPS = 81, 6


def choice(cfg: Config, device: Device, formats: list[StepFormat]) -> tuple[StepFormat, float]:
    """Return the format that main.py chooses, and the seconds that this takes."""
    model = new_model(cfg, NUM_CLASSES, device)
    started = time.perf_counter()
    max_images = images_per_step(cfg, device, SINGLE_PROCESS)
    times = measure_steps(model, device, formats, image_size=cfg.INPUT.SIZE, max_images=max_images)
    seconds = time.perf_counter() - started
    print(f'{cfg.MODEL.BACKBONE}: {times_text(formats, times, "measured")}', flush=True)
    return fastest(times.seconds, formats[0]), seconds


def rates(options: list[str], formats: list[StepFormat], batch_size: int, rounds: int) -> dict[StepFormat, float]:
    """Return the images per second of main.py's training loop in each format."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        photos = converted_photos(write_photos(Path(folder), NUM_CLASSES, 1 + batch_size // NUM_CLASSES, 32))
        sides = {}
        for name in formats:
            forced = ['--RUN_PRECISION', name.precision, '--RUN_MEMORY_FORMAT', name.memory_format]
            run = stack.enter_context(training(photos, [*options, *forced]))
            size = run.cfg.INPUT.SIZE
            run.trainer.loader = ReadyBatches(
                run.device.main, batch_size=batch_size, size=size, num_classes=NUM_CLASSES, steps=STEPS,
                memory_format=run.device.memory_format,
            )  # fmt: skip
            sides[' '.join(name)] = epoch_of(run)
        found = alternate(sides, rounds)
    return {name: found[' '.join(name)] for name in formats}


def compare(name: str, device_name: str, rounds: int) -> dict[str, float]:
    """Return the results of one network."""
    device = pick_device(device_name)
    formats = candidates(device)
    if len(formats) == 1:
        raise UserError('this CPU computes no bfloat16, so there is nothing to choose: give --device cuda')
    backbone, size, *batches = NETWORKS[name]
    batch_size = batches[device.main.type != 'cpu']
    options = options_of(
        MODEL_BACKBONE=backbone, MODEL_PRETRAINED='', INPUT_SIZE=size, TRAIN_BATCH_SIZE=batch_size,
        RUN_DEVICE=device_name, RUN_NUM_WORKERS=0,
    )  # fmt: skip
    chosen, seconds = choice(config_of(options), device, formats)
    found = rates(options, formats, batch_size, rounds)
    challenger = next(other for other in ('bfloat16', 'contiguous') if any(other in pair for pair in formats))
    speed = {challenger in pair: rate for pair, rate in found.items()}
    return {
        f'{name}_chosen_speedup': found[chosen] / max(rate for pair, rate in found.items() if pair != chosen),
        f'{name}_{challenger}_speedup': speed[True] / speed[False],
        f'{name}_measurement_seconds': seconds,
    }


def main() -> None:
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', choices=NETWORKS, default=list(NETWORKS), help='networks to measure')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='epochs of each side (default: 5)')
    parser.add_argument('--device', default='auto', help='device of training (default: auto)')
    arguments = parser.parse_args()
    results: dict[str, float] = {}
    for name in arguments.only:
        results |= compare(name, arguments.device, arguments.rounds)
    results['worst_chosen_speedup'] = min(value for key, value in results.items() if key.endswith('chosen_speedup'))
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
