"""Requests of signals and the timer, and that several ranks act on them after the same step."""

import multiprocessing
import os
import signal
import time

import pytest
import torch.distributed as dist

from lib.distributed.process_group import ProcessGroup
from lib.trainer import stop_signal as module
from lib.trainer.stop_signal import Action, StopController, StopRequested


@pytest.mark.parametrize(
    ('number', 'action', 'second'),
    [
        (signal.SIGINT, Action.INTERRUPT, KeyboardInterrupt),
        (signal.SIGTERM, Action.TERMINATE, SystemExit),
        (signal.SIGHUP, Action.HANG_UP, SystemExit),
    ],
)
def test_the_first_signal_is_a_request_and_the_second_ends(monkeypatch, number, action, second):
    before = signal.getsignal(number)
    controller = StopController()
    with controller.listening():
        assert controller.poll() is Action.NOTHING
        controller.check()
        signal.raise_signal(number)
        signal.raise_signal(number)  # the same one: a batch system signals the group, then torchrun its processes
        assert controller.poll() is action
        assert controller.poll(last=True) is action
        with pytest.raises(StopRequested) as stopped:
            controller.check()
        assert stopped.value.action.signal is number
        monkeypatch.setattr(module, 'SAME_SIGNAL_SECONDS', 0.0)
        with pytest.raises(second) as ended:
            signal.raise_signal(number)
        assert getattr(ended.value, 'code', 128 + number) == 128 + number
    assert signal.getsignal(number) is before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        controller = StopController()
        with controller.listening():
            signal.raise_signal(signal.SIGHUP)
            assert controller.poll() is Action.NOTHING
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.long
def test_the_timer_requests_saves():
    controller = StopController(save_minutes=0.2 / 60)
    assert controller.poll() is Action.NOTHING
    time.sleep(0.2)
    assert [controller.poll(), controller.poll()] == [Action.SAVE, Action.NOTHING]
    time.sleep(0.2)
    controller.restart_timer()  # at the end of an epoch
    assert controller.poll() is Action.NOTHING
    time.sleep(0.2)
    controller.give_up()
    assert controller.poll() is Action.GIVE_UP


def test_no_timer():
    controller = StopController(save_minutes=0.0)
    controller._saved_at -= 1e9
    assert controller.poll() is Action.NOTHING


@pytest.mark.parametrize('action', Action)
def test_actions_that_stop(action):
    assert action.stops == (action not in (Action.NOTHING, Action.SAVE))
    assert (action.signal is not None) == (action in (Action.INTERRUPT, Action.HANG_UP, Action.TERMINATE))


def poll_ranks(folder, num_ranks, steps, **requests):
    """Return the actions that each rank polls; requests: name -> (rank, step)."""
    # Forked: only gloo runs in them, and importing torch again takes seconds.
    context = multiprocessing.get_context('fork')
    actions = context.Queue()
    processes = [
        context.Process(target=_rank, args=(folder, rank, num_ranks, steps, requests, actions))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    found = dict(actions.get(timeout=30) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return [found[rank] for rank in range(num_ranks)]


def _rank(folder, rank, count, steps, requests, actions):
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=count)
    # Only the main rank's timer counts; the others' would expire in every step.
    controller = StopController(save_minutes=0 if rank == 0 else 1e-9, group=ProcessGroup(rank, count, rank))
    received = []
    with controller.listening():
        for step in range(1, steps + 1):
            if requests.get('signal') == (rank, step):
                os.kill(os.getpid(), signal.SIGTERM)
            if requests.get('failure') == (rank, step):
                controller.give_up()
            if requests.get('save') == (rank, step):
                controller._save_seconds, controller._saved_at = 60, time.monotonic() - 60
            received.append(controller.poll(last=step == steps))
            time.sleep(0.01 * rank)
            if received[-1].stops:
                break
    actions.put((rank, [action.name for action in received]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot fork')
@pytest.mark.parametrize(
    ('requests', 'expected'),
    [
        ({}, ['NOTHING'] * 5),
        ({'signal': (1, 2)}, ['NOTHING', 'NOTHING', 'TERMINATE']),
        ({'signal': (1, 5)}, ['NOTHING'] * 4 + ['TERMINATE']),  # the last step waits
        ({'signal': (1, 4), 'save': (0, 4)}, ['NOTHING'] * 4 + ['TERMINATE']),
        ({'save': (0, 3)}, ['NOTHING', 'NOTHING', 'NOTHING', 'SAVE', 'NOTHING']),
        ({'save': (0, 5)}, ['NOTHING'] * 4 + ['SAVE']),
        ({'failure': (0, 1), 'signal': (2, 3)}, ['NOTHING', 'GIVE_UP']),
    ],
)
def test_ranks_poll_the_same_action_after_the_same_step(tmp_path, requests, expected):
    assert poll_ranks(tmp_path, 3, 5, **requests) == [expected] * 3


def test_a_late_signal_does_not_end_a_rank_that_has_stopped():
    """It may arrive after the run has finished; the next signal counts."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        controller = StopController(group=ProcessGroup(0, 2))
        with controller.listening():
            controller._agreed = Action.TERMINATE  # as another rank requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
