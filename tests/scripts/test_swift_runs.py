"""Training from OpenStack Swift with results in it: an S3 server of other code than moto's."""

import pytest

from tests.scripts.running import ENVIRONMENT, TINY, check_same_run
from tests.swift_server import missing, swift_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(
        bool(missing()), reason='Swift is not installed (Debian: swift-proxy, -account, -container, -object)'
    ),
]


def test_data_and_results_in_swift(scripts, products, tmp_path, monkeypatch):
    """Photos are packed into Swift and trained on; a run is resumed on another machine; the weights are the same."""
    from pyarrow import fs

    scripts.run(tmp_path, 'main.py', '--config', TINY, '--NAME', 'tiny', '--DATASET_ROOT', products)
    with swift_server(tmp_path / 'swift') as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        files = fs.S3FileSystem(endpoint_override=server.endpoint, allow_bucket_creation=True)
        files.create_dir('products')

        def start(machine, script, *options):
            options = (*options, '--STORAGE_CACHE', tmp_path / machine)
            return scripts.start(tmp_path, script, *options, environment={**ENVIRONMENT, **server.environment()})

        fs.copy_files(str(products), 'products/photos', destination_filesystem=files)
        photos, packed = 's3://products/photos', 's3://products/packed'
        train = ('main.py', '--config', TINY, '--LOG_ROOT', 's3://products/log', '--NAME')
        pack = ('tools/pack.py', '--config', TINY, '--PACK_IMAGES', 'copy', '--PACK_SHORT_SIDE', 0)
        start('a', *pack, '--DATASET_ROOT', photos, '--PACK_OUT', packed).wait()
        running = start('a', *train, 'tiny', '--DATASET_SHARDS', packed)
        running.wait_for('step 3')
        running.interrupt()
        running.wait(130)
        start('b', *train, 'tiny', '--DATASET_SHARDS', packed, '--RESUME_MODEL', 'last').wait()
        start('b', *train, 'photos', '--DATASET_ROOT', photos).wait()
        downloaded = tmp_path / 'downloaded'
        downloaded.mkdir()
        fs.copy_files('products/log', str(downloaded), source_filesystem=files)
    for name in ('tiny', 'photos'):
        check_same_run(downloaded / name, tmp_path / 'log' / 'tiny')
