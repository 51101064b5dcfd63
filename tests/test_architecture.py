"""The layers of the code: which package imports which, sizes of files, forbidden constructs."""

import ast
import functools
import sys
from pathlib import Path

from tests.source_tree import nodes, parsed

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ('main.py', 'test.py', 'tau_norm.py')
# Imports go down only; packages of one layer are siblings and never import each other.
LAYERS = (
    ('errors',),
    ('runtime',),
    ('distributed',),
    ('dataset', 'demo', 'backbone', 'classifier', 'loss', 'optim'),
    ('formats', 'shards', 'audit'),
    ('model',),
    ('metrics', 'plan', 'export'),
    ('inference',),
    ('catalog',),
    ('posthoc',),
    ('trainer', 'report'),
    ('builders',),
    ('commands',),
    ('api',),
    ('experiments', 'service'),
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
# The packages that read the config; all others take plain keyword arguments.
READ_CONFIG = ('config', 'builders', 'commands', 'api', 'experiments', 'service')
# A config is a file like any other, also in object storage; these modules import the standard library only.
CONFIG_READS_WITH = ('lib.runtime.read_file', 'lib.runtime.mirror', 'lib.runtime.storage')
MAX_LIB_FILES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 336, 300, 70


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob('*.py'))


LIB = python_files('lib')
LIB_FILES = frozenset(LIB)
CODE = [*LIB, *(ROOT / name for name in SCRIPTS), *python_files('tools', 'benchmarks')]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def imports(path: Path) -> list[tuple[str, int]]:
    """Return (module, line) of every import in a file, those inside functions included."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{name_of(path)}:{node.lineno}: imports are absolute'
            # `from lib import x` names the package only among the imported names.
            if node.module == 'lib':
                found += [(f'lib.{alias.name}', node.lineno) for alias in node.names]
            else:
                found.append((node.module, node.lineno))
    return found


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / 'lib').parts[0].removesuffix('.py')


def import_of(path: Path, line: int, module: str) -> str:
    return f'{name_of(path)}:{line} imports {module}'


def test_imports_go_down_only():
    packages = {package_of(path) for path in LIB} - {'__init__', 'config'}
    assert packages == set(LAYER_OF)
    faults = []
    for path in LIB:
        package = package_of(path)
        for module, line in imports(path):
            first, _, rest = module.partition('.')
            target = rest.partition('.')[0]
            if first != 'lib' or target == package or package == '__init__':
                continue
            if package == 'config':
                allowed = target == 'errors' or module in CONFIG_READS_WITH
            elif target == 'config':
                allowed = package in READ_CONFIG
            else:
                allowed = LAYER_OF[target] < LAYER_OF[package]
            if not allowed:
                faults.append(import_of(path, line, module))
    assert not faults, '\n'.join(faults)


def test_lib_imports_no_scripts_tools_or_tests():
    above = {'main', 'test', 'tau_norm', 'tools', 'benchmarks', 'tests'}
    faults = [
        import_of(path, line, module) for path in LIB for module, line in imports(path) if module.split('.')[0] in above
    ]
    assert not faults, '\n'.join(faults)


def test_scripts_and_tools_share_nothing_but_lib():
    above = {'main', 'test', 'tau_norm', 'tools', 'benchmarks', 'tests'}
    scripts = [ROOT / name for name in SCRIPTS] + python_files('tools')
    faults = [import_of(path, line, module) for path in scripts for module, line in imports(path)
              if module.split('.')[0] in above]  # fmt: skip
    assert not faults, '\n'.join(faults)


def test_config_imports_only_yaml_and_errors():
    allowed = sys.stdlib_module_names | {'yaml', 'yacs'}
    faults = [
        import_of(path, line, module)
        for path in LIB
        if package_of(path) == 'config'
        for module, line in imports(path)
        if module.split('.')[0] not in allowed
        and not module.startswith(('lib.config', 'lib.errors', *CONFIG_READS_WITH))
    ]
    assert not faults, '\n'.join(faults)


def test_errors_imports_nothing():
    assert imports(ROOT / 'lib' / 'errors.py') == []


def test_what_config_reads_files_with_imports_the_standard_library_only():
    for module in CONFIG_READS_WITH:
        body = parsed(ROOT.joinpath(*module.split('.')).with_suffix('.py')).body
        names = {node.module for node in body if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        names -= {*CONFIG_READS_WITH, 'lib.errors', 'lib.runtime.locks'}
        assert {name.split('.')[0] for name in names} <= sys.stdlib_module_names


def test_starting_imports_nothing_heavy():
    """--help needs only these packages; their top-level imports are the standard library and yaml."""
    heavy = {'torch', 'torchvision', 'timm', 'numpy', 'pyarrow', 'matplotlib', 'PIL', 'msgspec', 'tensorboardX'}
    paths = [path for path in LIB if package_of(path) in ('config', 'errors')]
    paths += [ROOT / 'lib' / 'commands' / 'cli.py', ROOT / 'lib' / 'distributed' / 'rank_info.py']
    faults = []
    for path in paths:
        for node in parsed(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                faults += [import_of(path, node.lineno, name) for name in names if name.split('.')[0] in heavy]
    assert not faults, '\n'.join(faults)


@functools.cache
def first_imports(path: Path) -> list[tuple[str, Path, int]]:
    """Return (module, its file, line) of the imports at the top level of a file in lib, or of all in a script."""
    found = []
    for node in parsed(path).body if path in LIB_FILES else nodes(path):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f'{node.module}.{name}' for name in names)]
        found += [(name, ROOT.joinpath(*name.split('.')).with_suffix('.py'), node.lineno) for name in names]
    return found


def loaded_with(script: Path) -> dict[str, str]:
    """Return the packages that are imported before a command works, each with the line that imports it."""
    files, seen, found = [script], {script}, {}
    for path in files:
        for name, source, line in first_imports(path):
            if source in LIB_FILES and source not in seen:
                seen.add(source)
                files.append(source)
            found.setdefault(name.split('.')[0], import_of(path, line, name))
    return found


def test_commands_import_what_they_need_only():
    """timm and torchvision take longer than torch: they wait until a model is built. Few commands draw or train."""
    draw = {'main', 'tau_norm', 'report', 'compare', 'posthoc'}
    train = {*draw, 'clean', 'enroll'} - {'compare'}
    faults = []
    for path in [*(ROOT / script for script in SCRIPTS), *python_files('tools')]:
        unused = {'timm', 'torchvision'}
        unused |= set() if path.stem in draw else {'matplotlib'}
        unused |= set() if path.stem in train else {'tensorboardX'}
        faults += [f'{path.name}: {line}' for name, line in loaded_with(path).items() if name in unused]
    assert not faults, '\n'.join(faults)


def test_config_is_read_by_builders_and_commands_only():
    """Below lib/builders, components take plain keyword arguments."""
    faults = []
    for path in LIB:
        if package_of(path) in READ_CONFIG:
            continue
        for node in nodes(path):
            if isinstance(node, ast.Name | ast.arg | ast.Attribute):
                name = {ast.Name: 'id', ast.arg: 'arg', ast.Attribute: 'attr'}[type(node)]
                if getattr(node, name) in ('cfg', 'Config'):
                    faults.append(f'{name_of(path)}:{node.lineno} names cfg')
        faults += [import_of(path, line, module) for module, line in imports(path) if module.split('.')[0] == 'yacs']
    assert not faults, '\n'.join(faults)


def test_lib_has_few_files():
    """Files that are only read together are one file."""
    files = [path for path in LIB if path.name != '__init__.py']
    assert len(files) <= MAX_LIB_FILES, f'lib has {len(files)} files: merge those that are only read together'


def test_files_and_functions_are_short():
    faults = []
    for path in CODE:
        lines = len(path.read_text(encoding='utf-8').splitlines())
        if lines > MAX_FILE_LINES:
            faults.append(f'{name_of(path)} has {lines} lines: split it by idea')
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    faults.append(f'{name_of(path)}:{node.lineno} {node.name} has {length} lines')
    assert not faults, '\n'.join(faults)


def test_forbidden_constructs():
    faults = [fault for path in CODE for fault in forbidden_in(path)]
    assert not faults, '\n'.join(faults)


def dotted(node: ast.AST) -> str:
    """Return the text of a name such as torch.load; ast.unparse takes seconds for all calls."""
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else ''


def forbidden_in(path: Path) -> list[str]:
    faults, name = [], name_of(path)
    for node in nodes(path):
        where = f'{name}:{getattr(node, "lineno", 0)}'
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in ('eval', 'exec', 'compile', '__import__', 'pickle.load', 'pickle.loads', 'yaml.unsafe_load'):
                faults.append(f'{where} calls {called}')
            keywords = {keyword.arg: getattr(keyword.value, 'value', None) for keyword in node.keywords}
            if called == 'torch.load' and keywords.get('weights_only') is not True:
                faults.append(f'{where} calls torch.load without weights_only=True')
            if called.endswith('np.load') and keywords.get('allow_pickle', False) is not False:
                faults.append(f'{where} lets NumPy unpickle')
            if keywords.get('shell') is True:
                faults.append(f'{where} runs a shell')
        elif isinstance(node, ast.ImportFrom) and any(alias.name == '*' for alias in node.names):
            faults.append(f'{where} imports *')
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(f'{where} has a bare except')
    return faults


def test_packages_export_nothing():
    """`import lib.x` stays light."""
    faults = [
        name_of(path)
        for path in LIB
        if path.name == '__init__.py'
        and not all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in parsed(path).body)
    ]
    assert not faults, faults


def test_scripts_are_at_most_fifty_lines():
    lengths = {name: len((ROOT / name).read_text(encoding='utf-8').splitlines()) for name in SCRIPTS}
    assert max(lengths.values()) <= 50, lengths
