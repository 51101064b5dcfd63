"""The commit of a checkout, compared with git; in layouts written by hand where there is no git."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lib.runtime import checkout
from lib.runtime.checkout import describe_commit, path_to_type

SHA = 'a1b2c3d4' * 5
OTHER = 'f' * 40


_RUN_GIT = checkout._git  # tests that may start no process have a fake, see tests/conftest.py


@pytest.fixture(autouse=True)
def run_git(monkeypatch):
    monkeypatch.setattr(checkout, '_git', _RUN_GIT)


@pytest.fixture
def no_git(monkeypatch):
    """Make every start of a program fail, as without git."""

    def fail(*_, **__):
        raise FileNotFoundError('git')

    monkeypatch.setattr(subprocess, 'run', fail)


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


LAYOUTS = {
    'branch': {'.git/HEAD': 'ref: refs/heads/main\n', '.git/refs/heads/main': f'{SHA}\n'},
    'detached': {'.git/HEAD': f'{SHA}\n'},
    'packed': {
        '.git/HEAD': 'ref: refs/heads/a/b\n',
        '.git/packed-refs': f'# pack-refs with: peeled\n{OTHER} refs/heads/a\n{SHA} refs/heads/a/b\n^{OTHER}\n',
    },
    'own file before packed': {
        '.git/HEAD': 'ref: refs/heads/main',
        '.git/refs/heads/main': SHA,
        '.git/packed-refs': f'{OTHER} refs/heads/main\n',
    },
    'worktree': {
        '.git': 'gitdir: main/.git/worktrees/x\n',
        'main/.git/worktrees/x/HEAD': 'ref: refs/heads/x\n',
        'main/.git/worktrees/x/commondir': '../..\n',
        'main/.git/refs/heads/x': f'{SHA}\n',
    },
    'SHA-256': {'.git/HEAD': 'ab' * 32},
}
UNKNOWN = {
    'no commit yet': {'.git/HEAD': 'ref: refs/heads/main\n'},
    'no HEAD': {'.git/config': ''},
    'damaged': {'.git/HEAD': 'ref: refs/heads/main\n', '.git/refs/heads/main': '0123'},
    'gitdir is missing': {'.git': 'gitdir: elsewhere\n'},
    'not a gitdir': {'.git': 'x'},
    'a folder as branch': {'.git/HEAD': 'ref: refs/heads\n', '.git/refs/heads/main': SHA},
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_without_git_the_files_are_read(tmp_path, no_git, name):
    commit = 'ab' * 32 if name == 'SHA-256' else SHA
    assert describe_commit(write(tmp_path, LAYOUTS[name])) == f'{commit} (changes unknown: git failed)'


@pytest.mark.parametrize('name', UNKNOWN)
def test_an_unreadable_checkout_is_unknown(tmp_path, no_git, name):
    assert describe_commit(write(tmp_path, UNKNOWN[name])) == 'unknown (no commit can be read)'


def test_a_folder_without_git_is_unknown(tmp_path, no_git):
    (tmp_path / '.git').mkdir()
    assert describe_commit(tmp_path / 'inside another checkout') == 'unknown (not a git checkout)'
    (tmp_path / '.git' / 'HEAD').write_bytes(b'\xff\xfe')
    assert describe_commit(tmp_path) == 'unknown (no commit can be read)'


@pytest.mark.parametrize(
    'error', [subprocess.TimeoutExpired('git', 1), PermissionError(), subprocess.CalledProcessError(128, 'git')]
)
def test_a_failing_git_never_fails_the_run(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, 'run', fail)
    assert describe_commit(write(tmp_path, LAYOUTS['branch'])).startswith(SHA)


@pytest.mark.process
@pytest.mark.skipif(shutil.which('git') is None, reason='needs git')
def test_a_checkout_is_described_as_git_sees_it(tmp_path, monkeypatch):
    root = tmp_path / 'project'

    def git(*arguments, cwd=root):
        environment = {**os.environ, 'HOME': str(tmp_path), 'GIT_CONFIG_NOSYSTEM': '1'}
        identity = ['-c', 'user.name=x', '-c', 'user.email=x@x', '-c', 'commit.gpgsign=false']
        done = subprocess.run(
            ['git', *identity, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    write(root, {'main.py': 'a', 'lib/x.py': 'b'})
    git('init', '-q')
    assert describe_commit(root) == 'unknown (no commit can be read)'  # before the first commit
    git('add', '.')
    git('commit', '-qm', 'first')
    head = git('rev-parse', 'HEAD')
    # Started by a hook, git finds another repository in its environment.
    monkeypatch.setenv('GIT_DIR', str(tmp_path / 'other'))
    monkeypatch.setenv('GIT_WORK_TREE', str(tmp_path / 'other'))
    assert describe_commit(root) == head
    monkeypatch.delenv('GIT_DIR')
    monkeypatch.delenv('GIT_WORK_TREE')
    write(root, {'notes.txt': 'no code', 'log/run/config.yaml': 'a result'})
    assert describe_commit(root) == head
    write(root, {'lib/new.py': 'untracked code'})
    assert describe_commit(root) == f'{head} (with uncommitted changes)'
    git('worktree', 'add', '-q', '--detach', str(tmp_path / 'second'))
    assert describe_commit(tmp_path / 'second') == head
    git('gc', '-q')  # packs the branch
    inside = write(root, {'vendored/lib/x.py': ''}) / 'vendored'
    assert describe_commit(inside) == 'unknown (not a git checkout)'
    monkeypatch.setattr(checkout, '_git', lambda *_: None)
    for path in (root, tmp_path / 'second'):
        assert describe_commit(path) == f'{head} (changes unknown: git failed)'


@pytest.mark.process
def test_the_checkout_of_this_project_can_be_described():
    found = describe_commit()
    assert found.startswith('unknown (not a git') or checkout._COMMIT.match(found), found
    assert (Path(checkout.__file__).parents[2] / 'main.py').is_file()


def test_a_script_can_be_typed_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(checkout, 'CHECKOUT', tmp_path / 'code')
    absolute = str(tmp_path / 'code/tools/plan.py')
    for folder, path in (('.', 'code/tools/plan.py'), ('code', 'tools/plan.py'), ('code/lib', absolute)):
        (tmp_path / folder).mkdir(exist_ok=True, parents=True)
        monkeypatch.chdir(tmp_path / folder)
        assert path_to_type('tools/plan.py') == path
