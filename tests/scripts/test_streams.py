"""Standard streams that are closed, full, without a reader, non-blocking or of another encoding."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.scripts.running import ENVIRONMENT, ON_CPU, REPOSITORY, TINY, check_same_run, error_line

pytestmark = [pytest.mark.process, pytest.mark.long]

CLOSED = {'stdin': '', 'stdout': '', 'stderr': ''}
FULL = {'stdout': '/dev/full'}
BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
# Scripts that print or log, with a command line in a folder with log/tiny.
COMMANDS = {
    'test.py': BEST,
    'tau_norm.py': BEST,
    'tools/compare.py': ('log/tiny', 'log/tiny/last.pth', *ON_CPU),
    'tools/doctor.py': ('--config', TINY, '--RUN_NUM_WORKERS', 2, '--DATASET_ROOT', 'PRODUCTS'),
    'tools/export.py': (*BEST, '--EXPORT_FORMAT', 'safetensors'),
    'tools/pack.py': ('--config', TINY, '--PACK_OUT', 'packed', '--RUN_NUM_WORKERS', 2, '--DATASET_ROOT', 'PRODUCTS'),
    'tools/plan.py': ('--config', TINY, '--DATASET_ROOT', 'PRODUCTS', '--PLAN_NUM_CLASSES', 1000),
    'tools/clean.py': BEST,
    'tools/posthoc.py': (*BEST, '--POSTHOC_FOLDS', 2),
    'tools/report.py': BEST,
    'tools/search.py': BEST,
    'tools/summary.py': ('--config', TINY, '--NAME', 'tiny'),
}


def shell(command, **environment):
    """Run a command line of bash in a new process, as a user does."""
    variables = {**os.environ, **ENVIRONMENT, 'PY': sys.executable, 'ROOT': str(REPOSITORY), **environment}
    return subprocess.run(['bash', '-c', command], env=variables, capture_output=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ('streams', 'code'), [(CLOSED, 0), (FULL, 2), ({'stderr': '/dev/full'}, 0)], ids=['closed', 'full', 'errors full']
)
def test_losing_the_terminal_does_not_lose_the_run(scripts, products, finished, tmp_path, streams, code):
    """Nor is a line for the terminal written into a data file that has got the descriptor of a closed stream."""
    options = ('--config', TINY, '--NAME', 'tiny', '--DATASET_ROOT', products)
    done = scripts.start(tmp_path, 'main.py', *options, streams=streams).wait(code)
    check_same_run(tmp_path / 'log' / 'tiny', finished / 'log' / 'tiny')
    log = (tmp_path / 'log' / 'tiny' / 'log.txt').read_text()
    assert 'epoch 2' in log
    if code:
        assert error_line(done) == (
            'error: standard output cannot be written: no space left on device; '
            'the command worked to its end, but lines are missing'
        )


def test_a_reader_that_ends_does_not_end_the_run(scripts, products, finished, tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    options = ('--config', TINY, '--NAME', 'tiny', '--DATASET_ROOT', products)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    running = scripts.start(tmp_path, 'main.py', *options, streams={'stdout': str(pipe)})
    while not (tmp_path / 'log' / 'tiny' / 'log.txt').exists():
        assert not running.stderr.read_text()
    os.close(reader)
    assert running.wait(None).returncode == 141
    assert running.stderr.read_text() == ''
    check_same_run(tmp_path / 'log' / 'tiny', finished / 'log' / 'tiny')


@pytest.mark.parametrize(
    ('redirection', 'code', 'line'),
    [
        ('<&- >&- 2>&-', 0, ''),
        ('>&-', 0, ''),
        ('> /dev/full', 2, 'error: standard output cannot be written: no space left on device'),
        ('> /dev/full 2>&1', 2, ''),
        ('1< /dev/null', 2, 'error: standard output cannot be written: bad file descriptor'),
    ],
)
def test_help_to_any_output(redirection, code, line):
    done = shell(f'"$PY" "$ROOT/main.py" --help all {redirection}')
    assert done.returncode == code
    errors = done.stderr.decode()
    assert errors.startswith(line)
    assert errors.count('\n') == bool(line)


def test_a_closed_error_stream_keeps_the_exit_code(tmp_path):
    for redirection in ('2>&-', '2> /dev/full', '>&- 2>&-'):
        assert shell(f'"$PY" "$ROOT/main.py" --TRAIN_MAX_EPOCHS 1 {redirection}').returncode == 2


def test_head_is_quiet(tmp_path):
    done = shell('"$PY" "$ROOT/main.py" --help all | head -1; exit ${PIPESTATUS[0]}')
    assert done.returncode in (0, 141)
    assert done.stdout.count(b'\n') == 1
    assert done.stderr == b''


@pytest.mark.parametrize(
    ('encoding', 'expected'),
    [('ascii', '\\u732b'), ('latin-1:strict', '\\u732b'), ('utf-16', '猫'), ('cp037', '\\u732b')],
)
def test_any_encoding(encoding, expected):
    done = shell('"$PY" "$ROOT/main.py" --config 猫.yaml', PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    text = done.stderr.decode(encoding.partition(':')[0])
    assert expected in text
    assert text.count('\n') == 1


def test_output_that_another_process_made_nonblocking():
    """A terminal that ssh or another program has changed: output waits instead of failing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    if hasattr(fcntl, 'F_SETPIPE_SZ'):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    command = [sys.executable, REPOSITORY / 'main.py', '--help', 'all']
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        time.sleep(0.5)
        with open(reader, 'rb') as lines:
            text = lines.read()
        assert process.stderr.read() == b''
    assert process.returncode == 0
    assert text.endswith(b'--help all shows all options.\n')


