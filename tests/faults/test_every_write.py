"""Every line of lib, tools and the scripts that changes files does so through lib.runtime.files, or is listed here."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# 'file: call in function' -> why it does not go through lib.runtime.files.
_IN_TEMPORARY = 'writes a temporary file or folder of its caller, which renames it'
_LOCK = 'a lock file, which may be torn'
_LOG = 'a log, which grows by lines'
_NO_OUTPUT = 'no output file'
_CACHE = 'the cache of a bucket, whose files are compared with their objects'
REASONS = {
    'lib/dataset/decode_process.py: open in serve': _NO_OUTPUT,  # a pipe
    'lib/dataset/decode_process.py: os.open in serve': _NO_OUTPUT,  # /dev/null
    'lib/demo/generate.py: write_bytes in DrawPhotos.__call__': _IN_TEMPORARY,
    'lib/distributed/rank_info.py: open in report_failure': 'the file that torchrun gives each rank for its error',
    'lib/distributed/rank_info.py: json.dump in report_failure': 'the file that torchrun gives each rank for its error',
    'lib/experiments/parallel.py: open in Runner._begin': _LOG,
    'lib/export/formats.py: open in write_torch_export': _IN_TEMPORARY,
    'lib/formats/write.py: open in write_split': _IN_TEMPORARY,
    'lib/formats/write.py: open in _extend': _IN_TEMPORARY,
    'lib/formats/write.py: copyfileobj in _extend': _IN_TEMPORARY,
    'lib/formats/write.py: truncate in _extend': _IN_TEMPORARY,
    'lib/inference/prediction_files.py: open in _write_npy': _IN_TEMPORARY,
    'lib/report/review_page.py: link in _Photos.typical_links': _NO_OUTPUT,  # an address
    'lib/report/review_page.py: link in _Page.add': _NO_OUTPUT,
    'lib/runtime/checksums.py: save_file in write_tensors': _IN_TEMPORARY,
    'lib/runtime/checksums.py: open in write_tensors': _IN_TEMPORARY,
    'lib/runtime/column_files.py: memmap in map_columns': 'rows that a journal marks once they are on the disk',
    'lib/runtime/column_files.py: open in _reserve_again': 'allocates blocks of a file that has its size already',
    'lib/runtime/folders.py: ftruncate in lock_folder': _LOCK,
    'lib/runtime/locks.py: os.open in open_lock': _LOCK,
    'lib/runtime/locks.py: unlink in removed_lock': _LOCK,
    'lib/runtime/shared_memory.py: posix_fallocate in reserve': _IN_TEMPORARY,
    'lib/runtime/shared_memory.py: TemporaryFile in _anonymous_file': _NO_OUTPUT,
    'lib/runtime/process.py: os.open in _open': _NO_OUTPUT,  # /dev/null
    'lib/runtime/bucket.py: ftruncate in Bucket.download': _CACHE,
    'lib/runtime/mirror.py: ftruncate in open_sparse': _CACHE,
    'lib/runtime/mirror.py: os.open in open_sparse': _CACHE,
    'lib/runtime/mirror.py: truncate in evict': _CACHE,
    'lib/runtime/mirror.py: unlink in evict': _CACHE,
    'lib/runtime/mirror.py: utime in open_sparse': _CACHE,
    'lib/runtime/mirror.py: utime in stamp': _CACHE,
    'lib/runtime/mirror.py: write_bytes in _usage': _CACHE,
    'lib/runtime/outline.py: unlink in _outline_one': _CACHE,
    'lib/runtime/storage.py: unlink in _download_unless_newer': _CACHE,
    'lib/runtime/storage.py: utime in _upload': _CACHE,
    'lib/runtime/uploads.py: rmdir in refresh': _CACHE,
    'lib/runtime/uploads.py: truncate in forget_ranges': _CACHE,
    'lib/shards/index.py: new_file in write_table': _IN_TEMPORARY,
    'lib/trainer/checkpointing/io.py: torch.save in write_torch': _IN_TEMPORARY,
    'lib/trainer/run_log.py: RecordWriter in EventFile.__init__': _LOG,
}
# Functions of lib.runtime.files and lib.runtime.text, called by their names.
_ATOMIC = {'write_text', 'write_bytes', 'rename', 'replace'}
# Calls that change files whatever their arguments are.
_ALWAYS = {
    'write_text', 'write_bytes', 'open_memmap', 'memmap', 'unlink', 'rename', 'renames', 'removedirs', 'rmtree',
    'rmdir', 'copyfile', 'copy2', 'copytree', 'copyfileobj', 'symlink_to', 'hardlink_to', 'symlink', 'link',
    'truncate', 'fsync', 'ftruncate', 'fdatasync', 'touch', 'mkdtemp', 'mkstemp', 'utime', 'chmod',
    'NamedTemporaryFile', 'TemporaryDirectory', 'TemporaryFile', 'save_file', 'savefig', 'savez', 'savetxt',
    'tofile', 'posix_fallocate', 'extractall', 'new_file', 'RecordWriter',
}  # fmt: skip
# Calls that change files as functions of these modules.
_OF_MODULES = {
    'remove': {'os'},
    'save': {'np', 'torch'},
    'copy': {'shutil'},
    'move': {'shutil'},
    'dump': {'json', 'pickle'},
    'write_table': {'pq'},
}
# Names of what replace_atomically yields, and of what is in memory.
_HARMLESS = {'temporary', 'buffer'}
# All of them; ast.unparse would take seconds for the other calls.
_NAMES = {'open', 'fdopen', 'replace', 'load'} | _ALWAYS | _OF_MODULES.keys()
_WRITING_MODES = set('wax+')


def changes(text: str) -> Iterator[str]:
    """Yield 'call in function' for each call that changes files, except those within `with operation(...)`."""
    for function, call in _calls(ast.parse(text), ''):
        name = _writes(call)
        if name:
            yield f'{name} in {function}' if function else name


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.With) and any(_called(item.context_expr) == 'operation' for item in child.items):
            continue
        inner = function
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f'{function}.{child.name}'.lstrip('.')
        if isinstance(child, ast.Call):
            yield inner, child
        yield from _calls(child, inner)


def _called(node: ast.AST) -> str:
    return _last_name(node.func) if isinstance(node, ast.Call) else ''


def _last_name(function: ast.AST) -> str:
    """Return `c` of a.b.c or c."""
    return getattr(function, 'attr', getattr(function, 'id', ''))


def _writes(call: ast.Call) -> str:
    """Return the name of a call that changes files; '' for another one."""
    if _last_name(call.func) not in _NAMES:
        return ''
    owner, _, name = ast.unparse(call.func).rpartition('.')
    used = {node.id for part in (call.func, *call.args) for node in ast.walk(part) if isinstance(node, ast.Name)}
    if used & _HARMLESS or (not owner and name in _ATOMIC):
        return ''
    if name == 'open' and owner == 'os':
        flags = ast.unparse(call.args[1])
        return 'os.open' if any(flag in flags for flag in ('O_WRONLY', 'O_RDWR', 'O_CREAT')) else ''
    if name in ('open', 'fdopen'):
        return 'open' if _mode(call, owner) & _WRITING_MODES else ''
    if name == 'replace':  # of a path: that of a text or a date has two arguments
        return 'replace' if owner == 'os' or (len(call.args) == 1 and not call.keywords) else ''
    if owner == 'np' and name == 'load':
        return 'np.load' if any('+' in ast.unparse(keyword.value) for keyword in call.keywords) else ''
    if name in _ALWAYS:
        return name
    return f'{owner}.{name}' if owner in _OF_MODULES.get(name, ()) else ''


def _mode(call: ast.Call, owner: str) -> set[str]:
    """Return the characters of the mode of open(path, mode), tarfile.open(path, mode) or path.open(mode)."""
    position = 1 if owner in ('', 'os', 'io', 'gzip', 'tarfile') else 0
    modes = [keyword.value for keyword in call.keywords if keyword.arg == 'mode'] or call.args[position : position + 1]
    return {char for mode in modes if isinstance(mode, ast.Constant) for char in str(mode.value)}


@cache
def found() -> set[str]:
    """Return 'file: call in function' of all calls that change files, outside of lib/runtime/files.py."""
    paths = [*(REPOSITORY / 'lib').rglob('*.py'), *(REPOSITORY / 'tools').glob('*.py'), *REPOSITORY.glob('*.py')]
    names = {path.relative_to(REPOSITORY).as_posix(): path for path in paths}
    del names['lib/runtime/files.py']
    return {f'{name}: {change}' for name, path in names.items() for change in changes(path.read_text())}


def test_files_are_changed_through_one_module():
    assert sorted(found() - REASONS.keys()) == [], 'use lib.runtime.files, or add the reason'


def test_the_list_has_no_old_entries():
    assert sorted(REASONS.keys() - found()) == []


@pytest.mark.parametrize(
    'line',
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('r+b')",
        "tarfile.open(path, 'w:gz')",
        'os.open(path, os.O_CREAT | os.O_RDWR)',
        'path.write_text(text)',
        'path.rename(other)',
        'path.replace(other)',
        'os.replace(one, two)',
        'shutil.rmtree(folder)',
        'shutil.move(one, two)',
        'np.save(path, array)',
        "np.load(path, mmap_mode='r+')",
        'np.lib.format.open_memmap(path)',
        'torch.save(content, path)',
        'json.dump(value, file)',
        'figure.savefig(path)',
    ],
)
def test_a_line_that_changes_files_is_found(line):
    assert len(list(changes(f'def write():\n    {line}'))) == 1


@pytest.mark.parametrize(
    'line',
    [
        'open(path)',
        "open(path, 'rb')",
        "text.replace('a', 'b')",
        'replace(config, seed=1)',
        'write_text(path, text)',
        "open(temporary, 'w')",
        'np.load(path)',
        "with operation('write', path):\n        path.write_text(text)",
    ],
)
def test_other_lines_are_not(line):
    assert list(changes(f'def read():\n    {line}')) == []
