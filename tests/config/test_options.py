"""Every leaf is an option, --help is light, and the option surface does not drift unseen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.config.defaults import KEYS, TREE
from lib.config.options import option_of, parse_options
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / 'tests' / 'golden' / 'options.txt'
SCRIPTS = ('main.py', 'test.py', 'tau_norm.py')


def parse(*argv):
    return parse_options(argv, program='main.py', description='', default_config='configs/x.yaml')


def help_of(script: str) -> str:
    # argparse takes colours and widths from the environment in newer versions of Python.
    environment = {**os.environ, 'COLUMNS': '80', 'NO_COLOR': '1', 'PYTHON_COLORS': '0', 'PYTHONIOENCODING': 'utf-8'}
    done = subprocess.run(
        [sys.executable, script, '--help'], cwd=ROOT, env=environment, capture_output=True, encoding='utf-8'
    )
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout


@pytest.fixture(scope='module')
def main_help():
    return help_of('main.py')


def test_the_mapping_is_unambiguous():
    options = [option_of(name) for name in KEYS]
    assert len(set(options)) == len(options)
    assert '--config' not in options
    # A top-level key must not read like a section's, or a reader could not tell one from the other.
    for name in KEYS:
        if '.' not in name:
            assert not any(name.startswith(f'{section}_') for section in TREE if section), name


@pytest.mark.parametrize('name', KEYS)
def test_every_leaf_is_an_option(name):
    key = KEYS[name]
    text = ','.join(map(str, key.default)) if isinstance(key.default, tuple) else str(key.default)
    files, values = parse(option_of(name), text)
    assert files == []
    assert values == {name: key.default}
    assert type(values[name]) is type(key.default)
    assert parse(f'{option_of(name)}={text}') == (files, values)


@pytest.mark.parametrize('name', KEYS)
def test_every_default_is_allowed_and_documented(name):
    key = KEYS[name]
    assert key.accept(name, key.default) == key.default
    assert key.meaning.endswith(('.', ')'))
    if key.used_by:
        selector, users = key.used_by
        assert set(users) <= {choice for chosen in (selector, *key.or_by) for choice in KEYS[chosen].choices}


def test_files_and_options_in_any_order():
    expected = (['a.yaml', 'b.yaml'], {'SEED': 3, 'TRAIN.BATCH_SIZE': 8})
    assert parse('--SEED', '3', '--config', 'a.yaml', 'b.yaml', '--TRAIN_BATCH_SIZE', '8') == expected
    assert parse('--config', 'a.yaml', '--SEED', '3', '--TRAIN_BATCH_SIZE=8', '--config', 'b.yaml') == expected


def test_the_last_of_a_repeated_option_counts():
    assert parse('--SEED', '3', '--SEED', '4')[1] == {'SEED': 4}


def test_negative_numbers_are_values():
    assert parse('--RUN_NUM_WORKERS', '-1')[1] == {'RUN.NUM_WORKERS': -1}


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['--TRAIN_BATCHSIZE', '3'], ['--TRAIN_BATCHSIZE is not an option', 'did you mean --TRAIN_BATCH_SIZE?']),
        (['--train_batch_size', '3'], ['did you mean --TRAIN_BATCH_SIZE?']),
        (['--TRAIN.BATCH_SIZE=3'], ['--TRAIN.BATCH_SIZE is not an option', 'did you mean --TRAIN_BATCH_SIZE?']),
        (['--qqqqq', '3'], ['--qqqqq is not an option; --help']),
        (['--SEE', '3'], ['--SEE is not an option', 'did you mean --SEED?']),  # no abbreviations
        (['--SEED'], ['--SEED', 'expected one argument']),
        (['--SEED', '--NAME', 'x'], ['--SEED', 'expected one argument']),
        (['--config'], ['--config', 'expected at least one argument']),
        (['photos'], ["'photos' is not an option", '--NAME my_run']),
        (['--SEED', 'x'], ["--SEED is 'x', but must be a whole number"]),
        (['--SEED', '-1'], ["--SEED is '-1', but must be a whole number from 0"]),
        (['--LOSS_TYPE', 'focl'], ["--LOSS_TYPE is 'focl'", 'cross_entropy, focal', 'did you mean focal?']),
    ],
)
def test_mistakes_are_told_in_one_line(argv, words):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert '\n' not in message


def test_help_lists_every_option(main_help):
    words = main_help.split()
    assert all(option_of(name) in words for name in KEYS)
    flat = ' '.join(words)
    for name, key in KEYS.items():
        # textwrap may break a long word at its hyphens, so spaces are no evidence.
        assert key.meaning.replace(' ', '') in flat.replace(' ', ''), name


def test_help_is_the_golden_one(main_help):
    assert main_help == GOLDEN.read_text(encoding='utf-8'), (
        'the option surface changed. If that is meant, write it down: '
        'COLUMNS=80 python main.py --help > tests/golden/options.txt'
    )


@pytest.mark.parametrize('script', SCRIPTS[1:])
def test_all_scripts_have_the_same_options(script, main_help):
    def options(text):
        return text[text.index('\n\n', text.index('\n\n') + 2) :]

    assert options(help_of(script)) == options(main_help)


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_imports_nothing_heavy(script):
    """What takes half a second or more to import has no part in --help."""
    code = (
        'import runpy, sys\n'
        f'sys.argv = [{script!r}, "--help"]\n'
        'try:\n'
        f'    runpy.run_path({script!r}, run_name="__main__")\n'
        'except SystemExit as end:\n'
        '    assert not end.code, end.code\n'
        'print("LOADED", *sys.modules)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition('LOADED ')[2].split())
    assert 'lib.config.load' in loaded
    assert not loaded & {'torch', 'torchvision', 'timm', 'numpy', 'pyarrow', 'matplotlib', 'PIL', 'tensorboardX'}
