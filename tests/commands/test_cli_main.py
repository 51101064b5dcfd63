import errno
import io
import os
import re
import subprocess
import sys
import zipfile

import pytest

from lib.commands.cli import cli_main
from lib.errors import UserError, one_line
from lib.runtime.log import LOGGER, log_to, start_console
from tests.scripts.in_process import fresh_logger


def outcome(capsys, main):
    with pytest.raises(SystemExit) as caught:
        cli_main(main)
    return caught.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(('given', 'used'), [(None, '1'), ('0', '0')])
def test_tensors_are_in_huge_pages_unless_the_user_has_decided(capsys, monkeypatch, given, used):
    monkeypatch.delenv('THP_MEM_ALLOC_ENABLE', raising=False)
    if given is not None:
        monkeypatch.setenv('THP_MEM_ALLOC_ENABLE', given)
    outcome(capsys, lambda: None)
    assert os.environ['THP_MEM_ALLOC_ENABLE'] == used


@pytest.mark.parametrize('code', [None, 0, 3])
def test_result_is_the_exit_code(capsys, code):
    assert outcome(capsys, lambda: code) == (code, '')


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (UserError('x.json: no such file'), 2, 'error: x.json: no such file\n'),
        (UserError('two\n  lines\x1b[31m'), 2, 'error: two lines\\x1b[31m\n'),
        (
            OSError(28, 'No space left on device', 'a.pth'),
            2,
            'error: no space left on the device while writing a.pth',
        ),
        (OSError(28, 'No space left on device'), 2, 'error: no space left on the device; free'),
        (PermissionError(13, 'Permission denied', 'a.pth'), 2, 'error: a.pth: permission denied\n'),
        (
            ModuleNotFoundError("No module named 'timm'", name='timm'),
            2,
            'error: the package timm is not installed',
        ),
        (KeyboardInterrupt(), 130, 'interrupted\n'),
        (
            RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...'),
            2,
            'error: out of memory (Tried to allocate 2.00 GiB); a smaller TRAIN.BATCH_SIZE',
        ),
        (MemoryError(), 2, 'error: out of memory; a smaller'),
        (
            RuntimeError('DataLoader worker (pid 7) is killed by signal: Bus error. '),
            2,
            'error: a worker process was killed, most likely because memory ran out (DataLoader',
        ),
    ],
)
def test_one_line_and_an_exit_code(capsys, error, code, line):
    found, text = outcome(capsys, raising(error))
    assert found == code
    assert text.startswith(line)
    assert text.count('\n') == 1


def test_out_of_memory_of_torch(capsys):
    import torch

    code, text = outcome(capsys, lambda: torch.empty(2**60))
    assert code == 2
    assert text.startswith(f'error: out of memory (tried to allocate {2**62} bytes); a smaller TRAIN.BATCH_SIZE')
    assert text.count('\n') == 1


@pytest.mark.parametrize(
    'error',
    [ValueError('bug'), OSError('no number'), ModuleNotFoundError(name='lib.x'), RuntimeError('shapes differ')],
)
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        cli_main(raising(error))


@pytest.mark.parametrize('number', [errno.ENXIO, errno.ELOOP, errno.ENODEV, errno.ETXTBSY, errno.EBUSY, errno.EINVAL])
def test_errors_of_the_system_of_any_number_are_one_line(capsys, number):
    code, text = outcome(capsys, raising(OSError(number, os.strerror(number), 'a.json')))
    assert (code, text) == (2, f'error: a.json: {os.strerror(number).lower()}\n')
    code, text = outcome(capsys, raising(OSError(number, os.strerror(number))))
    assert (code, text) == (2, f'error: the system reports: {os.strerror(number).lower()}\n')


def test_errors_of_libraries_about_files_are_one_line(capsys):
    import pyarrow
    from safetensors import SafetensorError

    for error in (pyarrow.ArrowInvalid('bad\nfile'), SafetensorError('x' * 9999), zipfile.BadZipFile('no zip')):
        code, text = outcome(capsys, raising(error))
        assert code == 2
        assert re.fullmatch(r'error: a file cannot be read or written by \w+: .{1,210}\n', text)


def test_escaping_keeps_readable_text():
    assert one_line(' Bière  "ü" \U0001f600 \udcff\u2028\x00') == 'Bière  "ü" \U0001f600 \\xff \\x00'


@pytest.mark.process
def test_a_closed_pipe_is_no_error():
    script = 'from lib.commands.cli import cli_main\ncli_main(lambda: [print(i) for i in range(99999)] and 0)'
    process = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b''
    assert process.wait() == 141
    process.stderr.close()


@pytest.mark.process
def test_the_module_imports_nothing_heavy():
    script = 'import sys, lib.commands.cli; assert not {"torch", "numpy"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', script], check=True)


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'utf-8', 'utf-16'])
def test_any_name_can_be_printed_and_logged(monkeypatch, tmp_path, encoding):
    """A terminal may not encode a name, and a name may hold bytes that are not UTF-8."""
    names = ['plain.jpg', 'жук.jpg', '猫.jpg', 'caf\udce9.jpg', '\U0001f95b.jpg']
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline='\n') for name in ('stdout', 'stderr')}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def main():
        start_console()
        log_to(tmp_path / 'log.txt')
        for name in names:
            print(name)
            LOGGER.info('%s', name)
            LOGGER.warning('%s', name)
        raise UserError(f'{names}: wrong')

    with fresh_logger(), pytest.raises(SystemExit) as caught:
        cli_main(main)
    assert caught.value.code == 2
    # A log line shows the bytes of a file name, as test.py writes them.
    printed, logged = (
        [name.encode(encoding, 'backslashreplace').decode(encoding) for name in form]
        for form in (names, [name.replace('\udce9', '\\xe9') for name in names])
    )
    texts = {}
    for name, stream in streams.items():
        stream.flush()
        texts[name] = stream.buffer.getvalue().decode(encoding).splitlines()
    assert texts['stdout'] == [line for pair in zip(printed, logged, strict=True) for line in pair]
    assert texts['stderr'][:-1] == [f'warning: {line}' for line in logged]
    assert texts['stderr'][-1].startswith('error: [')
    lines = (tmp_path / 'log.txt').read_text(encoding='utf-8')
    assert all(name.replace('\udce9', '\\xe9') in lines for name in names)
