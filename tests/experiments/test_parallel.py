"""Runs in parallel: order, GPUs, failures, Ctrl-C. The scripts are fakes, the processes are real."""

import json
import os
import signal
import threading
import time

import pytest

from lib.experiments.grid import plan_runs
from lib.experiments.parallel import Runner, device_slots, last_error


def set_behaviors(grid, **by_run):
    (grid.repository / 'behaviors.json').write_text(json.dumps(by_run))


def run(grid, jobs=1, gpus=()):
    lines = []
    outcome = Runner(plan_runs(grid), device_slots(jobs, gpus), log=lines.append).run()
    assert all(len(line) <= 80 for line in lines), lines
    return outcome, '\n'.join(lines)


@pytest.mark.process
def test_all_steps_are_run_once(make_grid, calls, tmp_path):
    (tmp_path / 'data' / 'test').mkdir()
    grid = make_grid('crt,tau_norm')
    outcome, lines = run(grid)
    assert (outcome.failed, outcome.stopped) == ({}, False)
    assert '[3/3] tau_norm, seed 0: done in' in lines
    ce, crt, tau = 'tiny_ce_0', 'tiny_crt_0', 'tiny_tau_norm_0'
    assert calls() == [
        ('main.py', ce, 'last', '', '', ''),
        ('test.py', ce, ce, '', '', ''),
        ('main.py', crt, ce, 'finetune', '', ''),
        ('test.py', crt, crt, '', '', ''),
        ('tau_norm.py', tau, ce, '', '', ''),
        ('test.py', tau, tau, '', '', ''),
    ]
    again, lines = run(grid)
    assert again.failed == {}
    assert lines.count('already done') == 3
    assert len(calls()) == 6


@pytest.mark.process
def test_a_failed_run_is_reported_and_the_others_are_run(make_grid, calls):
    grid = make_grid('crt,focal,lws')
    set_behaviors(grid, tiny_ce_0='fails')
    outcome, lines = run(grid)
    assert outcome.failed == {
        'tiny_ce_0': 'train: the annotations hold no image of class 7, so it cannot be learned by this run',
        'tiny_crt_0': 'needs tiny_ce_0, which failed',
        'tiny_lws_0': 'needs tiny_ce_0, which failed',
    }
    assert 'FAILED: train: the annotations hold no image' in lines
    assert [name for _, name, *_ in calls()] == ['tiny_ce_0', 'tiny_focal_0']
    # Without the failure, the same grid runs what is left.
    set_behaviors(grid)
    assert run(grid)[0].failed == {}
    assert [name for _, name, *_ in calls()][2:] == ['tiny_ce_0', 'tiny_crt_0', 'tiny_lws_0']


@pytest.mark.process
def test_a_run_without_result_is_not_repeated(make_grid, calls):
    grid = make_grid('ce')
    set_behaviors(grid, tiny_ce_0='writes nothing')
    outcome, _ = run(grid)
    assert 'wrote no result' in outcome.failed['tiny_ce_0']
    assert len(calls()) == 1


@pytest.mark.process
def test_one_gpu_per_run(make_grid, calls):
    run(make_grid('ce,focal,ldam,crt', seeds=2), jobs=None, gpus=['2', '5'])
    assert {gpu for *_, gpu in calls()} == {'2', '5'}
    assert len(calls()) == 8


@pytest.mark.parametrize(
    ('jobs', 'gpus', 'expected'),
    [
        (None, [], ['']),
        (3, [], ['', '', '']),
        (None, ['0', '1'], ['0', '1']),
        (1, ['0', '1'], ['0']),
        (3, ['0', '1'], ['0', '1', '0']),
    ],
)
def test_device_slots(jobs, gpus, expected):
    assert device_slots(jobs, gpus) == expected


@pytest.mark.process
@pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reaches_each_run_once_and_starts_no_other(make_grid, calls, number):
    grid = make_grid('ce,focal,ldam')
    set_behaviors(grid, tiny_ce_0='hangs', tiny_focal_0='hangs')
    folders = [grid.out / 'runs' / f'tiny_{name}_0' for name in ('ce', 'focal')]

    def interrupt():
        end = time.monotonic() + 20
        while not all((folder / 'ready').exists() for folder in folders) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    waiting = threading.Thread(target=interrupt)
    waiting.start()
    outcome, lines = run(grid, jobs=2)
    waiting.join()
    assert (outcome.stopped, outcome.failed) == (True, {})
    assert [(folder / 'interrupts').read_text() for folder in folders] == ['1', '1']
    assert len(calls()) == 2
    assert lines.count(': stopped') == 2
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ('log', 'line'),
    [
        ('epoch 1\nerror: bad data\nwarning: x\n', 'bad data'),
        ('error: one\nerror: two\n', 'two'),
        ('Traceback\n  File "a"\nValueError: odd\n\n', 'ValueError: odd'),
        ('', 'ended without output'),
    ],
)
def test_last_error(log, line):
    assert last_error(log) == line


@pytest.mark.process
def test_only_the_output_of_the_last_step_is_reported(make_grid):
    grid = make_grid('ce')
    set_behaviors(grid, tiny_ce_0='fails')
    run(grid)
    # This time, it is killed without output.
    (grid.repository / 'main.py').write_text('import os\nos._exit(9)\n')
    assert run(grid)[0].failed == {'tiny_ce_0': 'train: ended without output'}
