"""Writes checkpoints beside training.

A checkpoint of this very moment, which stays what it is while training goes on.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch

from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.state import Checkpoint, versions
from lib.trainer.run_folder import RunFolder


def snapshot(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy in the CPU's memory; every tensor is copied once, whatever shares it shares the copy."""
    copier = _Copier()
    names = ('state_dict', 'training_state', 'optimizer', 'scaler')
    copied = {name: copier(getattr(checkpoint, name)) for name in names}
    if checkpoint.head is not None:
        copied['head'] = replace(checkpoint.head, rows=copier(checkpoint.head.rows))
    copier.finish()
    return replace(
        checkpoint, **copied, progress=replace(checkpoint.progress), rng=torch.get_rng_state(), versions=versions()
    )


class _Copier:
    """Copies trees of dicts, lists and tensors."""

    def __init__(self) -> None:
        self._copies: dict[tuple, torch.Tensor] = {}
        self._streams: set[torch.cuda.Stream] = set()

    def __call__(self, tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            return self._tensor(tree)
        if isinstance(tree, dict):
            return {name: self(value) for name, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(self(value) for value in tree)
        return tree

    def finish(self) -> None:
        """Wait for copies from GPUs."""
        for stream in self._streams:
            stream.synchronize()

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype)
        key = (*place, tensor.shape, tensor.stride())
        if key not in self._copies:
            self._copies[key] = self._from_gpu(tensor) if tensor.device.type == 'cuda' else _from_cpu(tensor)
        return self._copies[key]

    def _from_gpu(self, tensor: torch.Tensor) -> torch.Tensor:
        try:
            copy = torch.empty_like(tensor, device='cpu', pin_memory=True)
        except RuntimeError:  # so much memory cannot be pinned; any other will do, more slowly
            return tensor.cpu()
        self._streams.add(torch.cuda.current_stream(tensor.device))
        return copy.copy_(tensor, non_blocking=True)


def _from_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.device.type == 'cpu' else tensor.cpu()


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
                self.saved = taken.progress.position
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
    place, reason = checkpoint.progress, str(error)
    if isinstance(error, OSError):
        reason = f'{error.filename}: {(error.strerror or reason).lower()}'
    with suppress(OSError):  # log.txt may lie on the same disk
        LOGGER.warning(
            'epoch %d, step %d is not saved: %s; training goes on, and the last good checkpoint stays',
            place.epoch + 1, place.step, reason,
        )  # fmt: skip
