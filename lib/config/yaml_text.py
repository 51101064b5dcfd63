"""Config files and texts: YAML to flat keys ({'TRAIN.BATCH_SIZE': 32}) and back."""

import codecs
import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lib.config.defaults import KEYS, SECTIONS, TREE, Config
from lib.config.key import did_you_mean
from lib.errors import UserError, one_line, shown, unquoted, url_fault
from lib.runtime.mirror import is_url, local_path
from lib.runtime.read_file import MAX_CONFIG_BYTES, read_text, reason_of
from lib.runtime.storage import materialize


class _Fault(Exception):
    """A reason why a YAML text is refused, with its line."""

    def __init__(self, problem: str, event: yaml.Event) -> None:
        mark = event.start_mark
        super().__init__(f'{f" in line {mark.line + 1}" if mark else ""}: {problem}')


_TAGS = (None, '!', *(f'tag:yaml.org,2002:{name}' for name in ('str', 'map', 'seq')))
_MAX_DEPTH = 5  # a config has two levels, and lists as values


def _events(text: str, loader: Any) -> Iterator[yaml.Event]:
    """Yield the parts of a single document without aliases and explicit types. Raises: _Fault, yaml.YAMLError."""
    depth = num_documents = 0
    for event in yaml.parse(text, Loader=loader):
        num_documents += isinstance(event, yaml.DocumentStartEvent)
        if num_documents > 1:
            raise _Fault('a second document (---) begins; a config file contains one', event)
        if getattr(event, 'anchor', None) is not None:
            raise _Fault('anchors (&) and aliases (*) are not allowed: repeat the value, or quote the text', event)
        tag = getattr(event, 'tag', None)
        if tag not in _TAGS:
            raise _Fault(f'the tag {unquoted(str(tag))} is not allowed: the key determines the type', event)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _Fault(f'more than {_MAX_DEPTH} levels are nested', event)
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            yield event


def _load(text: str) -> Any:
    """Return a YAML document in which every scalar is the text in the file, or None where there is none.

    A key converts the text as it does on the command line. YAML's own types would change texts: 007 to 7, 1e3 to
    1000.0, yes to True, 12:30 to 750.

    Raises:
        _Fault, yaml.YAMLError: not such a document.
    """
    if yaml.__with_libyaml__:
        try:
            return _load_by(text, yaml.CBaseLoader)  # ten times as fast
        except (yaml.YAMLError, _Fault):
            pass  # the messages of the parser in Python are the same with and without libyaml
    return _load_by(text, yaml.BaseLoader)


def _load_by(text: str, loader: Any) -> Any:
    events = _events(text, loader)
    first = next(events, None)
    tree = None if first is None else _value(first, events)
    for _ in events:  # the rest of the text, which must not contain another document
        pass
    return tree


def _until_end(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    """Yield the events that begin an entry of the present collection; the entry's own events are taken in between."""
    return itertools.takewhile(lambda event: not isinstance(event, yaml.CollectionEndEvent), events)


def _value(event: yaml.Event, events: Iterator[yaml.Event]) -> Any:
    if isinstance(event, yaml.SequenceStartEvent):
        return [_value(entry, events) for entry in _until_end(events)]
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events)
    assert isinstance(event, yaml.ScalarEvent)
    is_plain = event.implicit[0]
    return None if is_plain and event.value == '' else event.value


