"""Runs that are killed, preempted or out of disk space at any moment: files are whole, runs resume bit for bit."""

import os
import random
import signal
import time
from itertools import cycle, islice

import pytest

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import (
    ENVIRONMENT,
    REPOSITORY,
    TINY,
    check_same_run,
    error_line,
    metrics_of,
    processes_of_group,
    wait_until_gone,
)

# 51 images, 6 steps per epoch.
STEPS = 6
LAST = ('--RESUME_MODEL', 'last')
IN_PHASES = 'tests/scripts/in_phases.py'
PHASES = ('step', 'save', 'valid', '')


@pytest.fixture(scope='module')
def options(products):
    # Saves after every step, unless the previous save is still being written.
    often = ('--TRAIN_CHECKPOINT_MINUTES', 1e-6, '--TRAIN_KEEP_EPOCHS', 1, '--TRAIN_SAVE_EVERY_EPOCHS', 2)
    return ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', '--SEED', 3, *often)


@pytest.fixture(scope='module')
def uninterrupted(scripts, options, tmp_path_factory):
    """A function: epochs -> the folder of an uninterrupted run."""
    folder, done = tmp_path_factory.mktemp('uninterrupted'), {}

    def run(epochs):
        if epochs not in done:
            place = folder / str(epochs)
            place.mkdir()
            scripts.run(place, 'main.py', *options, '--TRAIN_MAX_EPOCH', epochs, '--TRAIN_CHECKPOINT_MINUTES', 0)
            done[epochs] = place / 'log' / 'run'
        return done[epochs]

    return run


class Victim:
    """A run that is killed repeatedly."""

    def __init__(self, scripts, folder, *options, slow=(0.01, 0.01, 0.05)):
        self.scripts, self.folder = scripts, folder
        self.command = (*slow, REPOSITORY / 'main.py', *options)
        self.run = folder / 'log' / 'run'

    def start(self):
        resume = LAST if (self.run / 'log.txt').exists() else ()
        self.running = self.scripts.start(self.folder, IN_PHASES, *self.command, *resume)
        return self.running

    def reach(self, dice, phase):
        """Wait for a random moment of a phase ('': of the run); return the last lines of its output."""
        self.running.wait_for('phase: ')
        if phase:
            self.running.wait_for(f'phase: {phase}')
            time.sleep(dice.uniform(0, 0.05))
        else:
            time.sleep(dice.uniform(0, 0.6))
        return self.running.stdout.read_text().rpartition('phase: ')[2].split()[0]


def killed_repeatedly(scripts, folder, options, epochs, times, seed):
    dice = random.Random(seed)
    victim = Victim(scripts, folder, *options, '--TRAIN_MAX_EPOCH', epochs)
    halves, places = 0, []
    for phase in islice(cycle(PHASES), times):
        running = victim.start()
        at = victim.reach(dice, phase)
        os.kill(running.process, signal.SIGKILL)
        assert running.wait(None).returncode == -9, f'seed {seed}: it came to its end; train more epochs'
        wait_until_gone(running.process)
        halves += len(list(victim.run.glob('.*.tmp.pth')))
        if (victim.run / 'last.pth').exists():
            places.append(read_checkpoint(victim.run / 'last.pth').progress.position)
        print(f'killed for {phase or "nothing"} at {at}, saved {places[-1:]}')
    assert halves, 'not one save was hit'
    assert places == sorted(places), 'an older state replaced a newer one'
    scripts.run(folder, 'main.py', *options, '--TRAIN_MAX_EPOCH', epochs, *LAST)
    return victim.run


def check_whole(run, expected, epochs):
    check_same_run(run, expected)
    lines = [(line['epoch'], line['split']) for line in metrics_of(run)]
    assert lines == [(epoch + 1, split) for epoch in range(epochs) for split in ('train', 'valid')]
    assert not list(run.glob('.*.tmp*'))
    assert {path.name for path in run.glob('*.pth')} == {path.name for path in expected.glob('*.pth')}


