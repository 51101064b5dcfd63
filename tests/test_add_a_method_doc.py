"""The examples in docs/add_a_method.md run and pass their own tests."""

import ast
import importlib
import itertools
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'add_a_method.md'
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), flags=re.DOTALL)
FILE = re.compile(r'# ((?:lib|tests)/\S+)\.py\n')
# Functions that the page adds to existing modules.
ADDED = {'poly': 'tests.oracles.losses', 'cube_root': 'lib.dataset.sampler', 'vertical_concat': 'tests.oracles.mixing'}


@pytest.fixture
def modules(monkeypatch):
    """Add the page's functions and files as modules; return the test modules."""
    tests = []
    for block in sorted(BLOCKS, key=lambda block: not block.startswith('def ')):
        if block.startswith('def '):
            name = ast.parse(block).body[0].name
            module = importlib.import_module(ADDED[name])
            namespace = dict(vars(module))
            exec(compile(block, f'{PAGE.name}: {name}', 'exec'), namespace)
            monkeypatch.setattr(module, name, namespace[name], raising=False)
        elif file := FILE.match(block):
            module = types.ModuleType(file[1].replace('/', '.'))
            monkeypatch.setitem(sys.modules, module.__name__, module)
            exec(compile(block, f'{file[1]}.py', 'exec'), vars(module))
            if file[1].startswith('tests/'):
                tests.append(module)
    return tests


def calls_of(test) -> Iterator[dict]:
    """Yield the keyword arguments of every case of a test."""
    marks = [mark.args for mark in getattr(test, 'pytestmark', [])]
    for values in itertools.product(*(values for _, values in marks)):
        yield dict(zip((name for name, _ in marks), values, strict=True))


def test_examples_pass_their_tests(modules):
    num_tests = 0
    for module in modules:
        for name, test in vars(module).items():
            if name.startswith('test_'):
                num_tests += 1
                for arguments in calls_of(test):
                    test(**arguments)
    assert num_tests == 5


def test_other_blocks_are_valid_python():
    """Table entries are parsed within a dictionary or a list, keys within a class."""
    for block in BLOCKS:
        if block.startswith("    '"):
            ast.parse(f'{{{block}}}')
        elif block.startswith('    Method('):
            ast.parse(f'[{block}]')
        elif block.startswith('    '):
            ast.parse(f'class Keys:\n{block}')
        else:
            ast.parse(block)
