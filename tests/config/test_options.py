"""Every key is an option, --help is fast, and changes of the options show in a golden file."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.config.command_help import COMMANDS
from lib.config.defaults import KEYS, SECTIONS, TREE
from lib.config.options import option_of, parse_options
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / 'tests' / 'golden' / 'options.txt'
SCRIPTS = ('main.py', 'test.py', 'tau_norm.py')


def parse(*argv):
    return parse_options(argv, program='main.py', description='')


def help_of(script: str, *topic: str) -> str:
    # argparse takes colors and widths from the environment in newer versions of Python.
    environment = {**os.environ, 'COLUMNS': '80', 'NO_COLOR': '1', 'PYTHON_COLORS': '0', 'PYTHONIOENCODING': 'utf-8'}
    done = subprocess.run(
        [sys.executable, script, '--help', *topic], cwd=ROOT, env=environment, capture_output=True, encoding='utf-8'
    )
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout


def help_text(capsys, *argv: str, program: str = 'main.py') -> str:
    with pytest.raises(SystemExit) as caught:
        parse_options(argv, program=program, description='')
    assert not caught.value.code
    return capsys.readouterr().out


def options_in(text: str) -> set[str]:
    words = set(text.split())
    return {name for name in KEYS if option_of(name) in words}


@pytest.fixture(scope='module')
def all_help():
    return help_of('main.py', 'all')


def test_the_mapping_is_unambiguous():
    options = [option_of(name) for name in KEYS]
    assert len(set(options)) == len(options)
    assert '--config' not in options
    # A top-level key must not read like a section's, or a reader could not distinguish them. Where a run is logged, and
    # by which trackers, belong together: LOG_ROOT is older than the section LOG, which has no key ROOT.
    for name in KEYS:
        if '.' not in name and name != 'LOG_ROOT':
            assert not any(name.startswith(f'{section}_') for section in TREE if section), name


def text_of_default(key):
    default = key.plain(key.default)
    return ','.join(map(str, default)) if isinstance(default, tuple) else str(default)


def test_every_key_is_an_option():
    """All at once, since each command line builds the parser of all options."""
    pairs = [(option_of(name), text_of_default(key)) for name, key in KEYS.items()]
    for words in (itertools.chain.from_iterable(pairs), map('='.join, pairs)):
        files, values = parse(*words)
        assert files == []
        assert values == {name: key.default for name, key in KEYS.items()}
        for name, value in values.items():
            assert type(value) is type(KEYS[name].default), name


def test_every_default_is_allowed_and_documented():
    for name, key in KEYS.items():
        assert key.accept(name, key.default) == key.default, name
        assert key.meaning.endswith(('.', ')')), name
        if key.used_by:
            selector, users = key.used_by
            choices = {choice for chosen in (selector, *key.or_by) for choice in KEYS[chosen].choices}
            assert set(users) <= choices, name


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
        (['--qqqqq', '3'], ['--qqqqq is not an option; --help all']),
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
def test_mistakes_are_reported_in_one_line(argv, words):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert '\n' not in message


def test_help_all_lists_every_option(all_help):
    assert options_in(all_help) == set(KEYS)
    for name, key in KEYS.items():
        # textwrap may break a long word at its hyphens, so spaces are no evidence.
        assert key.meaning.replace(' ', '') in ''.join(all_help.split()), name


def test_help_all_is_the_golden_file(all_help):
    assert all_help == GOLDEN.read_text(encoding='utf-8'), (
        'the options changed. If that is intended, update the golden file: '
        'COLUMNS=80 python main.py --help all > tests/golden/options.txt'
    )


@pytest.mark.parametrize('program', COMMANDS)
def test_help_shows_the_commands_own_and_most_used_options(capsys, program):
    command = COMMANDS[program]
    text = help_text(capsys, '--help', program=program)
    assert {*command.own, *command.sections} <= set(SECTIONS)
    assert set(command.most_used) <= set(KEYS)
    own = {name for name in KEYS if name.partition('.')[0] in command.own}
    assert options_in(text) == own | set(command.most_used)
    assert len(options_in(text)) <= 45
    assert all(section in text for section in command.sections)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize('program', COMMANDS)
def test_every_command_of_the_table_is_a_script(program):
    assert f"program='{program}'" in (ROOT / program).read_text(encoding='utf-8')


@pytest.mark.parametrize(
    'argv', [('--help', 'SAMPLER'), ('-h', 'sampler'), ('--help=Sampler',), ('--help', 'sampler', '--SEED', '1')]
)
def test_help_for_one_section(capsys, argv):
    assert options_in(help_text(capsys, *argv)) == {name for name in KEYS if name.startswith('SAMPLER.')}


@pytest.mark.parametrize('argv', [('--help',), ('-h',), ('--help', '--SEED', '1'), ('--SEED', '1', '--help')])
def test_help_without_a_section(capsys, argv):
    text = help_text(capsys, *argv)
    assert {'NAME', 'TRAIN.BATCH_SIZE', 'LOSS.TYPE'} <= options_in(text)
    assert options_in(text).isdisjoint({'LOSS.GAMMA', 'PLAN.DEVICES'})
    assert '--help all' in text


def test_help_for_an_unknown_section():
    with pytest.raises(UserError) as caught:
        parse('--help', 'SAMPLR')
    assert str(caught.value).startswith('--help SAMPLR: no such section (did you mean SAMPLER?); allowed: all, DATASET')


@pytest.mark.parametrize('script', SCRIPTS[1:])
def test_all_scripts_have_the_same_options(script, all_help):
    assert options_in(help_of(script, 'all')) == options_in(all_help)


@pytest.mark.process
@pytest.mark.parametrize('script', SCRIPTS)
def test_help_imports_nothing_heavy(script):
    """--help imports no package that takes half a second or more."""
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
