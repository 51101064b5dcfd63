"""Signals and the clock as wishes, and that several ranks act on them after the same step."""

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
    ('number', 'wish', 'second'),
    [(signal.SIGINT, Action.INTERRUPT, KeyboardInterrupt), (signal.SIGTERM, Action.TERMINATE, SystemExit)],
)
def test_the_first_signal_is_a_wish_and_a_later_one_the_end(monkeypatch, number, wish, second):
    before = signal.getsignal(number)
    wishes = StopController()
    with wishes.listening():
        assert wishes.poll() is Action.NOTHING
        wishes.check()
        signal.raise_signal(number)
        signal.raise_signal(number)  # the same one: a batch system tells the group, and torchrun its processes
        assert wishes.poll() is wish
        assert wishes.poll(last=True) is wish
        with pytest.raises(StopRequested) as stopped:
            wishes.check()
        assert stopped.value.wish.signal is number
        monkeypatch.setattr(module, '_SAME_SIGNAL_SECONDS', 0.0)
        with pytest.raises(second) as ended:
            signal.raise_signal(number)
        assert getattr(ended.value, 'code', 143) == 143
    assert signal.getsignal(number) is before


def test_saving_by_the_clock():
    wishes = StopController(save_minutes=0.2 / 60)
    assert wishes.poll() is Action.NOTHING
    time.sleep(0.2)
    assert [wishes.poll(), wishes.poll()] == [Action.SAVE, Action.NOTHING]
    time.sleep(0.2)
    wishes.saved()  # at the end of an epoch
    assert wishes.poll() is Action.NOTHING
    time.sleep(0.2)
    wishes.give_up()
    assert wishes.poll() is Action.GIVE_UP


def test_no_saving_within_epochs():
    wishes = StopController(save_minutes=0.0)
    wishes._saved -= 1e9
    assert wishes.poll() is Action.NOTHING


@pytest.mark.parametrize('wish', Action)
def test_what_stops_is_more_than_a_save(wish):
    assert wish.stops == (wish not in (Action.NOTHING, Action.SAVE))
    assert (wish.signal is not None) == (wish in (Action.INTERRUPT, Action.TERMINATE))


def ranks_told(folder, number_of_ranks, steps, **wished):
    """Return what each rank is told at each step; wished: name -> (rank, step)."""
    # Forked: only gloo runs in them, and importing torch again takes seconds.
    context = multiprocessing.get_context('fork')
    told = context.Queue()
    processes = [
        context.Process(target=_rank, args=(folder, rank, number_of_ranks, steps, wished, told))
        for rank in range(number_of_ranks)
    ]
    for process in processes:
        process.start()
    found = dict(told.get(timeout=30) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return [found[rank] for rank in range(number_of_ranks)]


def _rank(folder, rank, count, steps, wished, told):
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=count)
    # Only the main rank's clock counts; the others' would go off in every step.
    wishes = StopController(save_minutes=0 if rank == 0 else 1e-9, group=ProcessGroup(rank, count, rank))
    heard = []
    with wishes.listening():
        for step in range(1, steps + 1):
            if wished.get('signal') == (rank, step):
                os.kill(os.getpid(), signal.SIGTERM)
            if wished.get('failure') == (rank, step):
                wishes.give_up()
            if wished.get('save') == (rank, step):
                wishes._save_seconds, wishes._saved = 60, time.monotonic() - 60
            heard.append(wishes.poll(last=step == steps))
            time.sleep(0.01 * rank)
            if heard[-1].stops:
                break
    told.put((rank, [wish.name for wish in heard]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot fork')
@pytest.mark.parametrize(
    ('wished', 'expected'),
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
def test_ranks_are_told_the_same_at_the_same_step(tmp_path, wished, expected):
    assert ranks_told(tmp_path, 3, 5, **wished) == [expected] * 3


def test_a_rank_that_stopped_with_the_others_is_not_ended_by_its_own_signal():
    """It may come when all is done; the one after it counts."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        wishes = StopController(group=ProcessGroup(0, 2))
        with wishes.listening():
            wishes._agreed = Action.TERMINATE  # as another rank was told
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
