"""The language of the project: words that the field uses, American spelling, plain sentences.

RULES is the whole style guide that a machine can check. Each finding names its line and the advice.
"""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.source_tree import nodes, parsed

ROOT = Path(__file__).resolve().parents[1]
DOCSTRING, COMMENT, MESSAGE, PAGE, NAME = 'docstring', 'comment', 'message', 'page', 'name'
PROSE = (DOCSTRING, COMMENT, MESSAGE, PAGE)
# File and folder names without meaning, or that other tools ignore or collect.
BAD_NAMES = (
    'build', 'others.py', 'wishes.py', 'meeting.py', 'members.py', 'seen.py', 'answers.py', 'feed.py', 'parts.py',
    'ways.py', 'live.py', 'test_images.py', 'utils.py', 'common.py', 'helpers.py',
)  # fmt: skip
# Quotations, such as a paper's title or another library's option, may be British.
MAX_BRITISH = 10


@dataclass(frozen=True)
class Rule:
    """A regular expression that must not match, and what to write instead. A blank matches a line break, too."""

    pattern: str
    advice: str
    kinds: tuple[str, ...] = PROSE

    @functools.cached_property
    def regex(self) -> re.Pattern:
        return re.compile(self.pattern.replace(' ', r'\s+'))


RULES = (
    Rule(
        r'\A(What|Return what|Yield what)\b', 'name the thing: a noun or an imperative verb comes first', (DOCSTRING,)
    ),
    Rule(r'(\A|[.:] )Whether\b', 'write `Return whether ...` or `True if ...`', (DOCSTRING,)),
    Rule(r'\b(goes?|going|gone|went) on\b', 'resume, continue'),
    Rule(r'\b(says?|said|tells?|told)\b', 'report, log, state, distinguish'),
    Rule(r'\b(whoever|nobody|somebody|everybody)\b', 'name the subject: the user, the caller, no rank'),
    Rule(r'\b(anew|but for|for ever|in vain|under way|all the same)\b', 'again, except, forever, running'),
    Rule(r'\bof (its|their|his|our|the \w+\'s) own\b', 'its own file, a separate process'),
    Rule(r'\bwish(es|ed)?\b', 'request, option'),
    Rule(r'\blook(s|ed|ing)? at\b', 'read, evaluate, process, inspect'),
    Rule(r'\b[Ff]igures\b', 'metrics, numbers, results; matplotlib has a figure each'),
    Rule(r'\b(house|room|meeting|stand-ins?)\b', 'package, layer, space, rendezvous, fake'),
    Rule(r'\bkept features\b', 'cached features'),
    Rule(r'\b(made|make|makes|making) of\b', 'computed from'),
    Rule(
        r'\b(images|steps|rows|batches|photos|views|counts?|loss(es)?|numbers?|texts?|values?|names?|thresholds?|'
        r'means?|errors?|weights?|scales?|samples|draws|bytes|slots|one|\d+) an? '
        r'(class|batch|step|epoch|second|minute|image|row|rank|device|product|split|file|sample|line)\b',
        'per class, per second, per image',
    ),
    Rule(
        r'\b(said|told|tells?|says?|spoil\w*|wish(es|ed)?|stand in|looks?|meeting|goes on|house)\b',
        'a word of the field: log_lines, report, corrupt, request, fake, read, resume',
        (NAME,),
    ),
)
BRITISH = re.compile(
    'colour|grey|neighbour|behaviour|favour|flavour|honour|labour|(normal|optim|initial|regular|general|summar|recogn|'
    'organ|serial|parallel|vector|quant|visual|equal|minim|maxim|standard|util|penal|random|special|priorit|synchron|'
    'memor|categor|custom|final|util)is(e|ing|ation|able)|emphasise|analys(e|ing)|centre|metre|fibre|licence|defence|'
    'learnt|spelt|burnt|labell|modell(ed|ing)|travell|whilst|artefact|programme\\b|catalogue|fulfil\\b'
)
WORD = re.compile('[a-z]+')
# A tenth of the time of the tokenizer.
STRING_OR_COMMENT = re.compile(
    r'''"""(?:\\.|[^\\])*?"""|\'{3}(?:\\.|[^\\])*?\'{3}|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*''', re.S
)


def python_files() -> list[Path]:
    found = [path for name in ('lib', 'tools', 'benchmarks', 'tests') for path in (ROOT / name).rglob('*.py')]
    return sorted([*found, *ROOT.glob('*.py')])


