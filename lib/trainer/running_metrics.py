"""Running metrics of an epoch, summed on the device, and the TensorBoard event file."""

import os
import socket
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from lib.distributed.process_group import ProcessGroup
from lib.trainer.checkpointing.state import TrainProgress


class StepResult(NamedTuple):
    """The result of a step on this rank, two scalar tensors: its part of the batch's loss, and correct predictions."""

    loss: torch.Tensor
    num_right: torch.Tensor


class RunningMetrics:
    """Running sums of an epoch, which stay on the device until sync().

    They start from the sums in the progress and grow step by step, so they depend neither on when they are
    synchronized nor on where the epoch was interrupted.
    """

    def __init__(self, progress: TrainProgress, group: ProcessGroup, device: torch.device) -> None:
        self._progress, self._group = progress, group
        # MPS has no float64; float32 is precise enough for a log line.
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        loss_sum, num_right = (progress.loss_sum, progress.num_right) if group.is_main else (0.0, 0)
        self._loss_sum = torch.tensor(loss_sum, dtype=dtype, device=device)  # loss times images
        self._num_right = torch.tensor(num_right, dtype=torch.int64, device=device)
        self._num_images = progress.num_images
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, result: StepResult, num_images: int, step: int) -> None:
        """Add the result of a step of `num_images` images over all ranks."""
        self._loss_sum += result.loss.to(self._loss_sum.dtype) * num_images
        self._num_right += result.num_right
        self._num_images += num_images
        first = (self._first_bad_step < 0) & ~torch.isfinite(result.loss)
        self._first_bad_step = torch.where(first, step, self._first_bad_step)

    def sync(self) -> int:
        """Write the sums over all ranks into the progress; return the first step with a non-finite loss, or -1.

        All ranks call it after the same step. It waits for the device.
        """
        self._progress.loss_sum = float(self._group.all_reduce(self._loss_sum))
        self._progress.num_right = int(self._group.all_reduce(self._num_right))
        self._progress.num_images = self._num_images
        steps = [step for step in self._group.all_gather(self._first_bad_step).tolist() if step >= 0]
        return min(steps, default=-1)


class EventFile:
    """Metrics of a run for TensorBoard.

    tensorboardX's SummaryWriter writes from a thread, which on a full disk ends with a traceback while the run
    continues. The dozen numbers of an epoch are written synchronously here, so that a failure is an error of the run.

    Args:
        folder: of the run; every start or resume adds a file.
        finished: epochs done before. TensorBoard hides points of later epochs in older files.
    """

    def __init__(self, folder: Path, finished: int = 0) -> None:
        # TensorBoard reads files in the order of their names.
        name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}'
        self._writer = RecordWriter(str(folder / name))
        self._write(Event(file_version='brain.Event:2'))
        self._write(Event(step=finished + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, epoch: int, split: str, values: dict[str, float]) -> None:
        """Write one point of each curve `split/name`.

        Raises:
            OSError: for example no space left.
        """
        for name, value in values.items():
            self._write(Event(step=epoch, summary=scalar(f'{split}/{name}', value)))
        self._writer.flush()

    def close(self) -> None:
        """Close the file. Raises OSError as `add` does."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
