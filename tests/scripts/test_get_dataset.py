"""dataset/get_dataset_*.sh, as a user runs them, in a copy of the repository."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.aliproducts import make_aliproducts

pytestmark = pytest.mark.process
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def code(tmp_path_factory):
    """Return a copy of the code, so that the real dataset/ is not changed."""
    copy = tmp_path_factory.mktemp('copy') / 'the repository'
    for name in ('lib', 'tools'):
        shutil.copytree(REPOSITORY / name, copy / name)  # bytecode included, which saves seconds per command
    python = copy / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return copy


@pytest.fixture
def repository(code):
    """Return the copy with an empty dataset/."""
    shutil.rmtree(code / 'dataset', ignore_errors=True)
    (code / 'dataset').mkdir()
    for script in (REPOSITORY / 'dataset').glob('*.sh'):
        shutil.copy(script, code / 'dataset')
    return code


def run(repository, name, *arguments, cwd=None, path=None):
    script = repository / 'dataset' / f'get_dataset_{name}.sh'
    environment = os.environ | ({'PATH': f'{path}{os.pathsep}{os.environ["PATH"]}'} if path else {})
    command = ['sh', str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or repository, env=environment, check=False)


def check(folder, **numbers):
    """Assert that all images of the converted files exist below DATASET.ROOT = folder."""
    for split, number in numbers.items():
        tree = json.loads((folder / f'converted_{split}.json').read_text())
        entries = tree.get('annotations') or tree['images']
        assert len(entries) == number
        paths = [folder / (entry.get('fpath') or entry['image_id']) for entry in entries]
        assert all(path.is_file() for path in paths)
        assert not any('..' in path.parts for path in paths)


def test_aliproducts_without_data_prints_the_steps(repository):
    result = run(repository, 'AiProducts')
    assert result.returncode == 2
    for part in (
        'tianchi.aliyun.com/competition/entrance/231780',
        'terms',
        'train.json',
        'configs/demo.yaml',
    ):
        assert part in result.stdout
    lines = [line for line in result.stdout.splitlines() if str(repository) not in line]
    assert max(map(len, lines)) <= 80
    assert result.stderr.startswith('error: no train.json in ')
    assert result.stderr.count('\n') == 1


def test_aliproducts_unpacked_elsewhere_is_linked(repository, tmp_path):
    make_aliproducts(tmp_path / 'downloads' / 'AliProducts', 4, 3, size=8)
    for _ in range(2):  # a second time is harmless
        result = run(repository, 'AiProducts', 'downloads', cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        check(repository / 'dataset' / 'AiProducts', train=12, val=8, test=6)
    assert (repository / 'dataset' / 'AiProducts' / 'train').is_symlink()
    assert 'python main.py' in result.stdout


def test_aliproducts_archives(repository, tmp_path):
    made = make_aliproducts(tmp_path / 'made', 3, 2, size=8)
    home = repository / 'dataset' / 'AiProducts'
    home.mkdir()
    with tarfile.open(home / 'train.tar.gz', 'w:gz') as archive:
        archive.add(made / 'train', 'train')
    with zipfile.ZipFile(home / 'rest.zip', 'w') as archive:
        for path in [*made.glob('val/*/*'), *made.glob('test/*')]:
            archive.write(path, path.relative_to(made))
    for name in ('train.json', 'val.json'):
        shutil.copy(made / name, home)
    result = run(repository, 'AiProducts')
    assert result.returncode == 0, result.stderr
    check(home, train=6, val=6, test=6)
    assert 'was unpacked before' in run(repository, 'AiProducts').stdout


def test_aliproducts_in_place_needs_no_links(repository):
    home = make_aliproducts(repository / 'dataset' / 'AiProducts', 3, 2, size=8)
    assert run(repository, 'AiProducts').returncode == 0
    check(home, train=6, val=6, test=6)


def make_grocery(folder):
    (folder / 'train').mkdir(parents=True)
    (folder / 'train' / 'a.jpg').touch()
    header = 'Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)\n'
    (folder / 'classes.csv').write_text(header + 'Kiwi,0,Kiwi,0\n')
    (folder / 'train.txt').write_text('train/a.jpg, 0, 0\n')
    return folder


@pytest.mark.parametrize('kind', ['checkout', 'dataset', 'tar', 'zip'])
def test_grocery_store(repository, tmp_path, kind):
    folder = make_grocery(tmp_path / 'checkout' / 'dataset')
    given = {'checkout': tmp_path / 'checkout', 'dataset': folder}.get(kind)
    given = given or shutil.make_archive(str(tmp_path / 'archive'), kind, tmp_path, 'checkout')
    for _ in range(2 if kind == 'checkout' else 1):  # a second time is harmless
        result = run(repository, 'GroceryStore', given)
        assert result.returncode == 0, result.stderr
        check(repository / 'dataset' / 'GroceryStore', train=1)


def fake_git(folder, script):
    folder.mkdir()
    (folder / 'git').write_text(f'#!/bin/sh\n{script}\n')
    (folder / 'git').chmod(0o755)
    return folder


def test_grocery_store_is_cloned_once(repository, tmp_path):
    make_grocery(tmp_path / 'upstream' / 'dataset')
    script = f'echo "$@" >> "{tmp_path}/calls"\nfor last; do :; done\ncp -r "{tmp_path}/upstream" "$last"'
    git = fake_git(tmp_path / 'bin', script)
    for _ in range(2):
        result = run(repository, 'GroceryStore', path=git)
        assert result.returncode == 0, result.stderr
    check(repository / 'dataset' / 'GroceryStore', train=1)
    calls = (tmp_path / 'calls').read_text().splitlines()
    assert len(calls) == 1
    assert 'https://github.com/marcusklasson/GroceryStoreDataset' in calls[0]


def test_grocery_store_when_the_clone_fails(repository, tmp_path):
    git = fake_git(tmp_path / 'bin', 'echo "fatal: could not resolve host" >&2; exit 128')
    result = run(repository, 'GroceryStore', path=git)
    assert result.returncode == 2
    assert 'failed (fatal: could not resolve host); download it another way' in result.stderr
    assert result.stderr.count('\n') == 1
    assert list((repository / 'dataset' / 'GroceryStore').iterdir()) == []


@pytest.mark.parametrize(
    ('name', 'arguments', 'part'),
    [
        ('AiProducts', ['absent'], 'absent: no such folder'),
        ('AiProducts', ['a', 'b'], 'usage: sh ./dataset/get_dataset_AiProducts.sh [DIR]'),
        ('GroceryStore', ['absent'], 'absent: neither a folder nor an archive'),
        ('GroceryStore', ['lib'], 'no classes.csv and train.txt'),
        ('GroceryStore', ['--fast'], 'usage: sh ./dataset/get_dataset_GroceryStore.sh [DIR]'),
    ],
)
def test_mistakes_are_one_line(repository, name, arguments, part):
    result = run(repository, name, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1
    assert part in result.stderr
    assert not list((repository / 'dataset').glob('*/*'))


@pytest.mark.skipif('REAL_PHOTOS' not in os.environ, reason='REAL_PHOTOS names no folder with real photos')
def test_grocery_store_real(repository):
    result = run(repository, 'GroceryStore', os.environ['REAL_PHOTOS'])
    assert result.returncode == 0, result.stderr
    check(repository / 'dataset' / 'GroceryStore', train=2640, val=296)
