"""A URL in place of a path is an error in every option, argument and annotation file, unless it is one of storage."""

import json
import re
from pathlib import Path

import pytest

from lib.config.defaults import KEYS
from lib.config.options import option_of, parse_options
from lib.config.storage import set_cache
from lib.config.yaml_text import parse_config_text, read_config_file
from lib.errors import UserError, url_fault
from tests.scripts.in_process import run_in_process
from tests.scripts.running import REPOSITORY

URLS = (
    's3:/bucket/x', 's3:bucket/x', 's3a://b', 's3n://b', 'http://example.com', 'HTTPS:/example.com',
    'ftp://example.com/x', 'file:///data/x', 'file:/data/x', 'hdfs://name:9000/x', 'wasbs://c@account/x', 'az://c/x',
    'dbfs:/mnt/x', 'oss://b/x', 'hf://datasets/o/n', 'memory://x', 'ssh://host/x', 'sftp://host/x', 'user@host:/data/x',
    'host:/data/x', 'zip+https://e.com/x', 'data:image/png;base64,AA',
)  # fmt: skip
STORED = (
    's3://bucket/x', 'S3://bucket/x', ' s3://bucket/x', 'gs://b/x', 'https://example.com/a.zip',
    'abfss://c@account.dfs.core.windows.net/x',
)  # fmt: skip
LOCAL = (
    '', 'x', './x', '../x', '/data/x', 'C:/x', 'c:\\x', 'D:x', '\\\\server\\x', '//server/x', '\\\\?\\C:\\x', '~/x',
    '-', 'last', 'timm', 'folder', 'a:b', 'x/s3://b', './s3:/bucket/x', 'hf-hub:timm/x', 'cuda:0', 'log/12:30/x',
    'naïve: x', 's3', 'https', 'file', 'run 12:30', '{a,b}.pth',
)  # fmt: skip
# Texts that are no path, although files or folders occur in their description.
# MODEL.TEXT_MODEL is NAME:TAG or NAME:FILE; NAME:/FILE would count as a URL.
# The last two are names, which may look like a URL, or a file with names.
NO_PATHS = {
    'NAME',
    'DATASET.SOURCE',
    'POSTHOC.SAVE',
    'POSTHOC.METHODS',
    'MODEL.TEXT_MODEL',
    'INDEX.REMOVE',
    'ENROLL.RETIRE',
}
WORDS = re.compile(
    r'\b(file|files|folder|path|paths|checkpoint|checkpoints|annotations|CSV|images of)\b', re.IGNORECASE
)
PATHS = [name for name, key in KEYS.items() if key.is_path]


@pytest.mark.parametrize('path', URLS)
def test_urls(path):
    assert url_fault(path).startswith(f'{path!r}, a URL, but must be a local path')


@pytest.mark.parametrize('url', STORED)
def test_urls_of_storage(url):
    assert url_fault(url) == ''
    assert KEYS['LOG_ROOT'].accept('LOG_ROOT', url) == url


def test_the_cache_of_storage_is_a_local_folder_that_can_be_written_to(tmp_path):
    with pytest.raises(UserError, match=r"STORAGE.CACHE is 's3://b/x', but must be a folder of this machine"):
        set_cache({'STORAGE.CACHE': 's3://b/x'})
    (file := tmp_path / 'file').touch()
    with pytest.raises(UserError, match=f'STORAGE.CACHE {file}: file exists; give a folder that can be written to'):
        set_cache({'STORAGE.CACHE': str(file)})


@pytest.mark.parametrize('path', LOCAL)
def test_local_paths(path):
    assert url_fault(path) == ''
    assert KEYS['LOG_ROOT'].accept('LOG_ROOT', path) == path


def test_every_key_that_takes_a_path_is_declared_as_one():
    texts = {name for name, key in KEYS.items() if key.entry_type is str and not key.choices}
    described = {name for name in texts if WORDS.search(KEYS[name].meaning)}
    assert described - NO_PATHS - set(PATHS) - {name for name in texts if name.endswith(('PART', 'COLUMNS'))} == set()
    assert set(PATHS) <= texts
    assert len(PATHS) >= 20


