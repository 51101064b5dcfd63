"""The log of a training run: a table on the terminal, the remaining time, and curves for TensorBoard."""

import io
import itertools
import os
import socket
import time
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import hparams, scalar, text
from tqdm import tqdm

from lib.runtime.log import LOGGER, duration_text
from lib.trainer.checkpointing.state import TrainProgress

_COLUMNS = '  train loss  images/s  mean class error  top-1  time left'


@dataclass
class RunLength:
    """Number of steps and validations of a run, and the remaining time that follows from those done.

    Attributes:
        max_epoch, steps_per_epoch, valid_every_epochs: settings of the run; the last epoch is always validated.
        images_per_step: training images.
        num_valid: validation images; 0: there are none.
    """

    max_epoch: int
    steps_per_epoch: int
    valid_every_epochs: int = 1
    images_per_step: int = 1
    num_valid: int = 0
    _seconds_per_step: float = 0.0
    _seconds_per_validation: float | None = None

    def add_steps(self, progress: TrainProgress) -> None:
        """Use the speed of the current epoch: an earlier one may have had another image size."""
        self._seconds_per_step = progress.seconds / max(1, progress.step)

    def add_validation(self, seconds: float) -> None:
        """Use the time of a validation."""
        self._seconds_per_validation = seconds

    def seconds_left(self, epoch: int, step: int) -> float:
        """Return the remaining time after `epoch` epochs and `step` steps, with one validation more for the report.

        Until a validation is measured, an image of it takes as long as one of training.
        """
        steps = max(0, (self.max_epoch - epoch) * self.steps_per_epoch - step)
        validation = self._seconds_per_validation
        if validation is None:
            validation = self.num_valid / self.images_per_step * self._seconds_per_step
        return steps * self._seconds_per_step + self._validations_left(epoch) * validation

    def _validations_left(self, epoch: int) -> int:
        if not self.num_valid:
            return 0
        every, last = self.valid_every_epochs, self.max_epoch
        due = last // every + (last % every > 0) - epoch // every if epoch < last else 0
        return due + 1


class RunLog:
    """Writes the progress of a run to the terminal and to TensorBoard; the config and hyper-parameters, too.

    Args:
        length: length of the run.
        events: None on all ranks but the main one.
        rate_name: heading of the learning rate, or of what an optimizer without one changes over the epochs.
    """

    def __init__(self, length: RunLength, events: 'EventFile | None', *, rate_name: str = 'lr') -> None:
        self._length, self._events, self._rate_name = length, events, rate_name
        self._has_header = False
        self._before = TrainProgress()  # at the log step before

    def begin_epoch(self, progress: TrainProgress) -> None:
        """Note the sums that a resumed epoch begins with."""
        self._before = copy(progress)

    def log_step(self, progress: TrainProgress, lr: float, bar: tqdm) -> None:
        """Log loss, accuracy and speed of the steps since the last call, whose sums are in the progress already.

        On a terminal they are in the progress bar; otherwise there is a line per log interval, but none at the end of
        the epoch.
        """
        length, before = self._length, self._before
        length.add_steps(progress)
        left = duration_text(length.seconds_left(progress.epoch, progress.step))
        loss = f'{progress.loss_sum / progress.num_images:.3f}'
        bar.set_postfix_str(f'loss {loss}, run {left} left')
        if bar.disable and progress.step < length.steps_per_epoch:
            LOGGER.info(
                'epoch %d, step %d of %d: loss %s, %s left',
                progress.epoch + 1, progress.step, length.steps_per_epoch, loss, left,
            )  # fmt: skip
        num_images = progress.num_images - before.num_images
        seconds = progress.seconds - before.seconds
        self._add(
            progress.epoch * length.steps_per_epoch + progress.step,
            'step',
            {
                'loss': (progress.loss_sum - before.loss_sum) / num_images,
                'top1': (progress.num_right - before.num_right) / num_images,
                'lr': lr,
                **({'images_per_second': num_images / seconds} if seconds > 0 else {}),
            },
        )
        self._before = copy(progress)

    def log_epoch(self, epoch: int, train: dict[str, float], valid: dict[str, float], *, is_best: bool) -> None:
        """Log the row of an epoch, counted from 1, with its metrics; `valid`: {} if it was not validated."""
        if valid:
            self._length.add_validation(valid['seconds'])
        last = self._length.max_epoch
        width = max(8, len(f'{last}/{last}'))
        if not self._has_header:
            LOGGER.info('%s%s%s', 'epoch'.rjust(width), self._rate_name.rjust(8), _COLUMNS)
            self._has_header = True
        left = duration_text(self._length.seconds_left(epoch, 0)) if epoch < last else '-'
        speed = train['images_per_second']
        error, top1 = (f'{valid[name]:.1%}' if name in valid else '-' for name in ('mean_class_error', 'top1'))
        LOGGER.info(
            '%s',
            f'{f"{epoch}/{last}":>{width}}{train["lr"]:>8.2g}{train["loss"]:>12.3f}{speed:>10.{int(speed < 10)}f}'
            f'{error:>18}{top1:>7}{left:>11}' + ' best' * is_best,
        )

    def record(self, epoch: int, split: str, metrics: dict[str, float]) -> None:
        """Write the metrics of an epoch, counted from 1, to TensorBoard."""
        self._add(epoch * self._length.steps_per_epoch, split, {'epoch': epoch, **metrics})

    def _add(self, step: int, group: str, values: dict[str, float]) -> None:
        if self._events is not None:
            self._events.add(step, group, values)


class EventFile:
    """Curves, texts and images of a run for TensorBoard. The x-axis is the number of training steps since the start.

    tensorboardX's SummaryWriter writes from a thread, which on a full disk ends with a traceback while the run
    continues. The dozen numbers of an epoch are written synchronously here, so that a failure is an error of the run.
    Every method that writes raises OSError, for example if no space is left.

    Args:
        folder: folder of the run; every start or resume adds a file.
        step: steps done before. TensorBoard hides points of later steps in older files.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        # TensorBoard reads files in the order of their names.
        name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}'
        number = next(number for number in itertools.count() if not (folder / f'{name}.{number}').exists())
        self._writer = RecordWriter(str(folder / f'{name}.{number}'))
        self._step = step
        self._write(Event(file_version='brain.Event:2'))
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._writer.flush()

    def add(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Write one point of each curve `group/name`."""
        for name, value in values.items():
            self._write(Event(step=step, summary=scalar(f'{group}/{name}', value)))
        self._writer.flush()

    def add_run(self, config: str, hyper_parameters: Mapping[str, bool | float | str]) -> None:
        """Write the config, YAML, as a text and the start of the run for the table of hyper-parameters.

        TensorBoard shows the hyper-parameters beside the last point of each curve of the same folder. Without a summary
        of the experiment it lists those of all runs; with one, only those of the first run.
        """
        code = ''.join(f'    {line}\n' for line in config.splitlines())  # a code block in Markdown
        _, start, _ = hparams(dict(hyper_parameters), {})
        for summary in (text('config', code), start):
            self._write(Event(step=self._step, summary=summary))
        self._writer.flush()

    def add_image(self, step: int, tag: str, png: bytes) -> None:
        """Write an image."""
        with Image.open(io.BytesIO(png)) as image:
            width, height = image.size
        content = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=content)])))
        self._writer.flush()

    def add_end(self) -> None:
        """Write that the run is finished, for the table of hyper-parameters."""
        _, _, end = hparams({}, {})
        self._write(Event(step=self._step, summary=end))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
