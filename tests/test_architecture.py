"""The shape of the house: who may import whom, how long a file may be, what is never written."""

import ast
import fnmatch
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ('main.py', 'test.py', 'tau_norm.py')
# Imports go down only; rooms of one level are siblings and never import each other.
LEVELS = (
    ('errors',),
    ('runtime',),
    ('dataset', 'backbone', 'classifier', 'loss', 'optim'),
    ('model',),
    ('evaluation', 'plan', 'export'),
    ('trainer', 'report'),
    ('build',),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 70


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob('*.py'))


LIB = python_files('lib')
CODE = [*LIB, *(ROOT / name for name in SCRIPTS), *python_files('tools', 'benchmarks')]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'), str(path))


def imports(path: Path) -> list[tuple[str, int]]:
    """Return (module, line) of every import in a file, those inside functions included."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{name_of(path)}:{node.lineno}: imports are absolute'
            # `from lib import x` names the room only among the imported names.
            if node.module == 'lib':
                found += [(f'lib.{alias.name}', node.lineno) for alias in node.names]
            else:
                found.append((node.module, node.lineno))
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / 'lib').parts[0].removesuffix('.py')


def fault(path: Path, line: int, module: str) -> str:
    return f'{name_of(path)}:{line} imports {module}'


def test_every_room_has_its_level():
    rooms = {room_of(path) for path in LIB} - {'__init__', 'config'}
    assert rooms == set(LEVEL_OF)


def test_imports_go_down_only():
    faults = []
    for path in LIB:
        room = room_of(path)
        if room in ('config', '__init__'):
            continue
        for module, line in imports(path):
            first, _, rest = module.partition('.')
            target = rest.partition('.')[0]
            if first != 'lib' or target == room or (room == 'build' and target == 'config'):
                continue
            if target not in LEVEL_OF or LEVEL_OF[target] >= LEVEL_OF[room]:
                faults.append(fault(path, line, module))
    assert not faults, '\n'.join(faults)


def test_nobody_in_lib_imports_scripts_tools_or_tests():
    above = {'main', 'test', 'tau_norm', 'tools', 'benchmarks', 'tests'}
    faults = [
        fault(path, line, module) for path in LIB for module, line in imports(path) if module.split('.')[0] in above
    ]
    assert not faults, '\n'.join(faults)


def test_scripts_and_tools_share_nothing_but_lib():
    above = {'main', 'test', 'tau_norm', 'tools', 'benchmarks', 'tests'}
    scripts = [ROOT / name for name in SCRIPTS] + python_files('tools')
    faults = [fault(path, line, module) for path in scripts for module, line in imports(path)
              if module.split('.')[0] in above]  # fmt: skip
    assert not faults, '\n'.join(faults)


def test_config_imports_only_yaml_and_errors():
    light = {'argparse', 'collections', 'dataclasses', 'difflib', 'pathlib', 'textwrap', 'typing'}
    faults = []
    for path in LIB:
        if room_of(path) != 'config':
            continue
        for module, line in imports(path):
            allowed = module.split('.')[0] in light | {'yaml', 'yacs'} or module.startswith(
                ('lib.config', 'lib.errors')
            )
            if not allowed:
                faults.append(fault(path, line, module))
    assert not faults, '\n'.join(faults)


def test_errors_imports_nothing():
    assert imports(ROOT / 'lib' / 'errors.py') == []


def test_starting_imports_nothing_heavy():
    """What runs before --help answers: top-level imports of these rooms stay with the standard library and yaml."""
    heavy = {'torch', 'torchvision', 'timm', 'numpy', 'pyarrow', 'matplotlib', 'PIL', 'msgspec', 'tensorboardX'}
    paths = [path for path in LIB if room_of(path) in ('config', 'errors')]
    paths += [ROOT / 'lib' / 'build' / 'start.py', ROOT / 'lib' / 'runtime' / 'entry.py']
    faults = []
    for path in paths:
        for node in parsed(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                faults += [fault(path, node.lineno, name) for name in names if name.split('.')[0] in heavy]
    assert not faults, '\n'.join(faults)


def test_config_is_seen_by_builders_only():
    """Below lib/build, components take plain keyword arguments."""
    faults = []
    for path in LIB:
        if room_of(path) in ('build', 'config'):
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Name | ast.arg | ast.Attribute):
                name = {ast.Name: 'id', ast.arg: 'arg', ast.Attribute: 'attr'}[type(node)]
                if getattr(node, name) in ('cfg', 'CfgNode'):
                    faults.append(f'{name_of(path)}:{node.lineno} names cfg')
        faults += [fault(path, line, module) for module, line in imports(path) if module.split('.')[0] == 'yacs']
    assert not faults, '\n'.join(faults)


@pytest.mark.parametrize('path', CODE, ids=name_of)
def test_files_and_functions_stay_short(path):
    lines = len(path.read_text(encoding='utf-8').splitlines())
    assert lines <= MAX_FILE_LINES, f'{name_of(path)} has {lines} lines: split it by idea'
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f'{name_of(path)}:{node.lineno} {node.name} has {length} lines'


@pytest.mark.parametrize('path', CODE, ids=name_of)
def test_what_is_never_written(path):
    faults = []
    for node in ast.walk(parsed(path)):
        where = f'{name_of(path)}:{getattr(node, "lineno", 0)}'
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ('eval', 'exec', 'compile', '__import__', 'pickle.load', 'pickle.loads', 'yaml.unsafe_load'):
                faults.append(f'{where} calls {called}')
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == 'torch.load' and keywords.get('weights_only') != 'True':
                faults.append(f'{where} calls torch.load without weights_only=True')
            if called.endswith('np.load') and keywords.get('allow_pickle', 'False') != 'False':
                faults.append(f'{where} lets NumPy unpickle')
            if keywords.get('shell') == 'True':
                faults.append(f'{where} runs a shell')
        elif isinstance(node, ast.ImportFrom) and any(alias.name == '*' for alias in node.names):
            faults.append(f'{where} imports *')
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(f'{where} has a bare except')
    assert not faults, '\n'.join(faults)


@pytest.mark.parametrize('path', [path for path in LIB if path.name == '__init__.py'], ids=name_of)
def test_packages_export_nothing(path):
    """`import lib.x` stays light."""
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in parsed(path).body)


def test_scripts_stay_about_forty_lines():
    lengths = {name: len((ROOT / name).read_text(encoding='utf-8').splitlines()) for name in SCRIPTS}
    assert max(lengths.values()) <= 50, lengths


def test_no_folder_of_tests_is_passed_over(request):
    patterns = request.config.getini('norecursedirs')
    folders = {path.parent.name for path in (ROOT / 'tests').rglob('test_*.py')}
    assert 'build' in folders
    assert not [name for name in folders if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