def pages() -> list[Path]:
    patterns = (
        '*.md',
        'docs/*.md',
        'benchmarks/*.md',
        'configs/**/*.yaml',
        'dataset/*.sh',
        'lib/**/*.html',
        'Makefile',
    )
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts_of(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (kind, line, text) of every docstring, comment block, message and function name of a Python file."""
    source, docstrings = path.read_text(encoding='utf-8'), set()
    is_test = path.is_relative_to(ROOT / 'tests')  # whose trees no other test needs
    tree = ast.parse(source) if is_test else parsed(path)
    for node in blocks_of(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not isinstance(node, ast.Module):
                yield NAME, node.lineno, node.name.replace('_', ' ')
            if ast.get_docstring(node, clean=False) is not None:
                constant = node.body[0].value
                docstrings.add(id(constant))
                yield DOCSTRING, constant.lineno, constant.value
    if not is_test:
        yield from messages_of(path, docstrings)
    yield from comments_of(source)


def blocks_of(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and the statements in it; most of a tree's nodes are expressions, which hold none."""
    yield node
    for name in ('body', 'orelse', 'finalbody', 'handlers', 'cases'):
        inner = getattr(node, name, ())
        for statement in inner if isinstance(inner, list) else ():
            yield from blocks_of(statement)


def messages_of(path: Path, docstrings: set[int]) -> Iterator[tuple[str, int, str]]:
    """Yield (kind, line, text) of string literals of several words: log and error lines, help texts."""
    seen = set(docstrings)  # an f-string comes before its parts
    for node in nodes(path):
        if isinstance(node, ast.JoinedStr):
            seen |= {id(part) for part in node.values}
            parts = [part.value if isinstance(part, ast.Constant) else '{}' for part in node.values]
            yield MESSAGE, node.lineno, ''.join(parts)
        elif isinstance(text := getattr(node, 'value', None), str) and ' ' in text and id(node) not in seen:
            yield MESSAGE, node.lineno, text


def comments_of(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield (kind, line, text) of comments; consecutive lines with nothing else are one text."""
    lines, number, position = source.split('\n'), 1, 0
    start, block = 0, []
    for match in STRING_OR_COMMENT.finditer(source):
        if match[0][0] != '#':
            continue
        number += source.count('\n', position, match.start())
        position = match.start()
        alone = lines[number - 1].lstrip()[0] == '#'
        if block and not (alone and number == start + len(block)):
            yield COMMENT, start, '\n'.join(block)
            block = []
        if not block:
            start = number
        block.append(match[0].lstrip('#'))
    if block:
        yield COMMENT, start, '\n'.join(block)


def text_of_page(path: Path) -> str:
    """Return a page whose code is blanked out."""
    text = path.read_text(encoding='utf-8')
    return re.sub(r'^```.*?^```|`[^`\n]*`', lambda match: '\n' * match[0].count('\n'), text, flags=re.S | re.M)


def findings_of(path: Path) -> list[str]:
    texts = texts_of(path) if path.suffix == '.py' else [(PAGE, 1, text_of_page(path))]
    found = []
    for kind, line, text in texts:
        for rule in RULES:
            if kind in rule.kinds:
                for match in rule.regex.finditer(text):
                    number = line + text.count('\n', 0, match.start())
                    words = ' '.join(match[0].split())
                    found.append(f'{name_of(path)}:{number}: {kind} has {words!r}: {rule.advice}')
    return found


@pytest.mark.long
def test_no_idiom_returns():
    found = [finding for path in [*python_files(), *pages()] for finding in findings_of(path)]
    assert not found, '\n'.join(found)


@functools.cache
def is_british(word: str) -> bool:
    return BRITISH.search(word) is not None


@pytest.mark.long
def test_spelling_is_american():
    """In identifiers and code too: one spelling per word makes the tree searchable."""
    found = []
    for path in [*python_files(), *pages()]:
        # Five times as fast as without regard to case.
        text = path.read_text(encoding='utf-8').lower() if path != Path(__file__).resolve() else ''
        # Files repeat words, and few have a finding.
        for match in BRITISH.finditer(text) if any(map(is_british, set(WORD.findall(text)))) else ():
            found.append(f'{name_of(path)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}')
    assert len(found) <= MAX_BRITISH, '\n'.join(found)


def test_file_names_are_specific():
    paths = [path for path in (ROOT / 'lib').rglob('*') if '__pycache__' not in path.parts]
    assert [name_of(path) for path in paths if path.name in BAD_NAMES] == []
