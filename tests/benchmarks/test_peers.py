"""Every benchmark without the libraries that it compares with: one line that names the requirements file."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from benchmarks.harness import PEERS
from tests.scripts.in_process import run_in_process
from tests.scripts.running import REPOSITORY

FOLDER = REPOSITORY / 'benchmarks'
SCRIPTS = sorted(path for path in FOLDER.glob('*.py') if 'cli_main(main)' in path.read_text(encoding='utf-8'))
OWN = {'lib', 'benchmarks', 'tests'}


def packages(file: Path) -> set[str]:
    """Return the packages of a requirements file, in lower case with underscores."""
    lines = file.read_text(encoding='utf-8').splitlines()
    names = (re.match(r'[A-Za-z0-9._-]+', line) for line in lines if not line.startswith(('#', '-')))
    return {name[0].lower().replace('-', '_') for name in names if name}


INSTALLED = packages(REPOSITORY / 'requirements.txt') | {'pil'}  # Pillow's module


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def peers_of(path: Path) -> set[str]:
    """Return the libraries beyond requirements.txt that a benchmark needs, with its helpers in benchmarks/."""
    modules, seen = imports(path), set()
    while helpers := {name for name in modules - seen if name.startswith('benchmarks.')}:
        seen |= helpers
        for name in helpers:
            modules |= imports(FOLDER / f'{name.partition(".")[2]}.py')
    first_parts = {name.partition('.')[0].lower() for name in modules} - OWN - set(sys.stdlib_module_names) - INSTALLED
    return {peer for peer in PEERS if peer.partition('.')[0] in first_parts} | (
        first_parts - {peer.partition('.')[0] for peer in PEERS}
    )


def test_peers_are_in_the_requirements_file():
    assert {name.replace('-', '_') for name in PEERS.values()} <= packages(FOLDER / 'requirements-bench.txt')


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.stem)
def test_every_import_is_in_a_requirements_file(path):
    assert peers_of(path) <= set(PEERS)


# benchmarks/original.py imports OpenCV only where photos are decoded, and these benchmarks decode none with it.
WITHOUT_PHOTOS = {'step', 'gpu'}
WITH_PEERS = [path for path in SCRIPTS if peers_of(path) and path.stem not in WITHOUT_PHOTOS]


def test_the_benchmarks_with_peers():
    assert {path.stem for path in WITH_PEERS} == {'loader', 'epoch', 'predict', 'report', 'clean'}


@pytest.mark.long
@pytest.mark.parametrize('path', WITH_PEERS, ids=lambda path: path.stem)
def test_a_missing_peer_is_one_line(path, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec

    def without_peers(name, package=None):
        if name == 'nvidia.dali':
            raise ModuleNotFoundError("No module named 'nvidia'", name='nvidia')
        return None if name in PEERS else find_spec(name, package)

    monkeypatch.setattr('benchmarks.harness.find_spec', without_peers)
    monkeypatch.delenv('REAL_PHOTOS', raising=False)
    done = run_in_process(tmp_path, f'benchmarks/{path.name}')
    assert done.returncode == 2
    assert done.stderr.startswith('error: this benchmark needs ')
    assert done.stderr.endswith(': python -m pip install -r benchmarks/requirements-bench.txt\n')
    assert done.stderr.count('\n') == 1


@pytest.mark.long
@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.stem)
def test_mistakes_on_the_command_line_are_one_line(path, tmp_path):
    for options in (('--nothing', '1'), ('--json', 'ftp://host/x.json')):
        done = run_in_process(tmp_path, f'benchmarks/{path.name}', *options)
        assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
        assert done.stderr.startswith('error: ')
        assert 'Traceback' not in done.stderr
