"""OpenStack Swift as an S3 server: Arrow creates, lists, reads and removes objects, small and in several parts."""

import os

import pytest

from tests.swift_server import missing, swift_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(
        bool(missing()), reason='Swift is not installed (Debian: swift-proxy, -account, -container, -object)'
    ),
]


def test_objects(tmp_path, monkeypatch):
    from pyarrow import fs

    whole = os.urandom(13 << 20)  # more than one part
    with swift_server(tmp_path / 'swift') as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        bucket = fs.S3FileSystem(endpoint_override=server.endpoint, allow_bucket_creation=True)
        bucket.create_dir('products')
        for path, content in {'products/a/small': b'hello', 'products/large': whole}.items():
            with bucket.open_output_stream(path) as stream:
                stream.write(content)
        found = bucket.get_file_info(fs.FileSelector('products', recursive=True))
        assert {info.path: info.size for info in found if info.is_file} == {
            'products/a/small': 5, 'products/large': len(whole),
        }  # fmt: skip
        with bucket.open_input_file('products/large') as file:
            assert file.read_at(100, 6 << 20) == whole[6 << 20 :][:100]
            assert file.read() == whole
        bucket.delete_file('products/large')
        assert bucket.get_file_info('products/large').type is fs.FileType.NotFound
