"""Syntax trees of Python files, each parsed and walked once for all tests of a process."""

import ast
import functools
from pathlib import Path


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'), str(path))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Return all nodes of a file, each after the one that it is part of; ast.walk takes several times as long."""
    found: list[ast.AST] = [parsed(path)]
    for node in found:  # which grows meanwhile
        for value in vars(node).values():
            if isinstance(value, ast.AST):
                found.append(value)
            elif isinstance(value, list):
                found += [item for item in value if isinstance(item, ast.AST)]
    return found
