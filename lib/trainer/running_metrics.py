"""What training adds up over an epoch.

TensorBoard's event file, written in step with the run.
"""

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
    """What a step did: this rank's share of the batch's loss, and how many of its images were right; both scalars."""

    loss: torch.Tensor
    num_right: torch.Tensor


class RunningMetrics:
    """Running sums of an epoch, on the device until somebody looks.

    They are added up step by step from those of the place on, so that they do not depend on who looks when, nor on
    where the epoch was interrupted.
    """

    def __init__(self, place: TrainProgress, group: ProcessGroup, device: torch.device) -> None:
        self._place, self._group = place, group
        # MPS has no float64; float32 does for a figure that is looked at.
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        loss_sum, num_right = (place.loss_sum, place.num_right) if group.is_main else (0.0, 0)
        self._loss_sum = torch.tensor(loss_sum, dtype=dtype, device=device)  # loss times images
        self._num_right = torch.tensor(num_right, dtype=torch.int64, device=device)
        self._num_images = place.num_images
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, done: StepResult, num_images: int, step: int) -> None:
        """Add a step, of `num_images` over all ranks."""
        self._loss_sum += done.loss.to(self._loss_sum.dtype) * num_images
        self._num_right += done.num_right
        self._num_images += num_images
        first = (self._first_bad_step < 0) & ~torch.isfinite(done.loss)
        self._first_bad_step = torch.where(first, step, self._first_bad_step)

    def look(self) -> int:
        """Put the sums over all ranks into the place, and return the first step with a loss that is not finite.

        -1: there is none. All ranks look at the same step; it waits for the device.
        """
        self._place.loss_sum = float(self._group.all_reduce(self._loss_sum))
        self._place.num_right = int(self._group.all_reduce(self._num_right))
        self._place.num_images = self._num_images
        steps = [step for step in self._group.all_gather(self._first_bad_step).tolist() if step >= 0]
        return min(steps, default=-1)


class EventFile:
    """Curves of a run for TensorBoard.

    tensorboardX's own SummaryWriter writes from a thread, which on a full disk dies with a traceback while the run
    goes on. An epoch has a dozen numbers: they are written at once, and what fails is the run's own error.

    Args:
        folder: of the run; every start adds a file of its own.
        finished: epochs done before. Later ones are run (again), and what older files say of them is hidden.
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