@pytest.mark.parametrize('name', PATHS)
def test_every_path_option_refuses_a_url(name):
    with pytest.raises(UserError) as caught:
        parse_options([option_of(name), 'hdfs://bucket/x'], program='main.py', description='')
    assert str(caught.value).startswith(f"{option_of(name)} is 'hdfs://bucket/x', a URL, but must be a local path")
    with pytest.raises(UserError, match=f"F: {name} is 'hdfs://bucket/x', a URL"):
        parse_config_text(f'{name}: hdfs://bucket/x', 'F')


def test_every_path_of_a_list():
    with pytest.raises(UserError, match=r"TEST.ENSEMBLE is 'hdfs://e.com/b.pth', a URL"):
        KEYS['TEST.ENSEMBLE'].accept('TEST.ENSEMBLE', 'a.pth, hdfs://e.com/b.pth')
    assert KEYS['TEST.ENSEMBLE'].accept('', ' C:/a.pth,b.pth,') == ('C:/a.pth', 'b.pth')


def test_a_file_url_is_answered_with_its_path():
    for path in ('file:///data/photos', 'file:/data/photos', 'FILE://localhost/data/photos'):
        assert url_fault(path).endswith('; type /data/photos')


def test_a_config_file_that_is_a_url():
    with pytest.raises(UserError, match=r"--config is 'hdfs://e.com/x.yaml', a URL"):
        read_config_file('hdfs://e.com/x.yaml')


U = 'hdfs://bucket/x'
COMMANDS = [
    ('tools/compare.py', U), ('tools/compare.py', 'log/x', '--output', U),
    ('tools/merge.py', '--RESUME_MODEL', U), ('tools/merge.py', '--RESUME_MODEL', 'x.pth', '--output', U),
    ('tools/convert.py', 'csv', U), ('tools/convert.py', 'csv', '.', U), ('tools/convert.py', 'list', '.', '--val', U),
    ('tools/convert.py', 'inat', '.', '--image_root', U), ('tools/get_dataset.py', 'GroceryStore', U),
    ('tools/grid.py', '--base', U, '--methods', 'ce'),
    *(('tools/grid.py', '--base', 'demo', '--methods', 'ce', name, U) for name in ('--out', '--overlays', '--json')),
    ('tools/pack.py', '--PACK_OUT', U), ('main.py', '--config', f'{U}.yaml'),
]  # fmt: skip


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_every_tool_refuses_a_url_and_writes_nothing(tmp_path, monkeypatch, command):
    monkeypatch.syspath_prepend(REPOSITORY / 'tools')  # as Python does for a script
    done = run_in_process(tmp_path, *command)
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert 'a URL, but must be a local path' in done.stderr
    assert done.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def write_set(folder: Path, *paths: str) -> None:
    entries = [{'category_id': 0, 'fpath': path} for path in paths]
    (folder / 'converted_train.json').write_text(json.dumps({'annotations': entries, 'num_classes': 1}))


def test_urls_in_an_annotation_file(tmp_path):
    """Reported once, with their number, and not as files that do not exist."""
    (tmp_path / 'a.jpg').touch()
    write_set(tmp_path, 'a.jpg', 'https://e.com/1.jpg', 'https://e.com/2.jpg')
    done = run_in_process(tmp_path, 'main.py', '--DATASET_ROOT', '.', '--NAME', 'x', '--RUN_DEVICE', 'cpu')
    assert done.returncode == 2
    assert '2 of 3 images are URLs, such as https://e.com/1.jpg; download them first' in done.stderr
    assert done.stderr.count('error: ') == 1


def test_urls_in_a_converted_list(tmp_path):
    (tmp_path / 'train.csv').write_text('path,label\nhttps://e.com/1.jpg,a\n')
    done = run_in_process(tmp_path, 'tools/convert.py', 'csv', '.')
    assert done.returncode == 2
    assert 'train: 1 of 1 images is a URL, such as https://e.com/1.jpg; download' in done.stderr
    assert not (tmp_path / 'converted_train.json').exists()
