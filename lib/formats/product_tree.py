"""A category hierarchy from JSON of several forms, none of which its makers have documented."""

from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.formats.sources import read_json


def read_parents(path: Path, class_ids: list[int]) -> tuple[list[list[str]] | None, list[str]]:
    """Return the ancestors of each class, root first, and warnings; (None, ...) when the file tells of none.

    Three forms are understood: nested objects or lists that end in class ids, `{child: parent, ...}`, and
    `[{"id": ..., "parent": ..., "name": ...}, ...]`. Whatever else it is, the data set can do without it.
    """
    if not path.is_file():
        return None, []
    try:
        tree = read_json(path, Any)
    except UserError as error:
        return None, [f'{error}; going on without parents']
    chains = _chains(tree)
    parents = [chains.get(_key(number), []) for number in class_ids]
    found = sum(map(bool, parents))
    if not found:
        return None, [f'{path}: no hierarchy of these classes could be read from it; going on without parents']
    if found < len(parents):
        return parents, [f'{path}: names no parents of {len(parents) - found} of {len(parents)} classes']
    return parents, []


def _chains(tree: Any) -> dict[str, list[str]]:
    """Return node -> ancestors, root first."""
    if isinstance(tree, list) and tree and all(isinstance(node, dict) and 'id' in node for node in tree):
        parent_of = {_key(node['id']): _key(node.get('parent', node.get('parent_id', ''))) for node in tree}
        titles = {_key(node['id']): str(node.get('name') or node['id']) for node in tree}
        return {node: _climb(node, parent_of, titles) for node in parent_of}
    if isinstance(tree, dict) and tree and all(isinstance(parent, str | int | None) for parent in tree.values()):
        parent_of = {_key(child): _key(parent) for child, parent in tree.items()}
        return {node: _climb(node, parent_of, {}) for node in parent_of}
    return _descend(tree)


def _climb(node: str, parent_of: dict[str, str], titles: dict[str, str]) -> list[str]:
    chain, seen = [], {node}
    parent = parent_of.get(node, '')
    while parent and parent not in seen:  # a circle ends where it closes
        seen.add(parent)
        chain.append(titles.get(parent, parent))
        parent = parent_of.get(parent, '')
    return chain[::-1]


def _descend(tree: Any) -> dict[str, list[str]]:
    chains: dict[str, list[str]] = {}
    waiting: list[tuple[Any, list[str]]] = [(tree, [])]
    while waiting:
        node, above = waiting.pop()
        if isinstance(node, dict):
            for name, below in node.items():
                chains.setdefault(_key(name), above)
                waiting.append((below, [*above, str(name)]))
        elif isinstance(node, list):
            waiting += [(item, above) for item in node]
        elif isinstance(node, str | int):
            chains.setdefault(_key(node), above)
    return chains


def _key(node: Any) -> str:
    """Return a node's name such that 123, '123' and '00123' are one; '' for none."""
    text = '' if node is None else str(node)
    return (text.lstrip('0') or '0') if text.isdecimal() else text
