"""Mutations of real files for fuzzing: of their bytes, of JSON trees, and of the content of checkpoints."""

import copy
import io
import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st

# Pieces that parsers handle apart: large numbers, ends of texts, other encodings, deep nesting, sizes of fields.
TOKENS = [
    b'', b'\0', b'\n', b'\r', b'"', b'\\', b',', b';', b'{', b'}', b'[', b']', b':', b'-', b'.', b'#', b'&a ', b'*a',
    b'null', b'true', b'NaN', b'-Infinity', b'1e999', b'-1', b'0', b'1.5', b'9' * 30, b'-' + b'9' * 400, b'9' * 5000,
    b'\\ud800', b'\\u0000', b'\xed\xa0\x80', b'\xff', b'\xef\xbb\xbf', b'\xff\xfe', b'\xfe\xff', b'PK\x03\x04',
    b'[' * 3000, b'{"a":' * 3000, b'../../x', b'/etc/passwd', b'\xff' * 4, b'\xff' * 8, b'\x7f' + b'\xff' * 3,
    b'\x00\x00\x00\x80', b'\x00' * 64, b'!!python/object:os.system',
]  # fmt: skip
OPERATIONS = ('flip', 'replace', 'insert', 'delete', 'repeat', 'truncate', 'zero')
_POSITIONS = st.floats(0, 1, allow_subnormal=False)
_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(OPERATIONS), _POSITIONS, st.integers(1, 64), st.sampled_from(TOKENS) | st.binary(max_size=8)
    ),
    min_size=1,
    max_size=4,
)


def mutated_bytes(data: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of changes of a file's bytes."""

    def apply(changes: list[tuple[str, float, int, bytes]]) -> bytes:
        result = data
        for operation, where, length, token in changes:
            start = int(where * len(result))
            before, chosen, after = result[:start], result[start : start + length], result[start + length :]
            flipped = bytes([chosen[0] ^ 1 << length % 8]) + chosen[1:] if chosen else b''
            result = {
                'flip': before + flipped + after,
                'replace': before + token + result[start + len(token) :],
                'insert': before + token + chosen + after,
                'delete': before + after,
                'repeat': before + chosen * 3 + after,
                'truncate': before,
                'zero': before + bytes(len(chosen)) + after,
            }[operation]
        return result

    return _CHANGES.map(apply)


_NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63, -(2**63) - 1, 10**50, 0.5, 3.0, 1e30, -1e308, math.nan, math.inf]
)
_TEXTS = st.sampled_from(['', '\0', '\ud800', '../x', '/x', 'a\nb', 'x' * 5000, '\x1b[31m', '٣', 'None', '1'])
_DEEP: Any = []
for _ in range(80):
    _DEEP = [_DEEP]
VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS | st.integers() | st.text(max_size=4) | st.just(_DEEP),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def mutated_tree(tree: Any, values: st.SearchStrategy = VALUES) -> st.SearchStrategy:
    """Return a strategy of changes of a tree: entries get other values, or disappear."""
    places = list(_places(tree, ()))
    change = st.tuples(st.sampled_from(places), st.booleans() | st.just(True), values)

    def apply(changes: list[tuple[tuple, bool, Any]]) -> Any:
        result = copy.deepcopy(tree)
        for place, sets, value in changes:
            if not place:
                result = value
                continue
            node: Any = result
            try:
                for key in place[:-1]:
                    node = node[key]
                if sets:
                    node[place[-1]] = value
                else:
                    del node[place[-1]]
            except (KeyError, IndexError, TypeError):  # an earlier change has removed it
                continue
        return result

    return st.lists(change, min_size=1, max_size=2).map(apply)


def _places(tree: Any, place: tuple) -> Iterator[tuple]:
    yield place
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree[:3]) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from _places(value, (*place, key))


def mutated_json(data: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of changes of a JSON file, half of them of its tree."""
    return mutated_values(data) | mutated_bytes(data)


def mutated_values(data: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of changes of the tree in a JSON file."""
    return mutated_tree(json.loads(data)).map(lambda tree: json.dumps(tree).encode())


def mutated_json_lines(data: bytes) -> st.SearchStrategy[bytes]:
    """Return the same for a file with an object per line."""
    trees = mutated_tree([json.loads(line) for line in data.splitlines()])
    lines = trees.map(lambda tree: '\n'.join(map(json.dumps, tree if isinstance(tree, list) else [tree])).encode())
    return lines | mutated_bytes(data)


def _tensors() -> list[Any]:
    return [
        torch.zeros(0), torch.zeros(()), torch.tensor(math.nan), torch.ones(3, dtype=torch.int64), torch.ones(3, 2),
        torch.ones(1).expand(10**9), torch.ones(2, 1).expand(2, 10**7), torch.ones(3, device='meta'),
        torch.ones(3, 2).to_sparse(), torch.ones(3, 2, dtype=torch.complex64), torch.ones(3, dtype=torch.bool),
        torch.tensor([-1, -1, -1]), torch.ones(3, 2).half(), torch.ones(2, 3).T, torch.ones(6)[1::2],
        torch.nn.Parameter(torch.ones(3, 2)), torch.ones(3, 2).to(torch.float8_e4m3fn), (1, 2), b'bytes', {1, 2},
        torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8), torch.Size([3]),
    ]  # fmt: skip


def mutated_checkpoint(data: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of changes of a file of torch.save, half of them of its content."""
    content = torch.load(io.BytesIO(data), weights_only=True)

    def encode(tree: Any) -> bytes:
        file = io.BytesIO()
        torch.save(tree, file)
        return file.getvalue()

    return mutated_tree(content, VALUES | st.sampled_from(_tensors())).map(encode) | mutated_bytes(data)