def _mapping(events: Iterator[yaml.Event]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for event in _until_end(events):
        if not isinstance(event, yaml.ScalarEvent):
            raise _Fault('a key must be a plain text', event)
        if event.value in values:
            raise _Fault(f'key {shown(event.value)} is set twice', event)
        values[event.value] = _value(next(events), events)
    return values


def read_config_file(path: str) -> dict[str, Any]:
    """Return the keys that a YAML file sets, such as {'TRAIN.BATCH_SIZE': 32}, converted to their types.

    Raises:
        UserError: no such file, not YAML, an unknown key, a value of the wrong type or out of range.
    """
    if fault := url_fault(path):
        raise UserError(f'--config is {fault}')
    file = local_path(path) if is_url(path) else Path(path)
    if file.suffix not in ('.yaml', '.yml'):
        raise UserError(f'--config {path}: only YAML files (.yaml, .yml) are accepted; a config is never executed')
    with suppress(FileNotFoundError):
        materialize(file)
    if not file.exists():
        raise UserError(f'--config {path}: no such file{_near(file)}')
    return parse_config_text(_read(file), path)


def _read(file: Path) -> str:
    try:
        return read_text(file, max_bytes=MAX_CONFIG_BYTES, encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        is_utf16 = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = 'UTF-16' if is_utf16 else f'byte {error.start} is {error.object[error.start]:#04x}'
        raise UserError(f'--config {file}: cannot be read, as it is not UTF-8 ({found}); save it as UTF-8') from None
    except OSError as error:
        raise UserError(f'--config {file}: cannot be read ({reason_of(error)})') from None


def parse_config_text(text: str, source: str, unknown: list[str] | None = None) -> dict[str, Any]:
    """Return the flat keys of a YAML text; `source` names it in errors.

    Unknown keys are an error, or appended to `unknown` if a list is given: a checkpoint of another version may have
    other keys.
    """
    try:
        tree = _load(text)
    except (yaml.YAMLError, _Fault) as error:
        raise UserError(f'{source}: not valid YAML{_reason(error, text)}') from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        found = 'a list' if isinstance(tree, list) else 'a text'
        raise UserError(f'{source}: must contain keys such as TRAIN: {{BATCH_SIZE: 32}}, found {found}')
    values = {}
    for name, value in _flatten(tree, source):
        if name in values:
            raise UserError(f'{source}: {unquoted(name)} is set twice')
        if name in KEYS:
            values[name] = KEYS[name].accept(f'{source}: {name}', value)
        elif unknown is None:
            hint = did_you_mean(name, [*KEYS, *SECTIONS])
            raise UserError(f'{source}: {unquoted(name)} is not a key{hint}; python main.py --help all lists all keys')
        else:
            unknown.append(name)
    return values


def _reason(error: yaml.YAMLError | _Fault, text: str) -> str:
    """Return ' in line N: reason'."""
    if isinstance(error, _Fault):
        return str(error)
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count('\n', 0, error.position) + 1
        return f' in line {line}: the character {error.character:#04x} is not allowed'
    mark, problem = getattr(error, 'problem_mark', None), one_line(str(getattr(error, 'problem', None) or error))
    hint = '; indent with spaces, not with tabs' if r'\t' in problem else ''
    return f'{f" in line {mark.line + 1}" if mark else ""}: {problem}{hint}'


def _flatten(tree: dict[str, Any], source: str) -> list[tuple[str, Any]]:
    pairs = []
    for name, value in tree.items():
        if name in TREE and name != '':
            if not isinstance(value, dict):
                found = 'nothing' if value is None else shown(value)
                raise UserError(f'{source}: {name} is a section and must contain keys, found {found}')
            pairs += [(f'{name}.{leaf}', leaf_value) for leaf, leaf_value in value.items()]
        else:
            pairs.append((name, value))
    return pairs


def _near(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path('configs')
    names = [str(other) for other in folder.glob('*.yaml')]
    return did_you_mean(str(file), names)


class _Dumper(yaml.SafeDumper):
    """Writes sections as blocks, tuples in one line, and no aliases for equal tuples."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Quoted with escapes, so that a text of control characters, line ends or undecodable bytes reads back as it was.
_Dumper.add_representer(
    str,
    lambda dumper, value: dumper.represent_scalar(
        'tag:yaml.org,2002:str', value, style=None if value.isprintable() else '"'
    ),
)
_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence('tag:yaml.org,2002:seq', value, flow_style=True)
)


def as_node(values: dict[str, Any]) -> Config:
    """Return the frozen tree of flat keys: cfg.TRAIN.BATCH_SIZE, cfg.NAME."""
    cfg = Config()
    for name, section in SECTIONS.items():
        node = section() if name else cfg
        for leaf in section.keys_by_name:
            node[leaf] = values[f'{name}.{leaf}' if name else leaf]
        if name:
            cfg[name] = node
    cfg.freeze()
    return cfg


def as_values(cfg: Config) -> dict[str, Any]:
    """Return the flat keys of a tree, the inverse of as_node."""
    return {
        f'{section}.{leaf}' if section else leaf: (cfg[section] if section else cfg)[leaf]
        for section, keys in TREE.items()
        for leaf in keys
    }


def as_text(cfg: Config) -> str:
    """Return the whole tree as YAML that reads back to the same values."""
    plain: dict[str, Any] = {}
    for section, keys in TREE.items():
        node = cfg[section] if section else cfg
        leaves = {leaf: key.plain(node[leaf]) for leaf, key in keys.items()}
        plain.update({section: leaves} if section else leaves)
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)
