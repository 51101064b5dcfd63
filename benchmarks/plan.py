"""Memory of a training step on the CPU, measured and as estimated by tools/plan.py.

python benchmarks/plan.py [--json FILE]

Each case is a new process with model, loss and optimizer of the run, and two steps. The measured memory is the peak
resident memory minus the memory before the model is built. Large tensors are separate memory mappings, so that the
allocator does not cache freed memory. Needs Linux and 10 GB of free memory: with less, the system drops pages of
libraries, and resident memory is too small. Results: plan_error, the largest relative difference of all cases; NAME_gb,
measured, and NAME_planned_ratio, planned / measured.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.harness import finish, parse_arguments
from lib.builders.model import new_model
from lib.builders.objective import build_objective, is_chunked
from lib.builders.optim import build_optimizer
from lib.builders.preprocessing import resolve_preprocessing
from lib.commands.cli import cli_main
from lib.commands.plan import StepCosts
from lib.config.defaults import KEYS, Config
from lib.config.yaml_text import as_node
from lib.errors import UserError
from lib.loss.targets import Targets
from lib.plan.strategies import StepSpec, Strategy, estimate_memory
from lib.runtime.device import Device, pick_device
from lib.trainer.forward import TrainingForward
from lib.trainer.microbatch import split_batch
from lib.trainer.mixing.base import MixedBatch
from lib.trainer.step import TrainStep
from lib.trainer.train_state import TrainState

_STATUS = Path('/proc/self/status')
# Name: classes, images, options. Each case takes about 1 GB, so that a few MB of oneDNN are negligible.
CASES: dict[str, tuple[int, int, dict[str, object]]] = {
    'resnet18': (1000, 256, {'MODEL.BACKBONE': 'resnet18'}),
    'resnet18_50030': (50_030, 192, {'MODEL.BACKBONE': 'resnet18'}),
    'resnet18_200000': (200_000, 256, {'MODEL.BACKBONE': 'resnet18'}),
    'resnet50': (1000, 64, {'MODEL.BACKBONE': 'resnet50'}),
    'resnet50_50030': (50_030, 32, {'MODEL.BACKBONE': 'resnet50'}),
    'resnet50_200000': (200_000, 32, {'MODEL.BACKBONE': 'resnet50'}),
    'resnest50': (1000, 48, {'MODEL.BACKBONE': 'resnest50'}),
    'resnest50_adamw': (1000, 32, {'MODEL.BACKBONE': 'resnest50', 'OPTIMIZER.TYPE': 'adamw'}),
    'resnet18_bfloat16': (50_030, 256, {'MODEL.BACKBONE': 'resnet18', 'RUN.PRECISION': 'bfloat16'}),
    'resnet50_bfloat16': (50_030, 64, {'MODEL.BACKBONE': 'resnet50', 'RUN.PRECISION': 'bfloat16'}),
    'resnet50_cosine': (50_030, 32, {'MODEL.BACKBONE': 'resnet50', 'MODEL.CLASSIFIER': 'FCNorm'}),
    'frozen': (200_000, 256, {'MODEL.BACKBONE': 'resnet18', 'MODEL.FREEZE_BACKBONE': True}),
    'in_parts': (50_030, 128, {'MODEL.BACKBONE': 'resnet18', 'TRAIN.DEVICE_BATCH_SIZE': 32}),
    'chunked': (200_000, 256, {'MODEL.BACKBONE': 'resnet18', 'LOSS.CHUNK_IMAGES': 32}),
    'chunked_bfloat16': (
        200_000,
        256,
        {'MODEL.BACKBONE': 'resnet18', 'LOSS.CHUNK_IMAGES': 32, 'RUN.PRECISION': 'bfloat16'},
    ),
    'chunked_cosine': (
        200_000,
        256,
        {'MODEL.BACKBONE': 'resnet18', 'LOSS.CHUNK_IMAGES': 32, 'MODEL.CLASSIFIER': 'FCNorm'},
    ),
    'sampled': (400_000, 128, {'MODEL.BACKBONE': 'resnet18', 'LOSS.SAMPLED_CLASSES': 0.1}),
}


def config_of(name: str) -> Config:
    """Return the config of a case."""
    values = {key: entry.default for key, entry in KEYS.items()}
    common = {'INPUT.SIZE': 112, 'RUN.DEVICE': 'cpu', 'RUN.PRECISION': 'float32', 'TRAIN.BATCH_SIZE': CASES[name][1]}
    return resolve_preprocessing(as_node(values | common | CASES[name][2]))


def planned(name: str) -> int:
    """Return the planner's estimate of the memory of a step, in bytes."""
    cfg, (num_classes, num_images, _) = config_of(name), CASES[name]
    costs = StepCosts(cfg, num_classes, pick_device('cpu', cfg.RUN.PRECISION).train_dtype)
    spec = StepSpec(num_images, 1, num_classes, costs.num_features, cfg.INPUT.SIZE)
    micro_batch = cfg.TRAIN.DEVICE_BATCH_SIZE or num_images
    strategy = Strategy(micro_batch, chunk=cfg.LOSS.CHUNK_IMAGES, sampled=cfg.LOSS.SAMPLED_CLASSES)
    return estimate_memory(strategy, spec, costs).total


