"""Runs whose folder is in a bucket: the same weights as on a disk, whatever fails, and without a secret in a file."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.rank_runs import free_port
from tests.scripts.running import ENVIRONMENT, ON_CPU, TINY, check_same_run, contents, error_line
from tests.storage_server import KEY_ID, SECRET

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
        environment: variables of scripts.
    """

    def __init__(self, scripts, server, folder, products):
        self._scripts, self._products = scripts, products
        self.server, self.folder, self.bucket = server, folder, server.new_bucket()
        self.url = f'{server.scheme}://{self.bucket}'
        self.environment = {**ENVIRONMENT, **server.environment()}

    def start(self, script, *options, machine='a'):
        """Start a script on a machine with its own cache."""
        options += ('--DATASET_ROOT', self._products, '--STORAGE_CACHE', self.folder / 'caches' / machine)
        return self._scripts.start(self.folder, script, *options, environment=self.environment)

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

    def start_again(self):
        """Remove the results of all machines."""
        self.server.delete_all(self.bucket)
        shutil.rmtree(self.folder / 'caches')

    def check_no_secret(self):
        """Check that no file here and no object holds a credential or a path of the cache."""
        self.download('')
        for path in (path for path in self.folder.rglob('*') if path.is_file()):
            for word in (*self.server.secrets, 'bucket-mirror'):
                assert word.encode() not in path.read_bytes(), (path, word)

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

    def kill_in_upload(self, running, number, wait):
        """Kill a script `wait` seconds after its `number`th delayed request arrived."""
        seen = []

        def is_due():
            delayed = self.server.delayed()
            if delayed and delayed != seen[-1:]:
                seen.extend(delayed)
            if len(seen) < number:
                return False
            time.sleep(wait)
            return True

        self.kill_when(running, is_due)

    def download(self, prefix):
        """Return a folder with the objects whose key begins with prefix/; '': all."""
        folder = self.folder / 'downloaded'
        shutil.rmtree(folder, ignore_errors=True)
        start = f'{prefix}/'.lstrip('/')
        for name, data in self.server.objects(self.bucket, start).items():
            if not name.endswith('/'):
                path = folder / name.removeprefix(start)
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
    runs.check_no_secret()


@pytest.mark.slow
@pytest.mark.parametrize('variable', ['AWS_SHARED_CREDENTIALS_FILE', 'HOME'])
def test_no_file_holds_a_secret_of_a_profile(runs, variable):
    path = runs.folder.with_name('home') / '.aws' / 'credentials'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'[planted]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n')
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SHARED_CREDENTIALS_FILE'):
        del runs.environment[name]
    runs.environment |= {variable: str(path if variable != 'HOME' else path.parents[1]), 'AWS_PROFILE': 'planted'}
    runs.start_pack().wait()
    runs.train(*LONG, '--DATASET_SHARDS', f'{runs.url}/packed')
    assert runs.server.key_ids() == [KEY_ID]
    runs.check_no_secret()


@pytest.mark.slow
@pytest.mark.parametrize('script', ['main.py', 'tools/pack.py'])
def test_ctrl_c_leaves_an_upload_behind(runs, scripts, script):
    """One Ctrl-C saves and ends the command, a second one ends it although the server does not answer; nothing is lost.

    tools/pack.py is ended by the first.
    """
    kind, start = ('pack', runs.start_pack) if script == 'tools/pack.py' else ('train', lambda: runs.start_train(*LONG))
    runs.on_disk(scripts, kind)
    with runs.server.faults(delay=60, only='(PUT|POST) .*(last.pth|000001.tar)'):
        running = start()
        while not runs.server.delayed():
            time.sleep(0.05)
        started = time.monotonic()
        running.interrupt()
        if kind == 'train':
            time.sleep(1.5)
            running.interrupt()
        assert 'interrupted' in running.wait(130).stderr
        assert time.monotonic() - started < 5
    if kind == 'train':
        runs.train(*LONG, *LAST)
    else:
        runs.start_pack().wait()
    runs.check_equal(kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('fault', 'reason'), [('denied', 'access denied'), ('skewed', 'clock'), ('missing', 'no such bucket')]
)
def test_a_run_whose_upload_is_refused_is_completed_later(runs, scripts, fault, reason):
    """One line names the URL, the reason and where the file is; the next command uploads it."""
    runs.on_disk(scripts, 'train')
    with runs.server.faults(**{fault: 1}, only=r'(PUT|POST) \S+/last.pth'):
        line = error_line(runs.train(*LONG, code=2))
    assert f'{runs.url}/log/tiny/last.pth' in line
    assert reason in line
    assert 'stays in the cache of this machine' in line
    assert 'log/tiny/last.pth' not in runs.server.names(runs.bucket)
    done = runs.train(*LONG, *LAST)
    assert 'epoch 1, step' not in done.stdout
    runs.check_equal('train')


@pytest.mark.slow
def test_results_without_a_bucket_or_a_server(runs):
    done = runs.start('main.py', *RUN, '--LOG_ROOT', 's3://no-such-bucket/log').wait(2)
    assert 'no such bucket' in error_line(done)
    runs.environment['AWS_ENDPOINT_URL'] = f'http://127.0.0.1:{free_port()}'
    assert 'cannot be reached' in error_line(runs.train(code=2))


