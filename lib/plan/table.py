"""A plan as a user reads it, within 80 columns."""

from collections.abc import Sequence
from dataclasses import dataclass

from lib.plan.backbone import BackboneCost
from lib.plan.head import ClassifierCost, OptimizerCost
from lib.plan.strategies import USABLE, MemoryEstimate, StepSpec, Strategy, Traffic


@dataclass(frozen=True)
class Row:
    """A way, and all that is known of it.

    Attributes:
        seconds: of computing and of sending in a step; None: not asked for.
    """

    name: str
    way: Strategy
    need: MemoryEstimate
    traffic: Traffic
    flops: int
    seconds: tuple[float, float] | None = None


def model_table(
    job: StepSpec, backbone: BackboneCost, head: ClassifierCost, optimizer: OptimizerCost, *, per_device: bool
) -> list[str]:
    """Return what does not depend on the way, a line each.

    Args:
        head: of all classes.
        optimizer: the same.
        per_device: whether to add what a share of the classes is.
    """
    state = optimizer.state / max(1, backbone.gradients + head.gradients)
    lines = [
        f'{"GB":25}{"backbone":>12}{"classifier":>12}',
        _parts('parameters, buffers', backbone.state, head.parameters),
        _parts('gradients', backbone.gradients, head.gradients),
        _parts('optimiser state', backbone.gradients * state, head.gradients * state),
        _parts('average (EMA)', backbone.state * job.ema, head.parameters * job.ema),
    ]
    if per_device:
        share = (head.parameters * (1 + job.ema) + head.gradients * (1 + state)) / job.devices
        lines.append(_parts(f'sharded: 1/{job.devices} of all that', None, share))
    lines += [
        f'{backbone.num_parameters:,} parameters; {job.num_classes:,} classes x {job.num_features:,} features',
        f'an image: {_mb(backbone.saved.per_image)} MB of activations, {_mb(4 * job.num_classes)} MB of logits in '
        f'float32, {backbone.flops / 1e9:.3g} GFLOP',
    ]
    return lines


def strategies_table(rows: Sequence[Row], job: StepSpec, device_bytes: float) -> list[str]:
    """Return what each way needs of a device, a line each."""
    lines = [
        f'{"GB a device":25}{"at once":>8}{"chunk":>7}{"head":>8}{"activ.":>8}{"logits":>8}{"total":>8}  of '
        f'{device_bytes / 1e9:.4g}'
    ]
    for row in rows:
        need, way = row.need, row.way
        fits = 'fits' if need.total <= USABLE * device_bytes else 'no'
        lines.append(
            f'{row.name:25}{way.at_once:>8,}{way.chunk or "all":>7}{_gb(need.classifier):>8}{_gb(need.activations):>8}'
            f'{_gb(need.logits):>8}{_gb(need.total):>8}  {fits}'
        )
    return lines


def traffic_table(rows: Sequence[Row], job: StepSpec, num_images: int) -> list[str]:
    """Return what the devices send each other, and times where they are known, a line each; [] if there is neither."""
    timed = rows[0].seconds is not None
    if job.devices == 1 and not timed:
        return []
    lines = [f'{"a device, a step":25}{"sends MB":>10}{"TFLOP":>8}']
    if timed:
        lines[0] += f'{"compute s":>11}{"send s":>8}{"images/s":>10}'
        if num_images:
            lines[0] += f'{"epoch h":>8}'
    for row in rows:
        line = f'{row.name:25}{row.traffic.total / 1e6:>10,.1f}{row.flops / 1e12:>8.3g}'
        if timed:
            rate = job.batch_size / sum(row.seconds)
            line += f'{row.seconds[0]:>11.3f}{row.seconds[1]:>8.3f}{rate:>10,.0f}'
            if num_images:
                line += f'{num_images / rate / 3600:>8.3g}'
        lines.append(line)
    return lines


def options_of(way: Strategy, job: StepSpec) -> str:
    """Return the options that choose a way."""
    words = []
    if way.sharded:
        words.append('--MODEL_CLASSIFIER_SHARDED True')
    if way.chunk:
        words.append(f'--LOSS_CHUNK_IMAGES {way.chunk}')
    if way.sampled < 1:
        words.append(f'--LOSS_SAMPLED_CLASSES {way.sampled:g}')
    if way.at_once < job.share:
        words.append(f'--TRAIN_DEVICE_BATCH_SIZE {way.at_once}')
    return ' '.join(words)


def _parts(name: str, backbone: float | None, classifier: float) -> str:
    return f'{name:25}{"" if backbone is None else _gb(backbone):>12}{_gb(classifier):>12}'


def _gb(num: float) -> str:
    return f'{num / 1e9:.2f}' if num < 1e11 else f'{num / 1e9:.0f}'


def _mb(num: float) -> str:
    return f'{num / 1e6:.3g}'
