"""Config files and texts: YAML to flat keys ({'TRAIN.BATCH_SIZE': 32}) and back."""

from pathlib import Path
from typing import Any

import yaml

from lib.config.defaults import KEYS, SECTIONS, TREE, Config
from lib.config.key import did_you_mean
from lib.errors import UserError


class _Loader(yaml.SafeLoader):
    """Safe, and strict about a key that is set twice (plain YAML would silently take the last)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, 'a key must be a plain text', key_node.start_mark)
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f'key {key_node.value!r} is set twice', key_node.start_mark
            )
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_config_file(path: str) -> dict[str, Any]:
    """Return the keys that a YAML file sets, such as {'TRAIN.BATCH_SIZE': 32}, converted to their types.

    Raises:
        UserError: no such file, not YAML, an unknown key, a value of the wrong type or out of range.
    """
    file = Path(path)
    if file.suffix not in ('.yaml', '.yml'):
        raise UserError(f'--config {path}: only YAML files (.yaml, .yml) are accepted; a config is never executed')
    if not file.is_file():
        raise UserError(f'--config {path}: no such file{_near(file)}')
    try:
        return parse_config_text(file.read_text(encoding='utf-8'), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--config {path}: cannot be read ({error})') from None


def parse_config_text(text: str, source: str, unknown: list[str] | None = None) -> dict[str, Any]:
    """Return the flat keys of a YAML text; `source` names it in errors.

    Unknown keys are an error, or appended to `unknown` if a list is given: a checkpoint of another version may have
    other keys.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        position = f' in line {mark.line + 1}' if mark else ''
        raise UserError(f'{source}: not valid YAML{position}: {getattr(error, "problem", None) or error}') from None
    except (ValueError, AttributeError, RecursionError) as error:
        # PyYAML's own constructors raise these: an impossible date, `!!int x`, a thousand brackets.
        raise UserError(f'{source}: not valid YAML: {error}') from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f'{source}: must contain keys such as TRAIN: {{BATCH_SIZE: 32}}, found {type(tree).__name__}')
    values = {}
    for name, value in _flatten(tree, source):
        if name in values:
            raise UserError(f'{source}: {name} is set twice')
        if name in KEYS:
            values[name] = KEYS[name].accept(f'{source}: {name}', value)
        elif unknown is None:
            raise UserError(
                f'{source}: {name} is not a key{did_you_mean(name, KEYS)}; python main.py --help all lists all keys'
            )
        else:
            unknown.append(name)
    return values


def _flatten(tree: dict[Any, Any], source: str) -> list[tuple[str, Any]]:
    pairs = []
    for name, value in tree.items():
        if name in TREE and name != '':
            if not isinstance(value, dict):
                raise UserError(f'{source}: {name} is a section and must contain keys, found {value!r}')
            pairs += [(f'{name}.{leaf}', leaf_value) for leaf, leaf_value in value.items()]
        else:
            pairs.append((str(name), value))
    return pairs


def _near(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path('configs')
    names = [str(other) for other in folder.glob('*.yaml')]
    return did_you_mean(str(file), names)


class _Dumper(yaml.SafeDumper):
    """Writes sections as blocks and tuples in one line."""


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
        leaves = {leaf: node[leaf] for leaf in keys}
        plain.update({section: leaves} if section else leaves)
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)
