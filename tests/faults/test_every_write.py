"""Every line of lib, tools and the scripts that changes files: through lib.runtime.files, or listed with a reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.scripts.running import REPOSITORY

# 'file: call in function' -> the reason why a fault there leaves no partial file.
REASONS: dict[str, str] = {}
# Calls that change files whatever their arguments are, by the last part of their name.
_ALWAYS = {
    'write_text', 'write_bytes', 'open_memmap', 'memmap', 'unlink', 'rename', 'renames', 'removedirs', 'rmtree', 'rmdir', 'move',
    'copyfile', 'copy2', 'copytree', 'copyfileobj', 'symlink_to', 'hardlink_to', 'symlink', 'link', 'truncate', 'ftruncate',
    'fsync', 'fdatasync', 'touch', 'mkdtemp', 'mkstemp', 'NamedTemporaryFile', 'TemporaryDirectory', 'TemporaryFile', 'save_file',
    'savefig', 'savez', 'savetxt', 'tofile', 'posix_fallocate', 'extractall', 'FileHandler', 'RecordWriter', 'new_file',
    'utime', 'chmod',
}  # fmt: skip
# Calls with these names change files if they belong to one of these modules.
_OF_MODULES = {
    'replace': {'os'}, 'remove': {'os'}, 'save': {'np', 'numpy', 'torch'}, 'copy': {'shutil'}, 'write_table': {'pq', 'feather', 'pa'},
    'dump': {'json', 'pickle', 'yaml'}, 'open': {'tarfile', 'zipfile', 'os'}, 'load': {'np', 'numpy'},
}  # fmt: skip
_WRITING_MODES = set('wax+')


def changes(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ('call in function', line of code) for each call in a file that changes files."""
    text = path.read_text()
    for function, node in _calls(ast.parse(text), ''):
        name = _writes(node)
        if name:
            yield f'{name} in {function or "module"}', ast.get_source_segment(text, node) or ''


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        inner = function
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f'{function}.{child.name}'.lstrip('.')
        if isinstance(child, ast.Call):
            yield inner, child
        yield from _calls(child, inner)


def _writes(call: ast.Call) -> str:
    """Return the name of a call that changes files; '' for another one."""
    function = call.func
    if isinstance(function, ast.Name):
        owner, name = '', function.id
    elif isinstance(function, ast.Attribute):
        owner, name = ast.unparse(function.value), function.attr
    else:
        return ''
    if name in _ALWAYS:
        return name
    if name == 'open' and owner == 'os':
        flags = ast.unparse(call.args[1]) if len(call.args) > 1 else ''
        return 'os.open' if any(flag in flags for flag in ('O_WRONLY', 'O_RDWR', 'O_CREAT')) else ''
    if name in ('open', 'fdopen'):
        return 'open' if _mode(call, owner) & _WRITING_MODES else ''
    if name == 'load' and owner in ('np', 'numpy'):
        return 'np.load' if any('+' in ast.unparse(keyword.value) for keyword in call.keywords) else ''
    if name == 'replace':  # of a path, unlike that of a text, which has two arguments
        is_path = owner == 'os' or (len(call.args) == 1 and not call.keywords and owner != 'dataclasses')
        return 'replace' if is_path else ''
    if owner in _OF_MODULES.get(name, ()):
        return f'{owner}.{name}'
    return ''


def _mode(call: ast.Call, owner: str) -> set[str]:
    """Return the characters of the mode of open(path, mode), path.open(mode) or tarfile.open(path, mode)."""
    position = 1 if owner in ('', 'os', 'io', 'gzip', 'tarfile', 'bz2', 'lzma') else 0
    given = [keyword.value for keyword in call.keywords if keyword.arg == 'mode'] or call.args[position : position + 1]
    return (
        set(given[0].value)
        if given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str)
        else set()
    )


def found() -> dict[str, list[str]]:
    """Return 'file: call in function' -> lines of code, outside of lib/runtime/files.py."""
    lines: dict[str, list[str]] = {}
    files = [*(REPOSITORY / 'lib').rglob('*.py'), *(REPOSITORY / 'tools').glob('*.py'), *REPOSITORY.glob('*.py')]
    for path in sorted(files):
        name = path.relative_to(REPOSITORY).as_posix()
        if name != 'lib/runtime/files.py':
            for key, line in changes(path):
                lines.setdefault(f'{name}: {key}', []).append(line)
    return lines
