"""Ctrl-C, SIGTERM and SIGHUP in every phase of every script: one line, the exit code, and no process that remains."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.scripts.running import ENVIRONMENT, ON_CPU, REPOSITORY, TINY, check_same_run, wait_until_gone

pytestmark = [pytest.mark.process, pytest.mark.long]

ENDS = {
    'SIGINT': (130, 'interrupted\n'),
    'SIGTERM': (143, 'terminated (SIGTERM)\n'),
    'SIGHUP': (129, 'ended by SIGHUP\n'),
}
RAISE = 'tests/scripts/raise_signal.py'
SECONDS = 5  # in which processes end
DATA = ('--config', TINY, '--DATASET_ROOT', 'PRODUCTS', '--NAME', 'run')
FOLDERS = ('--config', TINY, '--DATASET_ROOT', 'shop', '--NAME', 'run')
BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
CACHED = ('--RESUME_MODE', 'finetune', '--MODEL_TUNE', 'head', '--TRAIN_FEATURES', 'cached', '--NAME', 'head')
TWO = ('--RUN_NUM_WORKERS', 2)
# Phase -> a function that is called in it, and a command line.
PHASES = {
    'start': ('lib.config.options:Parser.parse_args', 'tools/convert.py', 'imagefolder', 'shop', 'set'),
    'walking': ('lib.dataset.image_walk:ImageWalk.list', 'main.py', *FOLDERS),
    'index building': ('lib.dataset.annotations:_parse', 'main.py', *DATA),
    'converting': ('lib.formats.write:check_split', 'tools/convert.py', 'imagefolder', 'shop', 'set'),
    'feature caching': ('lib.runtime.column_store:ColumnStore.write', 'main.py', *BEST, *CACHED),
    'image cache': ('lib.dataset.ram_cache:CachedImages._fill', 'main.py', *DATA, '--DATASET_CACHE', 'ram'),
    'report': ('lib.report.run_page:_curves', 'tools/report.py', *BEST),
    'packing': ('lib.runtime.workers:_receive', 'tools/pack.py', *DATA, *TWO, '--PACK_OUT', 'packed'),
    'audit': ('lib.runtime.workers:_receive', 'tools/doctor.py', *DATA, *TWO),
    'prediction': ('lib.runtime.column_store:ColumnStore.write', 'test.py', *BEST),
    'tau': ('lib.posthoc.tau_sweep:TauSweep.update', 'tau_norm.py', *BEST),
    'search': ('lib.commands.search:_splits', 'tools/search.py', *BEST),
    'export': ('lib.commands.export:preprocessing_of', 'tools/export.py', *BEST),
    'enrolling': ('lib.commands.enroll:_median_norm', 'tools/enroll.py', *BEST, '--ENROLL_IMAGES', 'shop/train'),
    'memory plan': ('lib.plan.costs:_run', 'tools/plan.py', *DATA, '--PLAN_NUM_CLASSES', 1000),
}  # fmt: skip
QUICK = [('walking', 'SIGTERM'), ('feature caching', 'SIGINT'), ('packing', 'SIGTERM'), ('report', 'SIGHUP')]


@pytest.fixture
def folder(run_folder, products):
    """A folder with log/tiny and shop/, whose class folders hold images."""
    for name in ('ale', 'bread'):
        (run_folder / 'shop' / 'train' / name).mkdir(parents=True)
    for number, path in enumerate(sorted(products.rglob('*.jpg'))[:12]):
        (run_folder / 'shop' / 'train' / ('ale', 'bread')[number % 2] / path.name).write_bytes(path.read_bytes())
    return run_folder


def run_phase(scripts, folder, products, phase, name, count=1):
    target, *command = PHASES[phase]
    command[0] = REPOSITORY / command[0]
    argv = [products if option == 'PRODUCTS' else option for option in command]
    started = time.monotonic()
    done = scripts.start(folder, RAISE, name, target, count, *argv, report=True)
    result = done.wait(None)
    return done.process, result, time.monotonic() - started


def check_phase(scripts, folder, products, phase, name):
    process, done, _ = run_phase(scripts, folder, products, phase, name)
    code, line = ENDS[name]
    assert done.returncode == code, done.stdout + done.stderr
    errors = [one for one in done.stderr.splitlines(keepends=True) if not one.startswith('warning: ')]
    assert errors == [line]
    wait_until_gone(process, SECONDS)
    assert not [path for path in folder.rglob('.*.tmp*') if path.is_file()], 'temporary files remain'


@pytest.mark.parametrize(('phase', 'name'), QUICK)
def test_a_signal_in_a_phase(scripts, folder, products, phase, name):
    check_phase(scripts, folder, products, phase, name)


# Becomes a script, and sends Ctrl-C when it imports a module; it imports nothing itself.
INTERRUPT = """
import os, sys