def test_killed(scripts, options, uninterrupted, tmp_path, seed):
    run = killed_repeatedly(scripts, tmp_path, options, 6, 5, seed)
    check_whole(run, uninterrupted(6), 6)


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_killed_twenty_times(scripts, options, uninterrupted, tmp_path, seed, workers):
    options = (*options, '--RUN_NUM_WORKERS', workers)
    run = killed_repeatedly(scripts, tmp_path, options, 30, 20, seed)
    check_whole(run, uninterrupted(30), 30)


def test_killed_with_its_workers(scripts, options, tmp_path):
    """No process remains: neither the workers that read images nor their parent."""
    victim = Victim(scripts, tmp_path, *options, '--RUN_NUM_WORKERS', 2)
    running = victim.start()
    running.wait_for('phase: step')
    assert len(processes_of_group(running.process)) >= 4
    os.kill(running.process, signal.SIGKILL)
    running.wait(-9)
    wait_until_gone(running.process)


@pytest.mark.parametrize(
    'phase', ['step', *(pytest.param(phase, marks=pytest.mark.slow) for phase in ('valid', 'save', ''))]
)
def test_preempted(scripts, options, uninterrupted, tmp_path, seed, phase):
    # A batch of validation takes longer than the test waits.
    slow = (0.01, 0.01, 1.0 if phase == 'valid' else 0.01)
    victim = Victim(scripts, tmp_path, *options, '--TRAIN_MAX_EPOCH', 3, slow=slow)
    running = victim.start()
    victim.reach(random.Random(seed), phase)
    os.kill(running.process, signal.SIGTERM)
    done = running.wait(143)
    assert 'SIGTERM: saving after this step' in done.stdout
    assert 'to resume: --RESUME_MODEL last (NAME run)' in done.stdout
    assert done.stderr == ''
    if phase == 'valid':
        assert read_checkpoint(victim.run / 'last.pth').progress.position == (0, STEPS)
        assert not (victim.run / 'best_model.pth').exists()
    scripts.run(tmp_path, 'main.py', *options, '--TRAIN_MAX_EPOCH', 3, *LAST)
    check_whole(victim.run, uninterrupted(3), 3)


@pytest.mark.parametrize('wait_in', ['step', pytest.param('valid', marks=pytest.mark.slow)])
def test_preempted_as_a_group(scripts, options, uninterrupted, tmp_path, wait_in):
    """Batch systems signal every process; the workers that read images are still needed."""
    options = (*options, '--TRAIN_MAX_EPOCH', 3)
    victim = Victim(scripts, tmp_path, *options, '--RUN_NUM_WORKERS', 2, slow=(0.1, 0, 0.2))
    running = victim.start()
    running.wait_for(f'phase: {wait_in}')
    os.killpg(running.process, signal.SIGTERM)
    done = running.wait(143)
    assert 'stopped and saved' in done.stdout
    assert done.stderr == ''
    wait_until_gone(running.process)
    scripts.run(tmp_path, 'main.py', *options, *LAST)
    check_whole(victim.run, uninterrupted(3), 3)


@pytest.mark.slow
def test_preempted_repeatedly(scripts, options, uninterrupted, tmp_path):
    """After every few steps, with other numbers of workers, once in another folder."""
    for workers, resume in ((0, ()), (2, LAST), (0, LAST)):
        scripts.run_until(
            tmp_path, 'SIGTERM', 'lib.trainer.step:TrainStep.__call__', 4, *options, '--TRAIN_MAX_EPOCH', 3,
            '--RUN_NUM_WORKERS', workers, *resume, code=143,
        )  # fmt: skip
    log = tmp_path / 'log'
    assert read_checkpoint(log / 'run' / 'last.pth').progress.position == (1, STEPS)
    last = ('--RESUME_MODEL', 'log/run/last.pth', '--NAME', 'copy')
    scripts.run(tmp_path, 'main.py', *options, '--TRAIN_MAX_EPOCH', 3, *last)
    # The metrics of earlier epochs come from the checkpoint; best_model.pth stays in its folder.
    check_same_run(log / 'copy', uninterrupted(3), ['last.pth'])


