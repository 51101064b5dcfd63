"""Values of files and of the command line go into messages only through lib/errors.py: shown, unquoted, printable.

LOGGER and the error line escape what they print, and print_lines does for results. These rules hold what remains:
lengths of values, messages of libraries, and output that bypasses both.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests import source_tree

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted([*ROOT.glob('lib/**/*.py'), *ROOT.glob('tools/*.py'), *ROOT.glob('*.py')])
ESCAPED = {'shown', 'unquoted', 'printable', 'one_line', 'reason_of', 'few_names', 'end_line', 'len', 'type'}
NO_MESSAGES = {'__repr__', 'key'}  # functions whose texts identify something
REPR = 114  # of ast.FormattedValue.conversion


@functools.cache
def nodes() -> list[tuple[Path, ast.AST]]:
    return [(path, node) for path in CODE for node in source_tree.nodes(path)]


def own_errors() -> set[str]:
    """Return the names of classes whose messages are written here, of values that are escaped."""
    return {
        node.name
        for _, node in nodes()
        if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) for base in node.bases)
    }


def name_of(node: ast.AST) -> str:
    return getattr(node, 'id', getattr(node, 'attr', ''))


def values_of(node: ast.AST) -> Iterator[ast.FormattedValue]:
    for part in ast.walk(node):
        if isinstance(part, ast.FormattedValue):
            yield part


def is_safe(value: ast.AST) -> bool:
    """Return True for a constant of a module and for a call of one of ESCAPED."""
    if isinstance(value, ast.Call):
        return name_of(value.func) in ESCAPED
    return isinstance(value, ast.Constant) or name_of(value).isupper()


def where(path: Path, node: ast.AST) -> str:
    return f'{path.relative_to(ROOT).as_posix()}:{node.lineno}'


def test_no_message_has_the_repr_of_a_value():
    """repr() is as long as the value; `shown` is not."""
    within = [node for _, node in nodes() if isinstance(node, ast.FunctionDef) and node.name in NO_MESSAGES]
    allowed = {id(value) for function in within for value in values_of(function)}
    faults = [
        f'{where(path, node)}: write {{shown(...)}} instead of {{...!r}}'
        for path, node in nodes()
        if isinstance(node, ast.FormattedValue) and node.conversion == REPR and id(node) not in allowed
    ]
    assert not faults, '\n'.join(faults)


def test_messages_of_libraries_are_shortened():
    """An error of Arrow, torch or msgspec may quote what it read, in many lines."""
    faults, known = [], own_errors()
    for path, handler in nodes():
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None:
            continue
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if {name_of(kind) for kind in kinds} <= known:
            continue
        faults += [
            f'{where(path, value)}: write {{shown({handler.name})}}'
            for value in values_of(handler)
            if isinstance(value.value, ast.Name) and value.value.id == handler.name
        ]
    assert not faults, '\n'.join(faults)


def test_nothing_is_printed_unescaped():
    """`print` of a value would let a file name color the terminal or forge a line: print_lines escapes."""
    faults = []
    for path, call in nodes():
        if isinstance(call, ast.Call) and name_of(call.func) == 'print':
            texts = [node for node in call.args if not isinstance(node, ast.JoinedStr)]
            unsafe = [value.value for value in values_of(call) if not is_safe(value.value)]
            if unsafe or not all(map(is_safe, texts)):
                faults.append(f'{where(path, call)}: {ast.unparse(call)}')
    assert not faults, '\n'.join(faults)
