"""Runs on emulators of Google Cloud Storage and Azure: tests of test_bucket_data.py and test_bucket_runs.py."""

import shutil

import pytest

from tests.cloud_servers import EMULATORS
from tests.scripts import test_bucket_data, test_bucket_runs
from tests.scripts.running import TINY, check_same_run, error_line
from tests.scripts.test_bucket_data import Reader

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.parametrize('storage_server', list(EMULATORS), indirect=True),
]

reader, runs = test_bucket_data.reader, test_bucket_runs.runs
test_killed = test_bucket_runs.test_a_run_that_is_killed_is_resumed_on_another_machine
test_overwrite = test_bucket_runs.test_overwrite_renames_the_folder_in_the_bucket
test_commands = test_bucket_runs.test_other_commands_write_beside_a_model_in_the_bucket
test_resume_in_mid_epoch = test_bucket_data.test_resume_in_mid_epoch_with_an_empty_cache
test_tools_and_prediction = test_bucket_data.test_tools_and_prediction


def test_photos_are_packed_in_the_bucket_and_trained_on(runs, scripts, tmp_path, products):
    """The shards are those on a disk; packed or not, training gives the weights of training on the disk."""
    runs.on_disk(scripts, 'pack')
    runs.start_pack().wait()
    runs.check_equal('pack')
    folder = tmp_path / 'reader'
    folder.mkdir()
    reader = Reader(scripts, runs.server, folder, products)
    for form in ('packed', 'listed', 'folders'):
        reader.add(form)
        with runs.server.faults(cut=0.03, slow_down=0.03):
            run = reader.train(form, 'remote')
        local = reader.train_locally(form)
        check_same_run(run, local)
        shutil.rmtree(run)
        shutil.rmtree(local)


def test_mistakes_are_one_line(runs):
    missing = runs.start('test.py', '--RESUME_MODEL', f'{runs.url}/log/none.pth').wait(2)
    assert f'{runs.url}/log/none.pth' in error_line(missing)
    missing = runs.start('main.py', '--config', TINY, '--LOG_ROOT', f'{runs.url}-none/log').wait(2)
    assert 'no such bucket' in error_line(missing)
    with runs.server.faults(denied=1):
        assert 'access denied' in error_line(runs.train(code=2))
