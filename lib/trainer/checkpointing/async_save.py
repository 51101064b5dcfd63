"""Writes checkpoints beside training."""

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.snapshot import snapshot
from lib.trainer.checkpointing.state import Checkpoint
from lib.trainer.run_folder import RunFolder


class Saver:
    """Hands checkpoints to a thread that writes them into the run folder, one at a time.

    As a context: leaving it waits for the write under way; when the process is to end at once, that is abandoned.

    Args:
        folder: of the run.
        on_failure: called in the thread when a checkpoint that must be written could not be.
    """

    def __init__(self, folder: RunFolder, on_failure: Callable[[], None] = lambda: None) -> None:
        self._folder, self._on_failure = folder, on_failure
        # Not Thread.join: once a signal's handler has raised in it, Python 3.11 takes the thread for ended.
        self._idle = threading.Event()
        self._idle.set()
        self._error: BaseException | None = None
        self._abandoned, self._ending = threading.Event(), threading.Event()
        self.saved: tuple[int, int] | None = None  # epoch and step of the last one that was written

    def submit(
        self,
        make: Callable[[], Checkpoint],
        *,
        is_best: bool = False,
        end_of_epoch: bool = False,
        may_fail: bool = False,
    ) -> None:
        """Take a snapshot of what `make` returns, and have it written. Waits first for the one before.

        Args:
            is_best, end_of_epoch: which files to write, see RunFolder.save.
            may_fail: a failure of the disk, here or on another rank, is a warning, since another save will come.

        Raises:
            OSError: that one could not be written.
        """
        self.wait()
        taken = snapshot(make())

        def write() -> None:
            try:
                self._folder.save(
                    taken,
                    is_best=is_best,
                    end_of_epoch=end_of_epoch,
                    abandoned=self._abandoned.is_set,
                    ending=self._ending.is_set,
                )
                self.saved = taken.place.so_far
            except (OSError, UserError) as error:
                if may_fail:
                    _warn(taken, error)
                else:
                    self._fail(error)
            except BaseException as error:  # whatever it is, it is raised where the run can be ended
                self._fail(error)
            finally:
                self._idle.set()

        thread = threading.Thread(target=write, name='saver')
        self._idle.clear()
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads, and nothing is being written
            self._idle.set()
            raise

    def wait(self) -> None:
        """Return once nothing is being written.

        Raises:
            OSError: what was being written could not be, and had to be.
        """
        self._idle.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def hurry(self) -> None:
        """Wait no longer for what other ranks write: the run ends by an error, which may be theirs."""
        self._ending.set()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._on_failure()

    def __enter__(self) -> 'Saver':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._abandoned.set()
        if error is None:
            self.wait()
        else:
            self.hurry()
            with suppress(Exception):  # the error on its way tells why the run ends
                self.wait()


def _warn(checkpoint: Checkpoint, error: OSError | UserError) -> None:
    place, reason = checkpoint.place, str(error)
    if isinstance(error, OSError):
        reason = f'{error.filename}: {(error.strerror or reason).lower()}'
    with suppress(OSError):  # log.txt may lie on the same disk
        LOGGER.warning(
            'epoch %d, step %d is not saved: %s; training goes on, and the last good checkpoint stays',
            place.epoch + 1, place.step, reason,
        )  # fmt: skip
