"""The commands of the documentation, by torchrun itself, which takes seconds to start."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ENVIRONMENT, ON_CPU, REPOSITORY, TINY, check_same_run, wait_until_gone

pytestmark = [pytest.mark.slow, pytest.mark.process]
# Seconds that it waits for processes that it has signaled to end.
TORCHRUN_SECONDS = 30


@dataclass
class Torchrun:
    """A running job, in a new process group."""

    process: subprocess.Popen
    stdout: Path
    stderr: Path

    def wait_for(self, text, file, seconds=60):
        """Return once one of the files contains `text`."""
        end = time.monotonic() + seconds
        while text not in file.read_text():
            assert time.monotonic() < end, f'{text!r} was not said: {self.stdout.read_text()}{self.stderr.read_text()}'
            time.sleep(0.02)

    def wait(self, code, seconds=120):
        """Return (output, errors) once it has ended with `code` and no process is left."""
        found = self.process.wait(seconds)
        assert found == code, self.stdout.read_text() + self.stderr.read_text()
        wait_until_gone(self.process.pid)
        return self.stdout.read_text(), self.stderr.read_text()


@pytest.fixture
def torchrun(tmp_path):
    """A function that starts a script on some ranks in a folder; no process remains after the test."""
    started = []

    def start(folder, count, script, *options, restarts=0):
        folder.mkdir(exist_ok=True)
        logs = [tmp_path / f'{len(started)}.{name}' for name in ('stdout', 'stderr')]
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(count),
                   '--max-restarts', str(restarts)]  # fmt: skip
        with open(logs[0], 'w') as out, open(logs[1], 'w') as err:
            process = subprocess.Popen(
                [*command, str(REPOSITORY / script), *map(str, options)],
                cwd=folder, env=os.environ | ENVIRONMENT, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        started.append(Torchrun(process, *logs))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def options_of(products, *options):
    return ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', *options)


def check_one_rank_logs(output, errors):
    lines = output.partition('next steps')[0].splitlines()  # these repeat options
    assert len(set(lines)) == len(lines), output
    assert 'destroy_process_group' not in errors


def test_the_scripts(torchrun, scripts, products, tmp_path):
    """Training, a mistake, prediction and re-balancing, with the results of one process."""
    folder = tmp_path / 'job'
    output, errors = torchrun(folder, 2, 'main.py', *options_of(products)).wait(0)
    check_one_rank_logs(output, errors)
    run = folder / 'log' / 'run'
    assert (run / 'report.html').exists()
    _, errors = torchrun(folder, 2, 'main.py', *options_of(products)).wait(1)
    assert 'error: rank 0: log/run holds the checkpoints of an earlier run' in errors
    assert errors.count('error: rank') == 1  # all ranks find it
    assert 'Root Cause' in errors
    assert 'traceback : log/run holds the checkpoints of an earlier run' in errors
    best = ('--RESUME_MODEL', run / 'best_model.pth', '--DATASET_ROOT', products, *ON_CPU)
    check_one_rank_logs(*torchrun(folder, 3, 'test.py', *best).wait(0))
    found = (run / 'predictions_test.csv').read_bytes()
    scripts.run(folder, 'test.py', *best)
    assert (run / 'predictions_test.csv').read_bytes() == found
    check_one_rank_logs(*torchrun(folder, 3, 'tau_norm.py', *best).wait(0))
    found = (folder / 'log_tau' / 'run' / 'tau.json').read_bytes()
    scripts.run(folder, 'tau_norm.py', *best, '--OVERWRITE', True)
    assert (folder / 'log_tau' / 'run' / 'tau.json').read_bytes() == found


def test_preemption(torchrun, scripts, products, tmp_path):
    """torchrun gets a signal, passes it on, and exits with code 1; the run is saved, and resumes bit for bit."""
    options = options_of(products, '--TRAIN_MAX_EPOCH', 40)
    folder, whole = tmp_path / 'job', tmp_path / 'whole'
    job = torchrun(folder, 2, 'main.py', *options)
    job.wait_for('epoch 3, step 1 of', job.stdout)
    os.kill(job.process.pid, signal.SIGTERM)
    started = time.monotonic()
    output, errors = job.wait(1)
    assert time.monotonic() - started < TORCHRUN_SECONDS
    check_one_rank_logs(output, errors)
    assert 'stopped and saved; to resume: --RESUME_MODEL last (NAME run)' in output
    assert 'error: ' not in errors
    output, errors = torchrun(folder, 2, 'main.py', *options, '--RESUME_MODEL', 'last').wait(0)
    assert 'resuming from log/run/last.pth' in output
    whole.mkdir()
    run_ranks_of(scripts, 2, whole, 'main.py', *options)
    check_same_run(folder / 'log' / 'run', whole / 'log' / 'run')


@pytest.mark.parametrize(
    ('target', 'count'),
    [('lib.trainer.step:TrainStep.__call__', 3), ('lib.inference.engine:EagerEngine.features', 1)],
    ids=['training', 'evaluation'],
)
def test_a_rank_that_fails(torchrun, products, tmp_path, target, count):
    wrapped = (1, 'error', target, count, REPOSITORY / 'main.py', *options_of(products, '--RUN_NUM_WORKERS', 1))
    job = torchrun(tmp_path / 'job', 2, 'tests/scripts/fail_on_rank.py', *wrapped)
    job.wait_for('error: rank 1: this rank fails\n', job.stderr)
    started = time.monotonic()
    _, errors = job.wait(1)
    assert time.monotonic() - started < 30
    assert errors.count('error: rank 1: ') == 1
    assert 'traceback : this rank fails' in errors.partition('Root Cause')[2]


def test_a_rank_that_is_killed_and_restarted(torchrun, scripts, products, tmp_path):
    """All ranks restart; the run resumes from its last checkpoint, with the result of an uninterrupted run."""
    folder, whole = tmp_path / 'job', tmp_path / 'whole'
    # In the second epoch; after the restart there are too few steps to reach the same count again.
    wrapped = (1, 'kill', 'lib.trainer.step:TrainStep.__call__', 9, REPOSITORY / 'main.py', *options_of(products))
    output, errors = torchrun(folder, 2, 'tests/scripts/fail_on_rank.py', *wrapped, restarts=1).wait(0)
    assert 'resuming from log/run/last.pth, 1 epoch' in output
    assert 'error: rank 0: rank 1 ' in errors  # was killed, or has ended if torchrun has collected its exit code
    whole.mkdir()
    run_ranks_of(scripts, 2, whole, 'main.py', *options_of(products))
    check_same_run(folder / 'log' / 'run', whole / 'log' / 'run')
