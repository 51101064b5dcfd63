"""Training, prediction and tools that read from a bucket: the same images, order and weights as from the disk."""

import json
from pathlib import Path

import pytest

from tests.scripts.rank_runs import start_ranks
from tests.scripts.running import ENVIRONMENT, ON_CPU, REPOSITORY, TINY, check_same_run, error_line
from tests.web_server import web_server

pytestmark = [pytest.mark.process, pytest.mark.long]

# Rank 0 and rank 1 compute other sums than one process; so the run on two ranks is compared with one on two ranks.
SHUFFLED = ('--NAME', 'tiny', '--INPUT_AUGMENT', 'trivial_augment')


class Reader:
    """Runs scripts on data in a bucket, each in its own folder, and with its own cache.

    Attributes:
        options: that set the data, by form: packed, raw (packed as pixels), listed and folders; for the bucket.
        local: the same for the disk.
    """

    def __init__(self, scripts, server, folder, products):
        self.scripts, self.server, self.folder, self.products = scripts, server, folder, products
        self.bucket = server.new_bucket()
        self.environment = server.environment()
        self.options, self.local = {}, {}

    def add(self, form):
        """Prepare the data of a form on the disk, and upload it."""
        path = self.products
        if form in ('packed', 'raw'):
            path = self.folder / form
            kind = ('raw', '--PACK_SHORT_SIDE', 36) if form == 'raw' else ('copy', '--PACK_SHORT_SIDE', 0)
            data = ('--config', TINY, '--DATASET_ROOT', self.products, '--PACK_OUT', path, '--PACK_SHARD_IMAGES', 8)
            self.scripts.run(self.folder, 'tools/pack.py', *data, '--PACK_IMAGES', *kind)
        elif form == 'folders':
            path = self.products / 'train'
        key = {'packed': 'SHARDS', 'raw': 'SHARDS'}.get(form, 'ROOT')
        self.server.put_folder(self.bucket, form, path)
        self.options[form] = (f'--DATASET_{key}', f'{self.server.scheme}://{self.bucket}/{form}')
        self.local[form] = (f'--DATASET_{key}', path)

    def start(self, folder, script, *options):
        """Start a script with its own cache."""
        path = self.folder / folder
        path.mkdir(exist_ok=True)
        environment = {**ENVIRONMENT, **self.environment, 'XDG_CACHE_HOME': str(path / 'cache')}
        return self.scripts.start(path, script, *options, environment=environment)

    def train(self, form, folder, *options):
        """Train on the data of a form in the bucket; return the run folder."""
        self.start(folder, 'main.py', '--config', TINY, *SHUFFLED, *self.options[form], *options).wait()
        return self.folder / folder / 'log' / 'tiny'

    def train_locally(self, form, *options):
        """Train on the same data on the disk."""
        folder = self.folder / 'local'
        folder.mkdir(exist_ok=True)
        self.scripts.run(folder, 'main.py', '--config', TINY, *SHUFFLED, *self.local[form], *options)
        return folder / 'log' / 'tiny'


@pytest.fixture
def reader(scripts, storage_server, tmp_path, products):
    return Reader(scripts, storage_server, tmp_path, products)


def test_training_on_packed_images_while_requests_fail(reader, finished):
    """A part of the requests is cut, refused or corrupted; the weights are those of training on the photos."""
    reader.add('packed')
    with reader.server.faults(cut=0.03, slow_down=0.03, flip=0.1, only='GET .*tar'):
        data = (*reader.options['packed'], '--NAME', 'tiny')
        reader.start('remote', 'main.py', '--config', TINY, *data).wait()
    run = reader.folder / 'remote' / 'log' / 'tiny'
    check_same_run(run, finished / 'log' / 'tiny')
    log = (run / 'log.txt').read_text() + (run / 'config.yaml').read_text()
    assert f'{reader.server.scheme}://{reader.bucket}/packed' in log
    assert 'bucket-mirror' not in log


@pytest.mark.slow
def test_a_second_run_requests_no_image(reader):
    reader.add('packed')
    reader.train('packed', 'remote')
    reader.server.requests()
    reader.train('packed', 'remote', '--OVERWRITE', True)
    assert not [line for line in reader.server.requests() if line.startswith('GET') and '.tar' in line]


@pytest.mark.slow
@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('form', ['packed', 'raw', 'listed', 'folders'])
def test_every_form_of_data(reader, form, num_workers):
    reader.add(form)
    with reader.server.faults(cut=0.03, slow_down=0.03, flip=0.1):
        run = reader.train(form, 'remote', '--RUN_NUM_WORKERS', num_workers)
    check_same_run(run, reader.train_locally(form))
    assert ('packing is faster' in (run / 'log.txt').read_text()) == (form in ('listed', 'folders'))


@pytest.mark.slow
def test_two_ranks(reader):
    reader.add('packed')
    runs = []
    for data, folder in ((reader.options, 'remote'), (reader.local, 'local')):
        path = reader.folder / folder
        path.mkdir()
        options = ('--config', TINY, *SHUFFLED, *data['packed'], '--STORAGE_CACHE', path / 'cache')
        for rank in start_ranks(reader.scripts, 2, path, 'main.py', *options, more=reader.environment):
            rank.wait()
        runs.append(path / 'log' / 'tiny')
    check_same_run(*runs)


