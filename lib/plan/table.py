"""Format a plan as tables of at most 80 columns."""

from collections.abc import Sequence
from dataclasses import dataclass

from lib.plan.costs import BackboneCost, ClassifierCost, OptimizerCost
from lib.plan.strategies import USABLE, MemoryEstimate, StepSpec, Strategy, Traffic


@dataclass(frozen=True)
class Row:
    """A strategy with its estimates.

    Attributes:
        seconds: seconds of computation and of communication per step; None: not estimated.
    """

    name: str
    strategy: Strategy
    memory: MemoryEstimate
    traffic: Traffic
    flops: int
    seconds: tuple[float, float] | None = None

    def fits(self, device_bytes: float) -> bool:
        """Return whether the estimate is within the usable part of a device's memory."""
        return self.memory.total <= USABLE * device_bytes

    @property
    def cost(self) -> float:
        """Return the seconds per step, or without times, the bytes sent: strategies with one loss compute the same."""
        return self.traffic.total if self.seconds is None else sum(self.seconds)

    def saves_time(self, other: 'Row') -> bool:
        """Return whether a step takes at most 90 % of the time of another strategy's, or of its arithmetic."""
        if self.seconds is not None and other.seconds is not None:
            return sum(self.seconds) <= 0.9 * sum(other.seconds)
        return self.flops <= 0.9 * other.flops and self.traffic.total <= other.traffic.total


def model_table(
    spec: StepSpec, backbone: BackboneCost, classifier: ClassifierCost, optimizer: OptimizerCost, *, per_device: bool
) -> list[str]:
    """Return the lines that do not depend on the strategy.

    Args:
        classifier: classifier of all classes.
        optimizer: optimizer of the whole model.
        per_device: add the size of a shard of the classifier.
    """
    state = optimizer.state / max(1, backbone.gradients + classifier.gradients)
    lines = [
        f'{"GB":25}{"backbone":>12}{"classifier":>12}',
        _line('parameters, buffers', backbone.state, classifier.parameters),
        _line('gradients', backbone.gradients, classifier.gradients),
        _line('optimizer state', backbone.gradients * state, classifier.gradients * state),
        _line('EMA of the weights', backbone.state * spec.ema, classifier.parameters * spec.ema),
    ]
    if per_device:
        shard = (classifier.parameters * (1 + spec.ema) + classifier.gradients * (1 + state)) / spec.num_devices
        lines.append(_line(f'sharded: 1/{spec.num_devices} of the sum', None, shard))
    lines += [
        f'{backbone.num_parameters:,} parameters; {spec.num_classes:,} classes x {spec.num_features:,} features',
        f'per image: {_mb(int(backbone.saved.per_image))} MB of activations, {_mb(4 * spec.num_classes)} MB of logits '
        f'in float32, {backbone.flops / 1e9:.3g} GFLOP',
    ]
    return lines


def strategies_table(rows: Sequence[Row], device_bytes: float) -> list[str]:
    """Return a line per strategy with its memory per device."""
    lines = [
        f'{"GB per device":25}{"images":>7}{"chunk":>7}{"classif.":>9}{"activ.":>8}{"logits":>8}{"total":>8}  of '
        f'{device_bytes / 1e9:.4g}'
    ]
    for row in rows:
        memory, strategy = row.memory, row.strategy
        lines.append(
            f'{row.name:25}{strategy.micro_batch:>7,}{strategy.chunk or "all":>7}{_gb(memory.classifier):>9}'
            f'{_gb(memory.activations):>8}{_gb(memory.logits):>8}{_gb(memory.total):>8}  '
            f'{"fits" if row.fits(device_bytes) else "no"}'
        )
    return lines


def traffic_table(rows: Sequence[Row], spec: StepSpec, num_images: int) -> list[str]:
    """Return a line per strategy with its communication and times; [] if there is neither.

    Args:
        num_images: per epoch; 0: no time per epoch.
    """
    is_timed = rows[0].seconds is not None
    if spec.num_devices == 1 and not is_timed:
        return []
    lines = [f'{"per device and step":25}{"sends MB":>10}{"TFLOP":>8}']
    if is_timed:
        lines[0] += f'{"compute s":>11}{"send s":>8}{"images/s":>10}'
        if num_images:
            lines[0] += f'{"epoch h":>8}'
    for row in rows:
        line = f'{row.name:25}{row.traffic.total / 1e6:>10,.1f}{row.flops / 1e12:>8.3g}'
        if row.seconds is not None:
            images_per_second = spec.batch_size / sum(row.seconds)
            epoch_hours = steps_per_epoch(spec, num_images) * sum(row.seconds) / 3600
            line += f'{row.seconds[0]:>11.3f}{row.seconds[1]:>8.3f}{images_per_second:>10,.0f}'
            if num_images:
                line += f'{number_text(epoch_hours):>8}'
        lines.append(line)
    return lines


def total_table(rows: Sequence[Row], spec: StepSpec, num_images: int, num_epochs: int) -> list[str]:
    """Return a line per strategy with the time of a run, and the hours of all devices together."""
    num_steps = steps_per_epoch(spec, num_images)
    lines = [f'{f"{num_epochs} epochs of {num_steps:,} steps":39}{"time":>12}{"GPU-hours":>11}']
    for row in rows:
        hours = num_epochs * num_steps * sum(row.seconds or ()) / 3600
        time = f'{hours:.3g} hours' if hours < 48 else f'{hours / 24:.3g} days'
        lines.append(f'{row.name:39}{time:>12}{number_text(hours * spec.num_devices):>11}')
    return lines


def steps_per_epoch(spec: StepSpec, num_images: int) -> int:
    """Return the steps of an epoch: the partial last batch is left out; a set smaller than a batch is one batch."""
    return max(1, num_images // spec.batch_size)


def number_text(number: float) -> str:
    """Return a number with three significant digits, or all digits of its integer part."""
    return f'{number:.3g}' if number < 1000 else f'{number:,.0f}'


def options_of(strategy: Strategy, spec: StepSpec) -> list[str]:
    """Return the words of the command line that select a strategy."""
    options = []
    if strategy.backbone_sharded:
        options += ['--MODEL_BACKBONE_SHARDED', 'True']
    if strategy.sharded:
        options += ['--MODEL_CLASSIFIER_SHARDED', 'True']
    if strategy.chunk:
        options += ['--LOSS_CHUNK_IMAGES', f'{strategy.chunk}']
    if strategy.sampled < 1:
        options += ['--LOSS_SAMPLED_CLASSES', f'{strategy.sampled:g}']
    if strategy.micro_batch < spec.per_device_batch:
        options += ['--TRAIN_DEVICE_BATCH_SIZE', f'{strategy.micro_batch}']
    return options


def _line(name: str, backbone: float | None, classifier: float) -> str:
    return f'{name:25}{"" if backbone is None else _gb(backbone):>12}{_gb(classifier):>12}'


def _gb(num_bytes: float) -> str:
    return f'{num_bytes / 1e9:.2f}' if num_bytes < 1e11 else f'{num_bytes / 1e9:.0f}'


def _mb(num_bytes: float) -> str:
    return f'{num_bytes / 1e6:.3g}'
