"""Write checkpoints in a background thread while training continues: a snapshot in CPU memory, then the files."""

import threading
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch

from lib.errors import UserError
from lib.runtime.leaving import is_waiting
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.state import Checkpoint, TrainProgress, versions
from lib.trainer.run_folder import RunFolder


def snapshot(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy in CPU memory. Each tensor is copied once; tensors that share memory share their copy.

    Raises:
        ValueError: the checkpoint has no progress.
    """
    if checkpoint.progress is None:
        raise ValueError('a checkpoint of a run needs its progress')
    copier = _Copier()
    names = ('state_dict', 'training_state', 'optimizer', 'scaler', 'samples')
    copied = {name: copier(getattr(checkpoint, name)) for name in names}
    if checkpoint.classifier_shard is not None:
        shard = checkpoint.classifier_shard
        copied['classifier_shard'] = replace(shard, rows=copier(shard.rows))
    copier.finish()
    return replace(
        checkpoint, **copied, progress=copy(checkpoint.progress), rng=torch.get_rng_state(), versions=versions()
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
        """Wait for the copies from GPUs."""
        for stream in self._streams:
            stream.synchronize()

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        memory = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype)
        key = (*memory, tensor.shape, tensor.stride())
        if key not in self._copies:
            self._copies[key] = self._from_gpu(tensor) if tensor.device.type == 'cuda' else _from_cpu(tensor)
        return self._copies[key]

    def _from_gpu(self, tensor: torch.Tensor) -> torch.Tensor:
        try:
            copied = torch.empty_like(tensor, device='cpu', pin_memory=True)
        except RuntimeError:  # not enough memory can be pinned; pageable memory works, more slowly
            return tensor.cpu()
        self._streams.add(torch.cuda.current_stream(tensor.device))
        return copied.copy_(tensor, non_blocking=True)


def _from_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.device.type == 'cpu' else tensor.cpu()


class AsyncSaver:
    """Writes checkpoints into the run folder in a background thread, one at a time.

    As a context manager: leaving it waits for the current write; KeyboardInterrupt and SystemExit cancel the write, and
    leave an upload behind.

    Args:
        folder: folder of the run.
        on_failure: called in the thread when a required checkpoint could not be written.
    """

    def __init__(self, folder: RunFolder, on_failure: Callable[[], None] = lambda: None) -> None:
        self._folder, self._on_failure = folder, on_failure
        # Not Thread.join: after a signal handler has raised in it, Python 3.11 considers the thread finished.
        self._idle = threading.Event()
        self._idle.set()
        self._error: BaseException | None = None
        self._canceled, self._ending = threading.Event(), threading.Event()
        self.saved: tuple[int, int] | None = None  # position of the last checkpoint that was written

    def submit(
        self,
        make: Callable[[], Checkpoint],
        *,
        is_selected: bool = False,
        end_of_epoch: bool = False,
        may_fail: bool = False,
    ) -> None:
        """Take a snapshot of the checkpoint that `make` returns and write it in the background.

        Waits for the previous write first.

        Args:
            is_selected, end_of_epoch: which files to write, see RunFolder.save.
            may_fail: log a failure, here or on another rank, as a warning, since a later save will follow.

        Raises:
            OSError: the previous checkpoint could not be written.
        """
        self.wait()
        taken = snapshot(make())
        assert taken.progress is not None
        position = taken.progress.position

        def write() -> None:
            try:
                self._folder.save(
                    taken,
                    is_selected=is_selected,
                    end_of_epoch=end_of_epoch,
                    canceled=self._canceled.is_set,
                    ending=self._ending.is_set,
                )
                self.saved = position
            except (OSError, UserError) as error:
                if may_fail:
                    _warn(taken.progress, error)
                else:
                    self._fail(error)
            except BaseException as error:  # re-raised by wait(), in the main thread
                self._fail(error)
            finally:
                self._idle.set()

        thread = threading.Thread(target=write, name='saver', daemon=True)
        self._idle.clear()
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads, so nothing is being written
            self._idle.set()
            raise

    def wait(self) -> None:
        """Return once nothing is being written.

        Raises:
            OSError: a required checkpoint could not be written.
        """
        self._idle.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def hurry(self) -> None:
        """Shorten the wait for the shards of other ranks: the run ends by an error, possibly theirs."""
        self._ending.set()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._on_failure()

    def __enter__(self) -> 'AsyncSaver':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.wait()
            return
        self.hurry()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._canceled.set()
            while not (self._idle.wait(0.05) or is_waiting()):
                pass  # what is written to the disk is removed
        else:
            self._idle.wait()


def _warn(progress: TrainProgress | None, error: OSError | UserError) -> None:
    assert progress is not None
    reason = str(error)
    if isinstance(error, OSError):
        reason = f'{error.filename}: {(error.strerror or reason).lower()}'
    with suppress(OSError):  # log.txt may be on the same disk
        LOGGER.warning(
            'epoch %d, step %d not saved: %s; training continues with the last good checkpoint',
            progress.epoch + 1, progress.step, reason,
        )  # fmt: skip
