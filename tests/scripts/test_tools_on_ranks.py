"""The tools on several ranks write the same files as one process, also after a rank was killed in the middle."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from lib.runtime.folders import lock_folder
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ENVIRONMENT, ON_CPU, REPOSITORY, TINY

pytestmark = [pytest.mark.process, pytest.mark.long]
# All that may differ: locks hold process ids, and of a store of features, each rank has a journal.
VARIES = re.compile(r'.*\.lock|rows\d+\.jsonl')
COMMIT = re.compile(rb'\Acommit: .*\n')  # of environment.txt: the checkout may change while the tests run
BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', '--TEST_BATCH_SIZE', 4, *ON_CPU)
GOODS = ('--DATASET_ROOT', 'goods')
DOCTOR = ('tools/doctor.py', '--config', TINY, *GOODS, '--NAME', 'goods', *ON_CPU)
PACK = ('tools/pack.py', '--config', TINY, *GOODS, '--PACK_OUT', 'packed', '--PACK_SHARD_IMAGES', 8, *ON_CPU)
INDEX = ('tools/index.py', *BEST, *GOODS, '--INDEX_DIMENSIONS', 4)
SEARCH = ('tools/search.py', *BEST, *GOODS, '--SEARCH_CSV', 'found.csv', '--SEARCH_K', 3)
CLEAN = ('tools/clean.py', *BEST, *GOODS, '--CLEAN_FOLDS', 3, '--CLEAN_ROUNDS', 2)
ENROLL = ('tools/enroll.py', *BEST, *GOODS, '--ENROLL_IMAGES', 'more', '--ENROLL_PER_CLASS', 2, '--ENROLL_MAX_LOSS', 1)
# Each with the commands that precede it, in one process.
COMMANDS = {
    'doctor': (DOCTOR,),
    'pack': (PACK,),
    'index': (INDEX,),
    'search': ((*SEARCH, '--SEARCH_WHITEN', True, '--SEARCH_RERANK', 'reciprocal'),),
    'search a catalog': (INDEX, (*SEARCH, '--SEARCH_INDEX', 'log/tiny/catalog')),
    'change a catalog': (INDEX, (*INDEX[:-2], '--INDEX_ADD', 'more', '--INDEX_REMOVE', '3')),
    'clean': (CLEAN,),
    'clean, pretrained': (
        ('tools/clean.py', '--config', REPOSITORY / 'configs' / 'own_photos.yaml', *GOODS, '--NAME', 'goods',
         '--INPUT_SIZE', 48, '--INPUT_TEST_SIZE', 48, '--CLEAN_ROUNDS', 1, '--CLEAN_HEAD', 'cosine',
         '--TEST_BATCH_SIZE', 16, *ON_CPU),
    ),
    'posthoc': (('tools/posthoc.py', *BEST, *GOODS, '--POSTHOC_FOLDS', 2),),
    'pseudo-labels': (
        ('tools/pseudo_label.py', *BEST, *GOODS, '--PSEUDO_IMAGES', 'goods/test', '--PSEUDO_ERROR', 0.9, '--PSEUDO_OUT',
         'pseudo/train.json'),
    ),
    'enroll': (INDEX, (*ENROLL, '--ENROLL_INDEX', 'log/tiny/catalog')),
    'propose': (('tools/enroll.py', *BEST, *GOODS, '--ENROLL_PROPOSE', 'more'),),
    'compare': (('tools/compare.py', 'log/tiny', 'log/tiny/last.pth', *GOODS, *ON_CPU),),
    'report': (('tools/report.py', *BEST, *GOODS, '--REPORT_JSON', True),),
}  # fmt: skip
FAST = ('doctor', 'pack', 'search a catalog')


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder, by path, except what may differ."""
    return {
        path.relative_to(folder).as_posix(): COMMIT.sub(b'', path.read_bytes())
        for path in sorted(folder.rglob('*'))
        if path.is_file() and not VARIES.fullmatch(path.name)
    }


def lines_of(done) -> list[str]:
    """Return the printed lines, without durations."""
    return re.sub(r'\b[\d.]+ s\b', 'N s', done.stdout).splitlines()


@pytest.fixture
def new_shop(finished, products, tmp_path):
    """A function that makes a folder with the run log/tiny, its data goods/, and the class folders more/.

    It replaces the one that was made before: some files hold absolute paths.
    """

    def make() -> Path:
        folder = tmp_path / 'shop'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(finished / 'log', folder / 'log')
        (folder / 'goods').symlink_to(products)
        (folder / 'more').symlink_to(products / 'train')
        return folder

    return make


