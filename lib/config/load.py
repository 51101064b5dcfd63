"""Where values come from: defaults < the checkpoint's config < files given explicitly < options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.config.check import check_values
from lib.config.defaults import KEYS, Config
from lib.config.options import parse_options
from lib.config.yaml_text import as_node, parse_config_text, read_config_file

_CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DEFAULT_CONFIG = 'configs/AiProducts.yaml'
_OWN_PHOTOS = 'configs/own_photos.yaml'
_MADE_FOR = {DEFAULT_CONFIG: 'AliProducts', _OWN_PHOTOS: 'a folder of class folders'}
# What a checkpoint of the original entry, which holds no config, was trained with.
_ORIGINAL = ('AiProducts.yaml', 'AiProducts_original.yaml')
_NEVER_FROM_CHECKPOINT = ('LOG_ROOT', 'RESUME_MODEL', 'RESUME_MODE', 'OVERWRITE')

FindCheckpointConfig = Callable[[str, Path], str | None]


@dataclass
class Loaded:
    """A frozen config, and what the user should be told about how it came to be."""

    cfg: Config
    notes: list[str] = field(default_factory=list)


@dataclass
class Layer:
    """Keys set by one source; later layers win."""

    source: str
    values: dict[str, Any]


def load_config(
    argv: Sequence[str], *, program: str, description: str, find_checkpoint_config: FindCheckpointConfig
) -> Loaded:
    """Merge and check everything that sets a key.

    Args:
        argv: the command line after the program's name.
        program, description: for ``--help``.
        find_checkpoint_config: (RESUME_MODEL, run folder) -> the YAML text in that checkpoint, '' when it holds
            none (the original entry's form), None when there is no checkpoint yet. Called if RESUME_MODEL is set.

    Raises:
        UserError: any mistake in files, options, or their combination.
    """
    files, options = parse_options(argv, program=program, description=description, default_config=DEFAULT_CONFIG)
    notes: list[str] = []
    explicit = [Layer(file, read_config_file(file)) for file in files] + [Layer('the command line', options)]
    default = [] if files else [_default_layer(options)]
    values, _ = _merge(default + explicit)
    checkpoint = _checkpoint_layers(values, find_checkpoint_config, notes)
    layers = (checkpoint or default) + explicit
    if default and not checkpoint:
        notes.append(f'no --config given: {default[0].source} is used, the recipe for {_MADE_FOR[default[0].source]}')
    values, levels = _merge(layers, first_level=-len(checkpoint))
    values['NAME'] = _name(values)
    check_values(values, levels)
    return Loaded(as_node(values), notes)


def _default_layer(options: dict[str, Any]) -> Layer:
    """Choose the file that counts when none was given.

    The default recipe is for 50,030 classes on several GPUs. Somebody who names only a folder of their own photos
    is better served by a small one, and goes on with RESUME_MODEL last in the run folder that it made.
    """
    root = options.get('DATASET.ROOT', '')
    others = {'DATASET.TRAIN_JSON', 'DATASET.NAME'} & options.keys() or options.get('RESUME_MODEL', 'last') != 'last'
    own = root and not others and not Path(root, 'converted_train.json').exists()
    source = _OWN_PHOTOS if own else DEFAULT_CONFIG
    return Layer(source, read_config_file(str(_CONFIGS / Path(source).name)))


def _checkpoint_layers(values: dict[str, Any], find: FindCheckpointConfig, notes: list[str]) -> list[Layer]:
    resume = values['RESUME_MODEL']
    if not resume:
        return []
    text = find(resume, Path(values['LOG_ROOT'], _name(values)))
    if text is None:
        return []
    if text == '':
        notes.append(f'{resume} holds no config: configs/{_ORIGINAL[1]} is used (BGR images, cosine scale 1)')
        return [Layer(f'configs/{name}', read_config_file(str(_CONFIGS / name))) for name in _ORIGINAL]
    unknown: list[str] = []
    found = parse_config_text(text, f'the config in {resume}', unknown)
    if unknown:
        notes.append(f'{resume}: keys of another version are left out: {", ".join(unknown)}')
    kept = {
        name: value
        for name, value in found.items()
        if name not in _NEVER_FROM_CHECKPOINT and not name.startswith('RUN.')
    }
    return [Layer(f'the config in {resume}', kept)]


def _name(values: dict[str, Any]) -> str:
    return values['NAME'] or Path(values['DATASET.ROOT'] or values['DATASET.SHARDS']).resolve().name


def _merge(layers: list[Layer], first_level: int = 0) -> tuple[dict[str, Any], dict[str, int]]:
    """Return each key's value, and the number of the layer that set it.

    Layers are numbered from `first_level`. Below 0 is what nobody asked for now: defaults, the checkpoint's config.
    """
    values = {name: key.default for name, key in KEYS.items()}
    levels = dict.fromkeys(KEYS, -1)
    for level, layer in enumerate(layers, first_level):
        values.update(layer.values)
        levels.update(dict.fromkeys(layer.values, level))
    return values, levels
