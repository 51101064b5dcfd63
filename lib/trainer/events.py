"""TensorBoard's event file, written in step with the run."""

import os
import socket
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar


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