def test_a_folder_that_was_deleted(tmp_path):
    done = shell(f'mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; "$PY" "$ROOT/main.py" --TRAIN_MAX_EPOCH 1')
    assert (done.returncode, done.stderr) == (
        2,
        b'error: the current folder does not exist any more: change to another one (cd)\n',
    )


@pytest.mark.slow
@pytest.mark.parametrize('streams', [CLOSED, FULL, {'stderr': '/dev/full'}], ids=['closed', 'full', 'errors full'])
@pytest.mark.parametrize('script', COMMANDS)
def test_every_command(scripts, products, run_folder, script, streams):
    options = [products if option == 'PRODUCTS' else option for option in COMMANDS[script]]
    done = scripts.start(run_folder, script, *options, streams=streams).wait(2 if streams is FULL else 0)
    if streams is FULL:
        assert 'standard output cannot be written' in error_line(done)


@pytest.mark.slow
@pytest.mark.parametrize('ignored', [True, False], ids=['nohup', 'terminal'])
def test_a_terminal_that_is_closed(products, tmp_path, ignored):
    """With nohup the run continues; without, it saves. A real terminal, whose end fails afterwards."""
    options = ('--config', TINY, '--NAME', 'tiny', '--DATASET_ROOT', products, '--TRAIN_MAX_EPOCH', 30)
    main, terminal = os.openpty()

    def prepare():
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    command = [sys.executable, REPOSITORY / 'main.py', *map(str, options)]
    streams = dict.fromkeys(('stdin', 'stdout', 'stderr'), terminal)
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, preexec_fn=prepare, **streams)
    os.close(terminal)
    text = b''
    while b'1/30' not in text:  # the first epoch in the table
        text += os.read(main, 1000)
    os.close(main)
    if not ignored:
        process.send_signal(signal.SIGHUP)  # it is the leader of no terminal here
    # The reader of standard output has ended; an error of a terminal is no broken pipe.
    assert process.wait(100) == (2 if ignored else 129)
    log = (tmp_path / 'log' / 'tiny' / 'log.txt').read_text()
    assert ('epoch 30' in log) == ignored
    assert ('stopped and saved' in log) != ignored