def test_restarted_by_torchrun(scripts, options, uninterrupted, tmp_path):
    """It repeats the first command line, even with OVERWRITE; the run is resumed."""
    options = (*options, '--TRAIN_MAX_EPOCH', 3, '--OVERWRITE', True)
    scripts.run_until(tmp_path, 'SIGTERM', 'lib.trainer.step:TrainStep.__call__', 4, *options, code=143)
    again = ENVIRONMENT | {'TORCHELASTIC_RESTART_COUNT': '1'}
    done = scripts.start(tmp_path, 'main.py', *options, environment=again).wait()
    assert 'resuming from' in done.stdout
    assert [path.name for path in (tmp_path / 'log').iterdir()] == ['run']
    check_whole(tmp_path / 'log' / 'run', uninterrupted(3), 3)


def test_a_second_signal_ends_at_once(scripts, options, tmp_path):
    victim = Victim(scripts, tmp_path, *options, '--TRAIN_CHECKPOINT_MINUTES', 0, slow=(0.01, 0.3, 0))
    running = victim.start()
    running.wait_for('phase: step')
    os.kill(running.process, signal.SIGTERM)
    running.wait_for('phase: save')
    time.sleep(0.2)
    os.kill(running.process, signal.SIGTERM)  # as torchrun does: the same signal again
    time.sleep(1.0)
    os.kill(running.process, signal.SIGTERM)
    started = time.monotonic()
    done = running.wait(143)
    assert time.monotonic() - started < 2.5
    assert 'stopped and saved' not in done.stdout
    assert done.stderr == ''
    assert not list(victim.run.glob('*.pth'))
    assert not list(victim.run.glob('.*.tmp.pth'))


@pytest.mark.parametrize(
    'freed',
    [
        pytest.param(True, id='freed in time', marks=pytest.mark.slow),
        pytest.param(False, id='full at the end of the epoch'),
    ],
)
def test_a_disk_that_fills_up(scripts, options, small_disk, tmp_path, freed):
    disk = small_disk(40_000)
    long = ('--LOG_ROOT', disk, '--TRAIN_BATCH_SIZE', 2, '--TRAIN_MAX_EPOCH', 1, '--TRAIN_LOG_EVERY_STEPS', 5)
    victim = Victim(scripts, tmp_path, *options, *long, slow=(0.1, 0.0, 0.0))
    running = victim.start()
    last, filler = disk / 'run' / 'last.pth', disk / 'filler'
    end = time.monotonic() + 30
    while not last.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    with open(filler, 'wb') as file:
        # The space of a current save may or may not be freed before it ends.
        while free := _free(disk) - (1 << 20):
            if free < 0:
                break
            file.write(bytes(min(free, 1 << 20)))
            file.flush()
    running.wait_for('step 20 of 25')
    assert _free(disk) < 2 << 20
    if freed:
        filler.unlink()
    done = running.wait(None)
    warnings = [line for line in done.stderr.splitlines() if line.startswith('warning: ')]
    assert warnings
    for line in warnings:
        assert 'not saved: ' in line
        assert 'run/last.pth: no space left on device; training continues with the last good checkpoint' in line
    place = read_checkpoint(last).progress
    if freed:
        assert done.returncode == 0
        assert place.position == (1, 0)
    else:
        line = error_line(done)
        assert 'no space left on the device while writing' in line
        assert 'earlier files are unchanged' in line
        assert place.epoch == 0
        assert 0 < place.step < 25
    assert not list((disk / 'run').glob('.*.tmp*'))


def _free(disk):
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
