"""Runs whose folder is in a bucket: the same weights as on a disk, whatever fails, and without a secret in a file."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.scripts.running import ENVIRONMENT, ON_CPU, TINY, check_same_run, contents, error_line

pytestmark = [pytest.mark.process, pytest.mark.long]

RUN = ('--config', TINY, '--NAME', 'tiny')
LONG = ('--TRAIN_MAX_EPOCH', 3, '--TRAIN_SAVE_EVERY_EPOCHS', 1)
LAST = ('--RESUME_MODEL', 'last')
PACK = ('--config', TINY, '--PACK_SHARD_IMAGES', 8)


class BucketRuns:
    """Runs scripts whose results are in a new bucket, with a cache per machine.

    Attributes:
        folder: with the caches, in caches/MACHINE, and the results on the disk.
        server, bucket, url: of the results.
    """

    def __init__(self, scripts, server, folder, products):
        self._scripts, self._products = scripts, products
        self.server, self.folder, self.bucket = server, folder, server.new_bucket()
        self.url = f'{server.scheme}://{self.bucket}'
        self._environment = {**ENVIRONMENT, **server.environment()}

    def start(self, script, *options, machine='a'):
        """Start a script on a machine with its own cache."""
        options += ('--DATASET_ROOT', self._products, '--STORAGE_CACHE', self.folder / 'caches' / machine)
        return self._scripts.start(self.folder, script, *options, environment=self._environment)

    def start_train(self, *options, machine='a'):
        """Start the tiny run with LOG_ROOT in the bucket."""
        return self.start('main.py', *RUN, '--LOG_ROOT', f'{self.url}/log', *options, machine=machine)

    def train(self, *options, machine='a', code=0):
        """Train the tiny run to its end."""
        return self.start_train(*options, machine=machine).wait(code)

    def start_pack(self, machine='a'):
        """Start to pack into the bucket."""
        return self.start('tools/pack.py', *PACK, '--PACK_OUT', f'{self.url}/packed', machine=machine)

    def on_disk(self, scripts, kind):
        """Train or pack on the disk, undisturbed."""
        data = ('--DATASET_ROOT', self._products)
        if kind == 'train':
            scripts.run(self.folder, 'main.py', *RUN, *LONG, *data)
        else:
            scripts.run(self.folder, 'tools/pack.py', *PACK, *data, '--PACK_OUT', 'packed')

    def check_equal(self, kind):
        """Check that the results in the bucket are those on the disk."""
        if kind == 'train':
            check_same_run(self.download('log/tiny'), self.folder / 'log' / 'tiny')
        else:
            assert contents(self.download('packed')) == contents(self.folder / 'packed')

    def kill_when(self, running, condition):
        """Kill a script once a condition holds; return False if it was done before."""
        while not condition():
            state = Path(f'/proc/{running.process}/stat').read_text().rpartition(')')[2].split()[0]
            if state == 'Z':
                assert running.wait(None).returncode == 0, running.stderr.read_text()
                return False
            time.sleep(0.01)
        os.kill(running.process, signal.SIGKILL)
        running.wait(None)
        return True

    def kill_after(self, running, num_requests):
        """Kill a script once the server had a number of requests; return False if it was done before."""
        self.server.requests()
        seen = 0

        def is_due():
            nonlocal seen
            seen += len(self.server.requests())
            return seen >= num_requests

        return self.kill_when(running, is_due)

    def download(self, prefix):
        """Return a folder with the objects whose key begins with prefix/."""
        folder = self.folder / 'downloaded'
        shutil.rmtree(folder, ignore_errors=True)
        for name, data in self.server.objects(self.bucket, f'{prefix}/').items():
            if not name.endswith('/'):
                path = folder / name.removeprefix(f'{prefix}/')
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        return folder


@pytest.fixture
def runs(scripts, storage_server, tmp_path, products):
    return BucketRuns(scripts, storage_server, tmp_path, products)


def test_a_run_that_is_killed_is_resumed_on_another_machine(runs, scripts):
    """The weights are those of a run on a disk, although requests fail; no file of any machine holds a secret."""
    runs.on_disk(scripts, 'train')
    with runs.server.faults(cut=0.03, slow_down=0.02, seed=1):
        running = runs.start_train(*LONG)
        runs.kill_when(running, lambda: 'log/tiny/epoch_1.pth' in runs.server.names(runs.bucket, 'log/tiny/epoch'))
        runs.train(*LONG, *LAST, machine='b')
    assert 'holds the checkpoints of an earlier run' in error_line(runs.train(machine='c', code=2))
    runs.check_equal('train')
    names = {path.name for path in runs.download('log/tiny').iterdir()}
    assert {'log.txt', 'config.yaml', 'environment.txt', 'classes.json'} <= names
    assert any(name.startswith('events.out.tfevents') for name in names)
    for path in (path for path in runs.folder.rglob('*') if path.is_file()):
        for word in (*runs.server.secrets, 'bucket-mirror'):
            assert word.encode() not in path.read_bytes(), (path, word)


@pytest.mark.slow
def test_overwrite_renames_the_folder_in_the_bucket(runs):
    runs.train('--TRAIN_MAX_EPOCH', 1)
    before = runs.download('log/tiny')
    old = {path.name: path.read_bytes() for path in before.iterdir()}
    runs.train('--TRAIN_MAX_EPOCH', 1, '--OVERWRITE', True, machine='b')
    aside = {path.name: path.read_bytes() for path in runs.download('log/tiny_old').iterdir()}
    assert aside == old
    assert len(list(runs.download('log/tiny').glob('events*'))) == 1


def test_shards_are_packed_into_a_bucket_resumed_and_verified(runs, scripts):
    """Packing is stopped by a full quota; another machine completes it; the objects are those on a disk."""
    runs.on_disk(scripts, 'pack')
    with runs.server.faults(denied=1, only='(PUT|POST) .*/000002.tar'):
        assert 'access denied' in error_line(runs.start_pack().wait(2))
    runs.server.requests()
    done = runs.start_pack('b').wait()
    requests = runs.server.requests()
    assert 'resuming after 16 of' in done.stdout
    assert not any('PUT' in line and 'train/000000.tar' in line for line in requests)
    assert any('GET' in line and 'train/000000.tar' in line for line in requests)  # verified from the bucket
    runs.check_equal('pack')
    shards = list((runs.folder / 'caches' / 'b').rglob('bucket-mirror/**/*.tar'))
    assert shards
    assert not any(path.stat().st_blocks for path in shards)  # their names and sizes only


@pytest.mark.slow
def test_other_commands_write_beside_a_model_in_the_bucket(runs):
    runs.train('--TRAIN_MAX_EPOCH', 1)
    before = set(runs.server.names(runs.bucket))
    best = ('--RESUME_MODEL', f'{runs.url}/log/tiny/best_model.pth', *ON_CPU)
    runs.start('test.py', *best, machine='b').wait()
    runs.start('tau_norm.py', *best, '--TAU_NORM_LOG_ROOT', f'{runs.url}/log_tau', machine='b').wait()
    runs.start('tools/export.py', *best, '--EXPORT_FORMAT', 'safetensors', machine='b').wait()
    runs.start('tools/doctor.py', '--config', TINY, '--DOCTOR_OUT', f'{runs.url}/doctor', machine='b').wait()
    written = '\n'.join(sorted(set(runs.server.names(runs.bucket)) - before))
    names = ('log/tiny/predictions_', 'log_tau/tiny/best_model.pth', 'log_tau/tiny/tau.json', '.safetensors', 'doctor/')
    for name in names:
        assert name in written, written
    assert {path.name for path in runs.folder.iterdir()} == {'caches'}


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['train', 'pack'])
def test_kills_at_random_lose_nothing(runs, scripts, seed, kind):
    """Twenty kills after random numbers of requests, a part of which fail, on machines that change now and then."""
    generator = random.Random(seed)
    runs.on_disk(scripts, kind)
    start = {'train': lambda machine: runs.start_train(*LONG, *LAST, machine=machine), 'pack': runs.start_pack}[kind]
    kills = 0
    with runs.server.faults(cut=0.03, slow_down=0.02, seed=seed):
        while kills < 20:
            running = start(f'machine{generator.randrange(3)}')
            if not runs.kill_after(running, generator.randrange(5, 120)):
                runs.server.delete_all(runs.bucket)  # it was done: once more, until there are 20 kills
                shutil.rmtree(runs.folder / 'caches')
            kills += 1
        start('machine0').wait()
    runs.check_equal(kind)
