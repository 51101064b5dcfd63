"""What is wished of a run under way: that it saves, or stops. All its processes act on a wish after the same step."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum

import torch
import torch.distributed as dist

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.runtime.log import LOGGER

# torchrun and batch systems tell a process what they have told its whole group already.
_SAME_SIGNAL_SECONDS = 1.0


class Action(IntEnum):
    """What to do after a step; of several ranks' wishes the largest counts."""

    NOTHING = 0
    SAVE = 1
    GIVE_UP = 2  # the end of an epoch could not be saved
    INTERRUPT = 3
    TERMINATE = 4

    @property
    def stops(self) -> bool:
        """Whether the run ends."""
        return self > Action.SAVE

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that it came by."""
        return {Action.INTERRUPT: signal.SIGINT, Action.TERMINATE: signal.SIGTERM}.get(self)


class StopRequested(Exception):
    """The run is to end, by `wish`; its place in the epoch is kept."""

    def __init__(self, wish: Action) -> None:
        super().__init__(wish.name)
        self.wish = wish


class StopController:
    """Wishes as signals, the clock and failures bring them.

    Args:
        save_minutes: wish to save whenever so many have passed since the last save; 0: never.
        ranks: that must agree.
    """

    def __init__(self, *, save_minutes: float = 0.0, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._save_seconds = 60 * save_minutes
        self._group = group
        self._own, self._since = Action.NOTHING, 0.0
        self._agreed = Action.NOTHING
        self._under_way: tuple[dist.Work, torch.Tensor] | None = None
        self.saved()

    def saved(self) -> None:
        """Let the clock start again."""
        self._saved = time.monotonic()

    def give_up(self) -> None:
        """Wish that the run ends, since it cannot be saved. May be called from any thread."""
        self._own = max(self._own, Action.GIVE_UP)

    def poll(self, *, last: bool = False) -> Action:
        """Return what to do now. All ranks call it once a step, and are told the same.

        One process is told at once. Several put their wishes together while the next step is computed, so that nobody
        waits for anybody, and are told one step later. After the `last` step of an epoch, and between epochs, they
        wait, so that what is done next is done by all.
        """
        if self._group.world_size == 1:
            return self._mine()
        self._agreed = self._outcome()
        if not self._agreed.stops:  # else all of them are told to stop, and nobody puts in another one
            self._put_in(self._mine())
            if last:
                self._agreed = max(self._agreed, self._outcome())
        return self._agreed

    def check(self) -> None:
        """Leave what can be done again, such as a validation, when this process is to stop.

        Where others would wait for it, it stays: they agree afterwards.

        Raises:
            Stopped: one process alone was told to stop.
        """
        if self._group.world_size == 1 and self._own.stops:
            raise StopRequested(self._own)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the first Ctrl-C or SIGTERM within the block; another one ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                # A rank that stops since another one was told to may be told so itself when all is done.
                is_to_come = number == self._agreed.signal and self._own.signal is None
                signal.signal(number, _once_ignored(handler) if is_to_come else handler or signal.SIG_DFL)

    def _note(self, number: int, frame: object) -> None:
        if self._own.signal is not None:
            if time.monotonic() - self._since < _SAME_SIGNAL_SECONDS:
                return
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self._own = Action.INTERRUPT if number == signal.SIGINT else Action.TERMINATE
        self._since = time.monotonic()
        name = 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name
        # In the middle of another line's writing there is no saying this one.
        with suppress(RuntimeError, OSError):
            LOGGER.info('%s: stopping after this step and saving; once more ends at once, without saving', name)

    def _mine(self) -> Action:
        if self._own.stops:
            return self._own
        # One clock for all: several would go off one after another.
        if self._save_seconds and self._group.is_main and time.monotonic() - self._saved >= self._save_seconds:
            self.saved()
            return Action.SAVE
        return Action.NOTHING

    def _put_in(self, wish: Action) -> None:
        value = torch.tensor(int(wish))
        self._under_way = dist.all_reduce(value, op=dist.ReduceOp.MAX, async_op=True), value

    def _outcome(self) -> Action:
        if self._under_way is None:
            return Action.NOTHING
        (work, value), self._under_way = self._under_way, None
        work.wait()
        return Action(int(value))


def _once_ignored(handler: Callable | signal.Handlers | None) -> Callable:
    """Return a handler that lets one signal pass; the next is for `handler` again."""
    return lambda number, frame: signal.signal(number, handler or signal.SIG_DFL)
