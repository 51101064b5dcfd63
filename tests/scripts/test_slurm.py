"""The job script of docs/distributed.md under a real Slurm: time limit, SIGTERM, requeue, cancel, a killed rank."""

import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.rank_runs import start_ranks
from tests.scripts.running import ENVIRONMENT, REPOSITORY, TINY, check_same_run
from tests.slurm_server import Slurm, missing, slurm_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(
        bool(missing()),
        reason=f'not installed: {", ".join(missing())} (Debian: slurm-wlm and munge), so no Slurm is started',
    ),
]
PAGE = REPOSITORY / 'docs' / 'distributed.md'
SCRIPT = re.compile(r'```sh\n(#!/bin/bash\n#SBATCH .*?)```', re.DOTALL)
# The page's script asks for 8 nodes with 8 GPUs each; the rest of it runs as it is.
TWO_NODES = ('--nodes', 2, '--ntasks-per-node', 1, '--gpus-per-node', 1, '--cpus-per-task', 1)
ENDED = ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL', 'OUT_OF_MEMORY')


@pytest.fixture(scope='module')
def slurm() -> Iterator[Slurm]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix='slurm') as folder:
        # Jobs inherit the environment of sbatch.
        patch.setenv('PATH', f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with slurm_server(Path(folder)) as server:
            yield server


class Job:
    """A training run by the page's script, in a folder with log/run."""

    def __init__(self, slurm: Slurm, folder: Path, products: Path, *options: object, sbatch: tuple = ()) -> None:
        folder.mkdir(exist_ok=True)
        script, self.output = folder / 'train.sh', folder / 'job.txt'
        script.write_text(SCRIPT.search(PAGE.read_text(encoding='utf-8'))[1])
        self.slurm, self.run = slurm, folder / 'log' / 'run'
        arguments = (*options_of(products, *options), '--LOG_ROOT', folder / 'log')
        self.number = slurm.submit(
            script, *TWO_NODES, '--output', self.output, *sbatch, arguments=arguments, cwd=REPOSITORY
        )

    def wait_for(self, text: str, count: int = 1, seconds: float = 1800) -> None:
        """Return once the output contains `text`, `count` times; the job must not end before."""
        end = time.monotonic() + seconds
        while True:
            state = self.slurm.job(self.number)['JobState']
            output = self.output.read_text() if self.output.exists() else ''
            if output.count(text) >= count:
                return
            assert state not in ENDED, f'{text!r} is not in the output of the job, which is {state}: {output}'
            assert time.monotonic() < end, f'{text!r} is not in the output after {seconds:.0f} s: {output}'
            time.sleep(0.2)

    def wait(self, state: str, seconds: float = 1800) -> dict[str, str]:
        """Return the fields of the job once it has ended in `state`."""
        job = self.slurm.wait(self.number, lambda job: job['JobState'] in ENDED, seconds)
        assert job['JobState'] == state, f'{job}\n{self.output.read_text()}'
        return job


def options_of(products: Path, *options: object) -> tuple:
    return ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', *options)


def uninterrupted(scripts, products, folder: Path, epochs: int) -> tuple[float, Path]:
    """Train on two ranks without Slurm; return the seconds until the first step, and the run folder."""
    folder.mkdir()
    started = time.monotonic()
    running = start_ranks(scripts, 2, folder, 'main.py', *options_of(products, '--TRAIN_MAX_EPOCH', epochs))
    running[0].wait_for('epoch 1, step 1 of', 1800)
    seconds = time.monotonic() - started
    running[0].wait_for('selected epoch', 3600)
    for one in running:
        one.wait()
    return seconds, folder / 'log' / 'run'


def test_sigterm_and_requeue(slurm, scripts, products, tmp_path):
    """The ranks get SIGTERM by scancel and at a requeue from outside; each time, the job resumes."""
    job = Job(slurm, tmp_path / 'job', products, '--TRAIN_MAX_EPOCH', 30)
    job.wait_for('epoch 3, step 1 of')
    slurm.run('scancel', '--signal=TERM', job.number)  # to the ranks, not to the script
    job.wait_for('resuming from')
    job.wait_for('epoch 15, step 1 of')
    slurm.run('scontrol', 'requeue', job.number)  # to all
    job.wait_for('resuming from', 2)
    assert job.wait('COMPLETED')['Restarts'] == '2'
    output = job.output.read_text()
    assert output.count('stopped and saved') == 2, output
    assert 'error: rank' not in output, output
    _, whole = uninterrupted(scripts, products, tmp_path / 'whole', 30)
    check_same_run(job.run, whole)


def test_time_limit(slurm, scripts, products, tmp_path):
    """A run that is longer than a job takes several of them. Slurm sends SIGTERM up to 30 s too early."""
    early = 75  # more than the 60 s after which srun kills the ranks that a signal does not end while they start
    for epochs in (50, 200, 800, 3200):
        began = time.monotonic()
        start, whole = uninterrupted(scripts, products, tmp_path / f'{epochs}', epochs)
        minutes = math.ceil((2 * start + 30 + early) / 60)
        if time.monotonic() - began > 60 * minutes - early:
            break
    limit = ('--time', minutes, '--signal', f'TERM@{early}')
    job = Job(slurm, tmp_path / 'job', products, '--TRAIN_MAX_EPOCH', epochs, sbatch=limit)
    restarts = int(job.wait('COMPLETED', 3600)['Restarts'])
    output = job.output.read_text()
    assert restarts >= 1, output
    assert 'stopped and saved' in output, output  # not each time: it may be writing its report
    assert 'error: rank' not in output, output
    check_same_run(job.run, whole)


def test_cancelled(slurm, products, tmp_path):
    """scancel ends the job for good, but the run is saved."""
    job = Job(slurm, tmp_path / 'job', products, '--TRAIN_MAX_EPOCH', 1000)
    job.wait_for('epoch 2, step 1 of')
    slurm.run('scancel', job.number)
    assert job.wait('CANCELLED')['Restarts'] == '0'
    job.wait_for('stopped and saved')
    assert read_checkpoint(job.run / 'last.pth').progress.epoch >= 1


def test_a_killed_rank(slurm, products, tmp_path):
    """The job fails, within the time that srun gives the other ranks, and is not requeued."""
    job = Job(slurm, tmp_path / 'job', products, '--TRAIN_MAX_EPOCH', 1000)
    job.wait_for('epoch 2, step 1 of')
    slurm.run('scancel', '--signal=KILL', f'{job.number}.0')
    ended = job.wait('FAILED', 300)
    assert (ended['Restarts'], ended['ExitCode']) == ('0', '137:0')