def measured(name: str) -> int:
    """Return the peak resident memory of two steps in a new process, in bytes."""
    done = subprocess.run(
        [sys.executable, __file__, '--measure', name],
        env=os.environ | {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str) -> int:
    """Build the run of a case and take two steps; return the growth of the peak resident memory in bytes."""
    cfg, (num_classes, num_images, _) = config_of(name), CASES[name]
    device = pick_device('cpu', cfg.RUN.PRECISION)
    _warm_up(cfg, device)
    before = _resident('VmRSS')
    train_step = _train_step(cfg, num_classes, num_images, device)
    batch = _batch(cfg, num_classes, num_images)
    Path('/proc/self/clear_refs').write_text('5', encoding='ascii')  # resets the peak
    for step in range(2):
        train_step(batch, step)
    return _resident('VmHWM') - before


def _train_step(cfg: Config, num_classes: int, num_images: int, device: Device) -> TrainStep:
    model = new_model(cfg, num_classes, device)
    return TrainStep(
        state=TrainState(model.train(), build_optimizer(cfg, model)),
        forward=TrainingForward(model, classifies=not is_chunked(cfg)),
        objective=build_objective(cfg, np.ones(num_classes, dtype=np.int64), model, device),
        schedule=lambda step: 0.01,
        seed=0,
        micro_batches=split_batch(num_images, max_images=cfg.TRAIN.DEVICE_BATCH_SIZE),
    )


def _batch(cfg: Config, num_classes: int, num_images: int) -> MixedBatch:
    images = torch.randn(num_images, 3, cfg.INPUT.SIZE, cfg.INPUT.SIZE).to(memory_format=torch.channels_last)
    return MixedBatch(images, Targets(torch.randint(num_classes, (num_images,))))


def _warm_up(cfg: Config, device: Device) -> None:
    """Take a step with two images, which creates threads, kernels and code."""
    _train_step(cfg, 10, 2, device)(_batch(cfg, 10, 2), 0)


def _resident(which: str) -> int:
    """Return the resident memory of this process (VmRSS) or its peak (VmHWM), in bytes."""
    lines = _STATUS.read_text(encoding='ascii').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def main() -> None:
    if sys.argv[1:2] == ['--measure']:
        print(json.dumps(measure(sys.argv[2])))
        return
    arguments = parse_arguments(__doc__.splitlines()[0])
    if not _STATUS.exists():
        raise UserError('resident memory is read from /proc: run this benchmark on Linux')
    results, errors = {}, []
    for name in CASES:
        actual, plan = measured(name), planned(name)
        errors.append(abs(plan - actual) / actual)
        results |= {f'{name}_gb': actual / 1e9, f'{name}_planned_ratio': plan / actual}
        print(f'{name:20} measured {actual / 1e9:6.2f} GB, planned {plan / 1e9:6.2f} GB', flush=True)
    finish({'plan_error': max(errors), **results}, arguments.json)


if __name__ == '__main__':
    cli_main(main)
