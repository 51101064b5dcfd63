"""Stop and save requests (signals, timer, failed saves), agreed by all ranks so that they act after the same step."""

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
from lib.runtime.process import SAME_SIGNAL_SECONDS, handled_signals, raise_for


class Action(IntEnum):
    """An action after a step. The largest action of all ranks wins."""

    NOTHING = 0
    SAVE = 1
    GIVE_UP = 2  # the end of an epoch could not be saved
    INTERRUPT = 3
    HANG_UP = 4  # the terminal was closed
    TERMINATE = 5

    @property
    def stops(self) -> bool:
        """Return whether the run ends."""
        return self > Action.SAVE

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that requested it; None for the timer and for failures."""
        return _SIGNALS.get(self)


_SIGNALS = {Action.INTERRUPT: signal.SIGINT, Action.TERMINATE: signal.SIGTERM}
if hasattr(signal, 'SIGHUP'):  # Windows has none
    _SIGNALS[Action.HANG_UP] = signal.SIGHUP
_ACTIONS = {number: action for action, number in _SIGNALS.items()}


class StopRequested(Exception):
    """Ends the run by `action`; its position in the epoch is in the progress."""

    def __init__(self, action: Action) -> None:
        super().__init__(action.name)
        self.action = action


class StopController:
    """Collects the requests of signals, the timer and failures.

    Args:
        save_minutes: request a save whenever this time has passed since the last one; 0: never.
        group: ranks that must agree.
    """

    def __init__(self, *, save_minutes: float = 0.0, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._save_seconds = 60 * save_minutes
        self._group = group
        self._requested, self._requested_at = Action.NOTHING, 0.0  # by this process
        self._agreed = Action.NOTHING
        self._reduction: tuple[dist.Work, torch.Tensor] | None = None
        self.restart_timer()

    def restart_timer(self) -> None:
        """Restart the timer of saves, after a save."""
        self._saved_at = time.monotonic()

    def give_up(self) -> None:
        """Request the end of a run that cannot be saved. May be called from any thread."""
        self._requested = max(self._requested, Action.GIVE_UP)

    def poll(self, *, last: bool = False) -> Action:
        """Return the next action. All ranks call it once per step and get the same action.

        A single process gets its own request at once. Several ranks reduce their requests while the next step is
        computed, so that no rank waits, and get the result one step later. After the `last` step of an epoch, and
        between epochs, they wait for it, so that all of them do the same next.
        """
        if self._group.world_size == 1:
            return self._current_request()
        self._agreed = self._finish_reduction()
        if not self._agreed.stops:  # else all ranks stop, and none of them starts another reduction
            self._start_reduction(self._current_request())
            if last:
                self._agreed = max(self._agreed, self._finish_reduction())
        return self._agreed

    def check(self) -> None:
        """End work that can be repeated, such as a validation, when a single process is to stop.

        Ranks continue, since the others would wait for them; they agree afterwards.

        Raises:
            StopRequested: a stop was requested and there are no other ranks.
        """
        if self._group.world_size == 1 and self._requested.stops:
            raise StopRequested(self._requested)

    def check_together(self) -> None:
        """End work that can be repeated when any rank is to stop. All ranks call it, equally often.

        Raises:
            StopRequested: on all ranks.
        """
        if self._group.world_size > 1:
            self._start_reduction(self._requested)
            self._agreed = max(self._agreed, self._finish_reduction())
            if self._agreed.stops:
                raise StopRequested(self._agreed)
        self.check()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the first Ctrl-C, SIGTERM or SIGHUP within the block as a request; a second one ends the process.

        A SIGHUP that the caller ignores, as nohup does, remains ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only
            return
        before = {number: signal.signal(number, self._handle) for number in handled_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                # A rank that stops because of another rank may receive the same signal after it has finished.
                is_pending = number == self._agreed.signal and self._requested.signal is None
                signal.signal(number, _once_ignored(handler) if is_pending else handler or signal.SIG_DFL)

    def _handle(self, number: int, frame: object) -> None:
        if self._requested.signal is not None:
            if time.monotonic() - self._requested_at < SAME_SIGNAL_SECONDS:
                return
            raise_for(number)
        self._requested = _ACTIONS[signal.Signals(number)]
        self._requested_at = time.monotonic()
        name = 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name
        # The signal may interrupt the writing of another log line; then this one is omitted.
        with suppress(RuntimeError, OSError):
            LOGGER.info('%s: saving after this step; a second signal ends without saving', name)

    def _current_request(self) -> Action:
        if self._requested.stops:
            return self._requested
        # Only the main rank's timer counts: several timers would expire one after another.
        if self._save_seconds and self._group.is_main and time.monotonic() - self._saved_at >= self._save_seconds:
            self.restart_timer()
            return Action.SAVE
        return Action.NOTHING

    def _start_reduction(self, action: Action) -> None:
        value = torch.tensor(int(action))
        work = dist.all_reduce(value, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._reduction = work, value

    def _finish_reduction(self) -> Action:
        if self._reduction is None:
            return Action.NOTHING
        (work, value), self._reduction = self._reduction, None
        work.wait()
        return Action(int(value))


def _once_ignored(handler: Callable | signal.Handlers | int | None) -> Callable:
    """Return a handler that ignores one signal and then restores `handler`."""
    return lambda number, frame: signal.signal(number, handler or signal.SIG_DFL)
