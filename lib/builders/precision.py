"""RUN.PRECISION and RUN.MEMORY_FORMAT auto -> the faster ones for the model, by timing training steps."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from lib.builders.loader import train_sizes
from lib.builders.sampler import slots_per_image
from lib.config.defaults import Config
from lib.distributed.process_group import ProcessGroup
from lib.model import Recognizer
from lib.runtime.device import DTYPES, MEMORY_FORMATS, Device
from lib.runtime.precision import (
    StepFormat,
    StepTimes,
    candidates,
    read_times,
    times_text,
    write_times,
)
from lib.runtime.timings import fastest, measurement_key, time_steps
from lib.trainer.checkpointing.state import Checkpoint

# A measurement takes up to 10 seconds (`_SECONDS`, twice), so it does not pay off in shorter runs.
MIN_IMAGES = 10_000
_SECONDS = 5.0
# Images per measured step. With 8 on a CPU, float32 was chosen where bfloat16 is 5 % faster.
_MAX_IMAGES = {'cpu': 32, 'cuda': 128, 'mps': 32}


def choose_precision(
    cfg: Config, model: Recognizer, device: Device, num_images: int, checkpoint: Checkpoint | None, group: ProcessGroup
) -> tuple[Device, str]:
    """Convert the model to the faster precision and memory format; return the device with them, and a line for the log.

    Options that are not auto win. A resumed run has the precision and memory format of its checkpoint, so that it
    continues exactly. A run with few images has the defaults, one on cached features float32. All ranks have those of
    the main rank. The line is '' if nothing was measured.

    Args:
        device: result of build_device().
        num_images: training images in an epoch.
        checkpoint: checkpoint to resume from; None: a new run.
    """
    default, line = StepFormat.of(device), ''
    if not group.is_main:
        chosen = default
    elif checkpoint is not None:
        chosen = _format_of(checkpoint, cfg, device)
    else:
        chosen, line = _measured(cfg, model, device, num_images, group)
    chosen, line = group.broadcast_object((chosen, line))
    device = chosen.apply(device)
    model.train_dtype = device.train_dtype
    model.to(memory_format=device.memory_format)
    return device, line


def step_format(device: Device) -> dict[str, str]:
    """Return precision and memory format of training for checkpoints, with the kind of the device."""
    return {'device': device.main.type, **StepFormat.of(device)._asdict()}


def _format_of(checkpoint: Checkpoint, cfg: Config, device: Device) -> StepFormat:
    """Return the format of a checkpoint where the device computes it; earlier versions had the default."""
    default, stored = StepFormat.of(device), checkpoint.step_format
    if stored is None or stored['device'] != device.main.type:
        return default
    names = {'float32', default.precision} | {name.precision for name in candidates(device)}
    takes_precision = cfg.RUN.PRECISION == 'auto' and stored['precision'] in names
    takes_memory_format = cfg.RUN.MEMORY_FORMAT == 'auto' and stored['memory_format'] in MEMORY_FORMATS
    return StepFormat(
        stored['precision'] if takes_precision else default.precision,
        stored['memory_format'] if takes_memory_format else default.memory_format,
    )


def _measured(
    cfg: Config, model: Recognizer, device: Device, num_images: int, group: ProcessGroup
) -> tuple[StepFormat, str]:
    """Return the fastest format, and a line for the log if it was compared with another one."""
    formats = candidates(device, cfg.RUN.PRECISION, cfg.RUN.MEMORY_FORMAT)
    is_short = num_images * cfg.TRAIN.MAX_EPOCH // group.world_size < MIN_IMAGES
    # Synchronized BatchNorm would wait for ranks that measure nothing.
    is_synchronized = cfg.MODEL.SYNC_BATCHNORM and device.main.type == 'cuda' and group.world_size > 1
    if cfg.TRAIN.FEATURES == 'cached' and cfg.RUN.PRECISION == 'auto':
        return formats[0]._replace(precision='float32'), ''  # a classifier gains no time by less
    if len(formats) == 1 or is_short or is_synchronized or cfg.TRAIN.FEATURES == 'cached':
        return formats[0], ''
    max_images = images_per_step(cfg, device, group)
    size = max(train_sizes(cfg).values())
    path, key = Path(cfg.LOG_ROOT, 'timings.json'), _key(cfg, model, device, size, max_images)
    times, origin = read_times(path, key), f'cached in {path.name}'
    if times is None or not set(formats) <= times.seconds.keys():
        times, origin = measure_steps(model, device, formats, image_size=size, max_images=max_images), 'measured'
        if set(formats) <= times.seconds.keys():
            write_times(path, key, times)
    return fastest(times.seconds, formats[0]), times_text(formats, times, origin)


def images_per_step(cfg: Config, device: Device, group: ProcessGroup) -> int:
    """Return the number of images to measure with: those of a micro-batch on one device, up to a limit."""
    batch = slots_per_image(cfg) * cfg.TRAIN.BATCH_SIZE // (group.world_size * max(1, len(device.replicas)))
    micro_batch = cfg.TRAIN.DEVICE_BATCH_SIZE if cfg.TRAIN.DEVICE_BATCH_SIZE > 0 else batch
    return max(2, min(batch, micro_batch, _MAX_IMAGES[device.main.type]))


def _key(cfg: Config, model: nn.Module, device: Device, size: int, max_images: int) -> str:
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters = f'{trained} of {total} parameters'
    names = (cfg.MODEL.BACKBONE, cfg.MODEL.CLASSIFIER, cfg.MODEL.TUNE)
    return measurement_key(device, *names, parameters, f'{size} px', f'{max_images} images')


def measure_steps(
    model: Recognizer,
    device: Device,
    formats: list[StepFormat],
    *,
    image_size: int,
    max_images: int,
    seconds: float = _SECONDS,
) -> StepTimes:
    """Time training steps of the model (forward pass, cross entropy, backward pass) with random images, in each format.

    The images of a step are fewer than `max_images` if a few steps of each format would take more than `seconds`. After
    twice this time, no step begins. A format that the model cannot be computed in is not in the result. The model and
    the random states are unchanged.
    """
    until = time.perf_counter() + seconds
    with _unchanged(model, device):
        num_images = 2
        step = _timed_step(model, device, num_images, image_size)
        while num_images < max_images:
            step(formats[0])  # to warm up
            elapsed = step(formats[0]) if time.perf_counter() < until else math.inf
            # A step of twice the images takes at most twice as long; 3 of them are needed in each format.
            if 2 * elapsed * 3 * len(formats) > until - time.perf_counter():
                break
            larger = min(2 * num_images, max_images)
            candidate = _timed_step(model, device, larger, image_size)
            if candidate(formats[0]) == math.inf:  # out of memory
                break
            num_images, step = larger, candidate
        times = time_steps(formats, step, until=until + seconds)
    return StepTimes(num_images, {name: value for name, value in times.items() if value < math.inf})


def _timed_step(model: Recognizer, device: Device, num_images: int, image_size: int) -> Callable[[StepFormat], float]:
    """Return a function that computes a step in a format and returns its seconds; infinity if that fails."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 3, image_size, image_size, generator=generator).to(device.main)
    labels = torch.zeros(num_images, dtype=torch.int64, device=device.main)

    def step(name: StepFormat) -> float:
        model.train_dtype, memory_format = DTYPES[name.precision], MEMORY_FORMATS[name.memory_format]
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=memory_format)
        batch = images.contiguous(memory_format=memory_format)
        _synchronize(device.main)
        started = time.perf_counter()
        try:
            nn.functional.cross_entropy(model(batch), labels).backward()
            _synchronize(device.main)
        except (RuntimeError, ValueError):  # out of memory, no kernel for a type, one value per channel
            return math.inf
        finally:
            for parameter in model.parameters():
                parameter.grad = None
        return time.perf_counter() - started

    return step


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    elif device.type == 'mps':
        torch.mps.synchronize()


@contextmanager
def _unchanged(model: Recognizer, device: Device) -> Iterator[None]:
    """Train steps of the model within the block; restore parameters, gradients, buffers, modes and random states."""
    dtype, modes = model.train_dtype, [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.data, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gpus = [device.main] if device.main.type == 'cuda' else []
    try:
        with torch.random.fork_rng(gpus):
            model.train()
            for parameter, _, _ in parameters:
                parameter.grad = None
            yield
    finally:
        model.train_dtype = dtype
        for module, mode in modes:
            module.training = mode
        for parameter, data, gradient in parameters:
            parameter.data, parameter.grad = data, gradient
        for buffer, before in buffers:
            buffer.copy_(before)
        if gpus:
            gc.collect()
            torch.cuda.empty_cache()