@pytest.mark.slow
def test_resume_in_mid_epoch_with_an_empty_cache(reader):
    reader.add('packed')
    running = reader.start('remote', 'main.py', '--config', TINY, *SHUFFLED, *reader.options['packed'])
    running.wait_for('step 3')
    running.interrupt()
    assert running.wait(None).returncode in (0, 130)
    cache = reader.folder / 'remote' / 'cache'
    cache.rename(cache.with_name('old_cache'))
    run = reader.train('packed', 'remote', '--RESUME_MODEL', 'last')
    check_same_run(run, reader.train_locally('packed'))


@pytest.mark.slow
def test_tools_and_prediction(reader):
    """test.py predicts a folder in the bucket with a model from the bucket; doctor and convert read from it."""
    reader.add('listed')
    run = reader.train_locally('listed')
    for name in ('best_model.pth', 'config.yaml'):
        reader.server.put(reader.bucket, f'model/{name}', (run / name).read_bytes())
    url = f'{reader.server.scheme}://{reader.bucket}'
    images = ('--TEST_IMAGES', reader.products / 'test')
    reader.scripts.run(reader.folder, 'test.py', '--RESUME_MODEL', run / 'best_model.pth', *images)
    remote = ('--RESUME_MODEL', f'{url}/model/best_model.pth', '--TEST_IMAGES', f'{url}/listed/test')
    reader.start('remote', 'test.py', *remote).wait()
    written = {path.name: path.read_bytes() for path in run.glob('predictions*.csv')}
    assert written
    found = reader.server.objects(reader.bucket, 'model/predictions')
    assert {name.removeprefix('model/'): data for name, data in found.items() if name.endswith('.csv')} == written
    doctor = ('tools/doctor.py', '--config', TINY, '--NAME', 'checked')
    reader.scripts.run(reader.folder, *doctor, *reader.local['listed'])
    reader.start('remote', *doctor, *reader.options['listed']).wait()
    here, there = (
        (path / 'log' / 'checked_doctor' / 'doctor.json').read_text()
        for path in (reader.folder, reader.folder / 'remote')
    )
    assert json.loads(here.replace(str(reader.products), f'{url}/listed')) == json.loads(there)
    reader.start('remote', 'tools/convert.py', 'imagefolder', f'{url}/listed').wait()
    converted = reader.server.get(reader.bucket, 'listed/converted_train.json')
    reader.scripts.run(reader.folder, 'tools/convert.py', 'imagefolder', reader.products, 'converted')
    paths, others = (
        [Path(entry['fpath']).name for entry in json.loads(text)['annotations']]
        for text in (converted, (reader.folder / 'converted' / 'converted_train.json').read_bytes())
    )
    assert paths == others
    missing = reader.start('remote', 'main.py', '--config', TINY, '--DATASET_ROOT', f'{url}-none/x').wait(2)
    assert 'no such bucket' in error_line(missing)


@pytest.mark.slow
def test_the_cache_has_a_limit(reader):
    """With a cache that is smaller than the data, training gives the same weights."""
    reader.add('raw')
    run = reader.train('raw', 'remote', '--STORAGE_CACHE_GB', 0.01)
    check_same_run(run, reader.train_locally('raw'))


@pytest.mark.slow
@pytest.mark.parametrize('num_ranks', [1, 2])
def test_the_demo(reader, num_ranks):
    """configs/demo.yaml, with fewer photos per class and two epochs, from shards that pack.py wrote into the bucket."""
    demo = ('--config', REPOSITORY / 'configs' / 'demo.yaml', '--DATASET_ROOT', reader.folder / 'demo')
    short = (*demo, *ON_CPU[:4], '--DATASET_HEAD_CAP', 8, '--TRAIN_MAX_EPOCH', 2, '--TRAIN_VALID_EVERY_EPOCHS', 1)
    url = f's3://{reader.bucket}/demo'
    pack = ('tools/pack.py', *demo, '--PACK_IMAGES', 'copy', '--PACK_SHORT_SIDE', 0)
    reader.start('packing', *pack, '--PACK_OUT', url).wait()
    runs = []
    for name, data in (
        ('local', ('--RUN_NUM_WORKERS', 0)),
        ('remote0', ('--DATASET_SHARDS', url, '--RUN_NUM_WORKERS', 0)),
        ('remote2', ('--DATASET_SHARDS', url, '--RUN_NUM_WORKERS', 2)),
    ):
        path = reader.folder / name
        path.mkdir()
        options = (*short, *data, '--STORAGE_CACHE', path / 'cache')
        for rank in start_ranks(reader.scripts, num_ranks, path, 'main.py', *options, more=reader.environment):
            rank.wait()
        runs.append(path / 'log' / 'demo')
    assert url in (runs[1] / 'log.txt').read_text()
    for run in runs[1:]:
        check_same_run(run, runs[0])


@pytest.mark.slow
@pytest.mark.parametrize('has_ranges', [True, False])
def test_shards_of_a_web_server(reader, has_ranges):
    """Training on packed images that https serves; small shards are read whole where the server has no ranges."""
    reader.add('packed')
    certificate = reader.folder / 'certificate.pem'
    reader.environment['SSL_CERT_FILE'] = str(certificate)
    with web_server(reader.folder / 'packed', certificate, has_ranges=has_ranges) as url:
        reader.start('remote', 'main.py', '--config', TINY, *SHUFFLED, '--DATASET_SHARDS', url).wait()
    check_same_run(reader.folder / 'remote' / 'log' / 'tiny', reader.train_locally('packed'))