@pytest.mark.slow
def test_a_full_disk_of_the_cache(runs, scripts, small_disk):
    runs.on_disk(scripts, 'train')
    runs.start_pack().wait()
    small_disk(3000)
    line = error_line(runs.train(*LONG, machine='../disk', code=2))
    assert f'no space left on the device of STORAGE.CACHE while writing {runs.url}/log/tiny/' in line
    subprocess.run(['mount', '-o', 'remount,size=100M', str(runs.folder / 'disk')], check=True)
    runs.train(*LONG, *LAST, machine='../disk')
    runs.check_equal('train')
    for path in (runs.folder / 'disk').iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    subprocess.run(['mount', '-o', 'remount,size=24k', str(runs.folder / 'disk')], check=True)
    data = ('--NAME', 'other', '--DATASET_SHARDS', f'{runs.url}/packed')
    line = error_line(runs.start('main.py', *RUN, *data, machine='../disk').wait(2))
    assert f'{runs.url}/packed/train/' in line
    assert 'cannot be written to the cache (no space left on device)' in line


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
def test_catalogs_and_enrolled_classes(runs, finished, products):
    """A catalog in a bucket is built, changed and searched on three machines, as one on the disk; so are classes."""
    runs.server.put_folder(runs.bucket, 'log/tiny', finished / 'log' / 'tiny')
    new = runs.folder / 'new' / 'lemonade'
    new.mkdir(parents=True)
    for number, path in enumerate(sorted((products / 'test').iterdir())[:4]):
        shutil.copy(path, new / f'{number}{path.suffix}')
    (runs.folder / 'names.txt').write_text('lemonade\n')
    runs.server.put_folder(runs.bucket, 'new', new.parent)
    runs.server.put(runs.bucket, 'names.txt', b'lemonade\n')

    def changed_and_searched(root, machines):
        best = ('--RESUME_MODEL', f'{root}/log/tiny/best_model.pth', *ON_CPU)
        index = ('tools/index.py', *best, '--INDEX_FOLDER', f'{root}/catalog')
        lines = []
        for options in ((), ('--INDEX_ADD', f'{root}/new'), ('--INDEX_REMOVE', f'{root}/names.txt')):
            lines += runs.start(*index, *options, machine=next(machines)).wait().stdout.splitlines()
        runs.start(*index, '--INDEX_ADD', f'{root}/new', machine=next(machines)).wait()
        enroll = ('tools/enroll.py', *best, '--ENROLL_IMAGES', f'{root}/new', '--LOG_ROOT', f'{root}/log')
        runs.start(*enroll, '--ENROLL_INDEX', f'{root}/catalog', machine=next(machines)).wait()
        assert 'exists already' in error_line(runs.start(*enroll, machine=next(machines)).wait(2))
        found = ('--SEARCH_INDEX', f'{root}/catalog', '--SEARCH_CSV', f'{root}/found.csv', '--SEARCH_K', 3)
        runs.start('tools/search.py', *best, *found, machine=next(machines)).wait()
        return [line for line in lines if line.startswith(('added', 'removed', '  '))]

    shutil.copytree(finished / 'log', runs.folder / 'log')
    there = changed_and_searched(runs.url, itertools.cycle('abc'))
    assert there == changed_and_searched(runs.folder, itertools.repeat('d'))
    assert 'removed 4 photos of 1 product' in there
    assert runs.server.get(runs.bucket, 'found.csv') == (runs.folder / 'found.csv').read_bytes()
    assert contents(runs.download('catalog')) == contents(runs.folder / 'catalog')


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
            if runs.kill_after(running, generator.randrange(5, 120)):
                kills += 1
            else:  # it was done: once more, until there are 20 kills
                runs.start_again()
        start('machine0').wait()
    runs.check_equal(kind)


@pytest.mark.slow
def test_kills_while_checkpoints_are_uploaded(runs, scripts, seed):
    """Twenty kills, each while the server waits for an upload of a checkpoint: readers see whole ones only."""
    generator, delay = random.Random(seed), 2.0
    runs.on_disk(scripts, 'train')
    kills, dropped, position = 0, 0, (0, 0)
    with runs.server.faults(delay=delay, only=r'(PUT|POST) \S+\.pth', seed=seed):
        for _ in range(100):
            often = ('--TRAIN_CHECKPOINT_MINUTES', 0.002)
            running = runs.start_train(*LONG, *LAST, *often, machine=f'machine{generator.randrange(2)}')
            runs.kill_in_upload(running, generator.randrange(1, 7), generator.uniform(0, delay / 2))
            time.sleep(0.5)  # what arrived is stored
            ended = [line.split()[-1] for line in runs.server.requests()]
            kills += 'dropped' in ended or 'abandoned' in ended
            dropped += 'dropped' in ended
            checkpoints = {path.name: read_checkpoint(path) for path in runs.download('log/tiny').glob('*.pth')}
            if 'last.pth' in checkpoints:
                assert checkpoints['last.pth'].progress.position >= position
                position = checkpoints['last.pth'].progress.position
            if kills == 20:
                break
            if position == (LONG[1], 0):
                runs.start_again()
                position = (0, 0)
    assert kills == 20
    assert dropped
    runs.train(*LONG, *LAST, machine='machine0')
    runs.check_equal('train')
