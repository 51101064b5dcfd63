"""Records of a run in experiment trackers, kept equal to metrics.jsonl.

A tracker never changes a point that it was sent: after a second one of the same step, MLflow shows both. Therefore, the
metrics of an epoch are sent once a checkpoint holds them. A run that is killed resumes from that checkpoint or a later
one, so no epoch that was sent runs again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec

from lib.errors import UserError, shown
from lib.runtime.files import write_json
from lib.runtime.json_file import numbers_in, read_json
from lib.runtime.log import LOGGER
from lib.runtime.read_file import read_text
from lib.trainer.run_folder import RunFolder
from lib.trainer.tracker_records import ENDED, FAILED, RECORDS, STOPPED, Parameters, Record, RecordPlace

TENSORBOARD = 'tensorboard'
_FILE = 'trackers.json'
_VARIABLES = {
    'mlflow': 'MLFLOW_TRACKING_URI to a server that answers',
    'wandb': 'WANDB_API_KEY, or WANDB_MODE=offline',
}
_USER_INFO = re.compile(r'(?<=://)[^/\s]*@')


class Trackers:
    """The records of one run, written from a separate thread: a slow or absent server never delays a step.

    Args:
        folder: folder of the run; on other ranks than the main one, nothing is recorded.
        names: some of tensorboard, mlflow and wandb. TensorBoard's events are written by lib.trainer.run_log.
    """

    def __init__(self, folder: RunFolder, names: Sequence[str] = (TENSORBOARD,)) -> None:
        self._folder = folder
        self.has_events = folder.writes and TENSORBOARD in names
        self._names = [name for name in RECORDS if name in names and folder.writes]
        self._records: dict[str, Record] = {}
        self._failed: dict[str, str] = {}  # name -> reason, while a tracker cannot be reached
        self._saved_epoch = -1
        self._status = STOPPED
        self._thread = ThreadPoolExecutor(1, thread_name_prefix='trackers')
        self._job: Future[None] | None = None

    @contextmanager
    def recording(self, name: str, parameters: Parameters) -> Iterator[None]:
        """Begin or continue the records, and set the state of the run at the end of the block.

        Call it while holding the folder's lock, when metrics.jsonl is as in the checkpoint to resume. The tags are the
        lines of environment.txt.

        Args:
            name: name of the run.
            parameters: config of the run.

        Raises:
            UserError: a package is not installed, or a record cannot be written.
        """
        if not self._names:
            yield
            return
        history = self._folder.history()
        self._saved_epoch = max((entry['epoch'] for entry in history), default=-1)
        try:
            for tracker in self._names:
                self._start(tracker, name, parameters)
            yield
        except (KeyboardInterrupt, SystemExit):
            self._end(STOPPED)
            raise
        except BaseException:
            self._end(FAILED)
            raise
        self._end(self._status)

    def send(self, position: tuple[int, int] | None) -> None:
        """Record the epochs until `position`, (epoch, step) of a checkpoint that was written, in the background.

        What could not be sent before is sent, too. While the thread is busy, nothing is done.
        """
        if position is not None:
            self._saved_epoch = position[0]
        if self._records and (self._job is None or self._job.done()):
            self._job = self._thread.submit(self._sync)

    def finish(self, best: Mapping[str, float], files: Sequence[Path]) -> None:
        """Record all epochs, the metrics of the best model, and files or folders of a run that has ended."""
        self._status = ENDED
        if not self._records:
            return
        self._wait()
        self._sync(last=True)
        metrics = {f'best/{name}': value for name, value in numbers_in(best).items()}
        present = [path for path in files if path.exists()]
        for tracker in self._records.keys() - self._failed.keys():
            try:
                self._records[tracker].add_result(self._saved_epoch, metrics, present)
                LOGGER.info('%s: %d file%s recorded', tracker, len(present), '' if len(present) == 1 else 's')
            except Exception as error:
                self._give_up(tracker, error, f'files are not recorded, but in {self._folder.path}')

    def _start(self, tracker: str, name: str, parameters: Parameters) -> None:
        places, folder, make = self._places(), self._folder.path, RECORDS[tracker]
        lines = read_text(folder / 'environment.txt').splitlines()
        tags = {key: value for key, _, value in (line.partition(': ') for line in lines)}
        try:
            record: Record = make(places.get(tracker), name, parameters, tags, folder)
            if record.last_epoch() > self._saved_epoch:
                # Those epochs will run again, since no checkpoint that can be read has them.
                LOGGER.info('%s: run %s has later epochs, so a new one begins', tracker, record.id)
                record.end(STOPPED)
                record = make(None, name, parameters, tags, folder)
            self._records[tracker] = record
            last = record.last_epoch()
            LOGGER.info('%s: run %s, %s', tracker, record.id, 'new' if last < 0 else f'continued after epoch {last}')
            self._write_place(tracker)
            self._add_missing(tracker)
        except ModuleNotFoundError as error:
            raise UserError(
                f'LOG.TRACKERS {tracker}: the package {error.name} is not installed; type: python -m pip install -r '
                'requirements-tracking.txt'
            ) from None
        except UserError:
            raise
        except Exception as error:  # of any kind: the packages have many
            raise UserError(
                f'LOG.TRACKERS {tracker}: the run cannot be recorded ({_reason(error)}); set {_VARIABLES[tracker]}, or '
                f'leave {tracker} out of LOG.TRACKERS'
            ) from None

    def _sync(self, *, last: bool = False) -> None:
        """Send the epochs that are saved and not recorded; log the first failure of a tracker, and its end."""
        for tracker, record in self._records.items():
            try:
                self._add_missing(tracker)
                if self._failed.pop(tracker, None) is not None:
                    LOGGER.info('%s: recorded again, up to epoch %d', tracker, record.last_epoch())
            except Exception as error:  # training continues whatever happens there
                if last:
                    self._give_up(tracker, error, f'metrics and files are in {self._folder.path}')
                elif tracker not in self._failed:
                    LOGGER.warning('%s: not recorded, tried again after the next epoch (%s)', tracker, _reason(error))
                self._failed[tracker] = _reason(error)

    def _add_missing(self, tracker: str) -> None:
        record, last = self._records[tracker], self._records[tracker].last_epoch()
        epochs: dict[int, dict[str, float]] = {}
        for entry in self._folder.history():
            if last < entry['epoch'] <= self._saved_epoch:
                split, numbers = entry.get('split', 'train'), numbers_in(entry)
                named = {f'{split}/{name}': value for name, value in numbers.items() if name != 'epoch'}
                epochs.setdefault(entry['epoch'], {}).update(named)
        for epoch, metrics in epochs.items():
            record.add(epoch, metrics)
            self._write_place(tracker)

    def _give_up(self, tracker: str, error: Exception, rest: str) -> None:
        LOGGER.warning('%s: given up (%s); %s', tracker, _reason(error), rest)

    def _end(self, status: str) -> None:
        self._wait()
        if status == STOPPED:
            self._sync(last=True)
        for tracker, record in self._records.items():
            try:
                record.end(status)
            except Exception as error:
                if tracker not in self._failed:
                    self._give_up(tracker, error, f'the run is not marked as {status}')
        self._records.clear()
        self._thread.shutdown()

    def _wait(self) -> None:
        if self._job is not None:
            self._job.result()

    def _places(self) -> dict[str, RecordPlace]:
        path = self._folder.path / _FILE
        return read_json(path, dict[str, RecordPlace], hint='; remove it to begin new records') if path.exists() else {}

    def _write_place(self, tracker: str) -> None:
        record = self._records[tracker]
        places = {**self._places(), tracker: RecordPlace(record.id, record.last_epoch())}
        write_json(self._folder.path / _FILE, msgspec.to_builtins(places))


def _reason(error: Exception) -> str:
    """Return a shortened message in one line, without the user name and password of a URL."""
    return shown(RuntimeError(_USER_INFO.sub('', str(error)) or type(error).__name__))
