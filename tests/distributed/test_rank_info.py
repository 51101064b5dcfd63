"""The environment variables of torchrun, and its error file."""

import json
import shutil
import subprocess
import sys
import threading
import time

import pytest

from lib.commands.cli import cli_main
from lib.distributed.rank_info import (
    RankInfo,
    check_address,
    first_rank_reports,
    read_rank_info,
    report_failure,
    was_restarted,
)
from lib.errors import UserError

NAMES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'TORCHELASTIC_ERROR_FILE', 'TORCHELASTIC_RESTART_COUNT')


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets only the given variables of torchrun."""

    def set_only(**variables):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, text in variables.items():
            monkeypatch.setenv(name, text)

    return set_only


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({}, RankInfo(0, 1, 0)),
        ({'RANK': '3', 'WORLD_SIZE': '8', 'LOCAL_RANK': '1'}, RankInfo(3, 8, 1)),
        ({'RANK': '0', 'WORLD_SIZE': '1', 'LOCAL_RANK': '0'}, RankInfo(0, 1, 0)),
        ({'RANK': '1', 'WORLD_SIZE': '2'}, RankInfo(1, 2, 0)),
        # Some job schedulers set only one of these variables.
        ({'WORLD_SIZE': '4'}, RankInfo(0, 1, 0)),
        ({'RANK': '2'}, RankInfo(0, 1, 0)),
        ({'LOCAL_RANK': '2'}, RankInfo(0, 1, 0)),
    ],
)
def test_read_rank_info(environment, variables, expected):
    environment(**variables)
    assert read_rank_info() == expected


@pytest.mark.parametrize('name', ['RANK', 'WORLD_SIZE', 'LOCAL_RANK'])
@pytest.mark.parametrize('value', ['', 'x', '-1', '1.0', ' 1', '٣', '1' * 5000, '99999999999', '1e9', '4'])
def test_variables_that_are_no_number_in_range(environment, name, value):
    if (name, value) == ('WORLD_SIZE', '4'):
        value = '0'
    environment(**{'RANK': '0', 'WORLD_SIZE': '4', name: value})
    with pytest.raises(UserError, match=f'the environment variable {name} is .*; torchrun sets it') as caught:
        read_rank_info()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize('port', ['', 'x', '0', '65536', '-5', '1' * 5000])
def test_address_of_rank_0(environment, port):
    environment(MASTER_ADDR='localhost', MASTER_PORT='65535')
    check_address()
    environment(MASTER_PORT=port)
    with pytest.raises(UserError, match='MASTER_PORT'):
        check_address()


@pytest.mark.parametrize(('count', 'expected'), [(None, False), ('0', False), ('1', True), ('12', True)])
def test_was_restarted(environment, count, expected):
    environment(**({} if count is None else {'TORCHELASTIC_RESTART_COUNT': count}))
    assert was_restarted() is expected


def test_torchrun_prints_the_message(environment, tmp_path):
    """Read by the code of torchrun."""
    from torch.distributed.elastic.multiprocessing.api import ProcessFailure
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    file, message = tmp_path / 'error.json', 'a.json: no such file, "ü"'
    environment(TORCHELASTIC_ERROR_FILE=str(file))
    before = int(time.time())
    report_failure(message)
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(file))
    assert before <= failure.timestamp <= time.time()
    assert f'traceback : {message}\n' in str(ChildFailedError('main.py', {3: failure})).partition('Root Cause')[2]


def test_a_failing_script_writes_the_error_file(environment, tmp_path, capsys):
    def main():
        raise UserError('LOSS.TYPE is\nnone')

    file = tmp_path / 'error.json'
    environment(TORCHELASTIC_ERROR_FILE=str(file), RANK='1', WORLD_SIZE='2', LOCAL_RANK='1')
    with pytest.raises(SystemExit) as caught:
        cli_main(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == 'error: rank 1: LOSS.TYPE is none\n'
    assert json.loads(file.read_text())['message']['message'] == 'LOSS.TYPE is none'


@pytest.mark.parametrize(('reported', 'is_first'), [('a', True), ('b', False), (None, False), ('{"mess', False)])
def test_what_the_first_rank_reports_is_not_repeated(environment, tmp_path, reported, is_first):
    for rank in '01':
        (tmp_path / rank).mkdir()
    files = [tmp_path / rank / 'error.json' for rank in '01']
    if reported in ('a', 'b'):
        environment(TORCHELASTIC_ERROR_FILE=str(files[0]), LOCAL_RANK='0')
        report_failure(reported)
        assert not first_rank_reports(reported)  # the first rank prints its own line
    elif reported:
        files[0].write_text(reported)
    environment(TORCHELASTIC_ERROR_FILE=str(files[1]), LOCAL_RANK='1')
    report_failure('a')
    assert first_rank_reports('a', seconds=0.1) is is_first


def test_ranks_wait_for_the_first_one(environment, tmp_path):
    files = [tmp_path / rank / 'error.json' for rank in '01']
    for file in files:
        file.parent.mkdir()
    environment(TORCHELASTIC_ERROR_FILE=str(files[1]), LOCAL_RANK='1')
    report_failure('a')
    late = threading.Timer(0.2, shutil.copy, files[::-1])
    late.start()
    assert first_rank_reports('a', seconds=60)
    late.join()


def test_without_torchrun_no_file_is_written(environment, tmp_path, monkeypatch):
    environment()
    monkeypatch.chdir(tmp_path)
    report_failure('nothing')
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_module_imports_neither_torch_nor_numpy():
    script = 'import sys, lib.distributed.rank_info; assert not {"torch", "numpy"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', script], check=True)