def marked(name):
    return name if name in FAST else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize('count', [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', [*map(marked, COMMANDS)])
def test_the_files_are_those_of_one_process(scripts, new_shop, name, count):
    *before, command = COMMANDS[name]

    def shop() -> Path:
        folder = new_shop()
        for one in before:
            scripts.run(folder, *one)
        return folder

    folder = shop()
    untouched = files_of(folder)
    expected = scripts.run(folder, *command)
    wanted = files_of(folder)
    assert wanted != untouched
    main, *others = run_ranks_of(scripts, count, shop(), *command)
    found = files_of(folder)
    assert found.keys() == wanted.keys()
    assert [path for path in found if found[path] != wanted[path]] == []
    assert lines_of(main) == lines_of(expected)
    assert main.stderr == expected.stderr
    assert {one.stdout + one.stderr for one in others} == {''}


# Command -> the function in which its second rank is killed, and in which call.
KILLS = {
    'doctor': ('lib.audit.scan:_scan_rows', 1),
    'pack': ('lib.shards.write:ShardWriter.__call__', 3),
    'index': ('lib.inference.engine:EagerEngine.features', 2),
    'search': ('lib.inference.engine:EagerEngine.features', 2),
    'clean': ('lib.inference.engine:EagerEngine.features', 2),
}


def fail(scripts, folder, rank, how, name, command):
    """Run a command on two ranks, of which one fails, and return the outcomes."""
    script, *options = command
    wrapped = (rank, how, *KILLS[name], REPOSITORY / script, *options)
    return run_ranks_of(scripts, 2, folder, 'tests/scripts/fail_on_rank.py', *wrapped, code=None)


@pytest.mark.parametrize('name', [*map(marked, KILLS)])
def test_the_same_command_completes_what_a_killed_rank_left(scripts, new_shop, name):
    (command,) = COMMANDS[name]
    scripts.run(folder := new_shop(), *command)
    wanted = files_of(folder)
    main, other = fail(scripts, new_shop(), 1, 'kill', name, command)
    assert (main.returncode, other.returncode) == (2, -9)
    assert main.stderr.startswith('error: rank 0: ')
    assert main.stderr.count('\n') == 1
    finished = {path: path.stat().st_ino for path in folder.rglob('*.tar')}
    assert (len(finished) >= 4) == (name == 'pack')
    run_ranks_of(scripts, 2, folder, *command)
    assert files_of(folder) == wanted
    assert {path: path.stat().st_ino for path in finished} == finished  # finished shards are not written again


@pytest.mark.slow
def test_a_mistake_on_one_rank_is_one_line(scripts, new_shop):
    folder = new_shop()
    main, other = fail(scripts, folder, 1, 'error', 'pack', PACK)
    assert (main.returncode, other.returncode) == (2, 2)
    assert other.stderr == 'error: rank 1: this rank fails\n'
    assert main.stderr.startswith('error: rank 0: ')
    with lock_folder(folder / 'packed'):
        main, other = run_ranks_of(scripts, 2, folder, *PACK, code=2)
    assert 'packed is in use by another run' in main.stderr
    assert main.stderr.count('\n') == other.stderr.count('\n') == 1


@pytest.mark.slow
def test_the_main_rank_is_killed(scripts, new_shop):
    scripts.run(folder := new_shop(), *PACK)
    wanted = files_of(folder)
    main, other = fail(scripts, new_shop(), 0, 'kill', 'pack', PACK)
    assert (main.returncode, other.returncode) == (-9, 2)
    assert other.stderr.startswith('error: rank 1: ')
    run_ranks_of(scripts, 3, folder, *PACK)
    assert files_of(folder) == wanted


@pytest.mark.slow
def test_more_ranks_than_images_and_shards(scripts, new_shop):
    """One image of each split, in one shard; the ranks have nothing to do but end."""
    folder = new_shop()
    for name in ('train', 'val'):
        content = json.loads((folder / 'goods' / f'converted_{name}.json').read_text())
        entries = [{**entry, 'fpath': f'goods/{entry["fpath"]}'} for entry in content['annotations'][:1]]
        (folder / f'{name}.json').write_text(json.dumps({**content, 'annotations': entries}))
    given = ('--DATASET_ROOT', '.', '--DATASET_TRAIN_JSON', 'train.json', '--DATASET_VALID_JSON', 'val.json')
    for command in (DOCTOR, PACK):
        _, *others = run_ranks_of(scripts, 3, folder, *command, *given)
        assert {one.stdout + one.stderr for one in others} == {''}
    assert json.loads((folder / 'packed' / '_info.json').read_text())['splits']['train']['num_samples'] == 1


def alone_reasons() -> dict[str, str]:
    """Return {script: its reason for running in one process, or ''} of all scripts and tools."""
    found = {}
    for path in [
        *(REPOSITORY / name for name in ('main.py', 'test.py', 'tau_norm.py')),
        *(REPOSITORY / 'tools').glob('*.py'),
    ]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        (call,) = (call for call in calls if getattr(call.func, 'id', '') == 'cli_main')
        reasons = [keyword.value.value for keyword in call.keywords if keyword.arg == 'alone']
        found[path.relative_to(REPOSITORY).as_posix()] = ''.join(reasons)
    return found


def test_every_script_works_on_ranks_or_reports_why_not(scripts, tmp_path):
    reasons = alone_reasons()
    on_ranks = {script for script, reason in reasons.items() if not reason}
    assert on_ranks == {
        'main.py',
        'test.py',
        'tau_norm.py',
        *(command[0] for commands in COMMANDS.values() for command in commands),
    }
    second = ENVIRONMENT | {'RANK': '1', 'WORLD_SIZE': '2'}
    started = {script: scripts.start(tmp_path, script, environment=second) for script in reasons if reasons[script]}
    for script, running in started.items():
        name = script.removeprefix('tools/')
        assert running.wait(2).stderr == (
            f'error: rank 1: {name} runs in one process, not in 2, since {reasons[script]}: start it by python\n'
        )