_, module, path, *options = sys.argv

class Finder:
    def find_spec(self, name, *_):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), 2)

sys.meta_path.insert(0, Finder())
sys.path.insert(0, os.path.dirname(path))
sys.argv[:] = [path, *options]
exec(compile(open(path).read(), path, 'exec'), {'__name__': '__main__', '__file__': path})
"""


@pytest.mark.parametrize('script', ['main.py', 'tools/clean.py'])
@pytest.mark.parametrize('module', ['lib.builders.preprocessing', 'lib.runtime.process', 'threading', 'yaml', 'torch'])
def test_ctrl_c_during_the_imports(products, script, module):
    command = [sys.executable, '-c', INTERRUPT, module, REPOSITORY / script, '--DATASET_ROOT', products, *ON_CPU]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == ENDS['SIGINT'], module


@pytest.mark.slow
@pytest.mark.parametrize('name', ENDS)
@pytest.mark.parametrize('phase', PHASES)
def test_a_signal_in_every_phase(scripts, folder, products, phase, name):
    check_phase(scripts, folder, products, phase, name)


@pytest.mark.parametrize(
    ('phase', 'options'),
    [
        ('packing', ()),
        pytest.param('audit', (), marks=pytest.mark.slow),
        pytest.param('training', (), marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_a_killed_command(scripts, folder, products, phase, options):
    PHASES['training'] = ('lib.trainer.step:TrainStep.__call__', 'main.py', *DATA, *TWO)
    process, done, _ = run_phase(scripts, folder, products, phase, 'SIGKILL')
    assert done.returncode == -9
    wait_until_gone(process, SECONDS)


def test_a_closed_terminal_saves_the_run(scripts, products, finished, tmp_path):
    options = ('--config', TINY, '--NAME', 'tiny', '--DATASET_ROOT', products)
    done = scripts.run_until(tmp_path, 'SIGHUP', 'lib.trainer.step:TrainStep.__call__', 3, *options, code=129)
    assert 'SIGHUP: saving after this step' in done.stdout
    assert 'stopped and saved' in done.stdout
    assert done.stderr == ''
    scripts.run(tmp_path, 'main.py', *options, '--RESUME_MODEL', 'last')
    check_same_run(tmp_path / 'log' / 'tiny', finished / 'log' / 'tiny')


@pytest.mark.slow
@pytest.mark.parametrize('script', ['main.py', 'test.py', 'tools/doctor.py', 'tools/pack.py'])
def test_a_signal_at_any_time(folder, products, seed, script):
    """Of a real process, from its first moments to its end, sent to it or to its whole group."""
    dice = random.Random(seed)
    options = {
        'main.py': (*DATA, *TWO, '--OVERWRITE', True),
        'test.py': (*BEST, *TWO),
        'tools/doctor.py': (*DATA, *TWO),
        'tools/pack.py': (*DATA, *TWO, '--PACK_OUT', 'packed', '--OVERWRITE', True),
    }[script]
    argv = [products if option == 'PRODUCTS' else option for option in options]
    command = list(map(str, [sys.executable, REPOSITORY / script, *argv]))

    def start():
        streams = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
        return subprocess.Popen(
            command, cwd=folder, env={**os.environ, **ENVIRONMENT}, start_new_session=True, text=True, **streams
        )

    started = time.monotonic()
    with start() as process:
        process.communicate()
    seconds = time.monotonic() - started
    for _ in range(12):
        name, send = dice.choice(list(ENDS)), dice.choice([os.kill, os.killpg])
        with start() as process:
            time.sleep(dice.uniform(0.05, seconds))
            sent = time.monotonic()
            if process.poll() is None:
                send(process.pid, signal.Signals[name])
            _, errors = process.communicate()
        lines = [line for line in errors.splitlines(keepends=True) if not line.startswith('warning: ')]
        at = f'seed {seed}: {name} by {send.__name__} after {sent - started:.2f} s: {process.returncode} {errors}'
        # Before Python has loaded the script, and while it ends, the system ends it without a line.
        assert process.returncode in (0, ENDS[name][0], -signal.Signals[name]), at
        assert lines in ([], [ENDS[name][1]]), at
        assert time.monotonic() - sent < 30, at
        wait_until_gone(process.pid, SECONDS)
