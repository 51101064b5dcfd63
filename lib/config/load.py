"""Where values come from: defaults < the checkpoint's config < files after --config < options."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.config.check import check_values
from lib.config.defaults import KEYS, Config
from lib.config.options import Recipe, parse_options
from lib.config.storage import localized, set_cache
from lib.config.yaml_text import as_node, parse_config_text, read_config_file
from lib.errors import UserError, unquoted

_CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DEFAULT_CONFIG = 'configs/AiProducts.yaml'
_OWN_PHOTOS = 'configs/own_photos.yaml'
_PURPOSE = {DEFAULT_CONFIG: 'AliProducts', _OWN_PHOTOS: 'a folder of photos'}
# An annotation file of more bytes describes about 200,000 images or more: the recipe of AliProducts suits them.
_LARGE_BYTES = 20_000_000
# The recipe of checkpoints of the original entry, which contain no config.
_ORIGINAL = ('AiProducts.yaml', 'AiProducts_original.yaml')
# Values of keys that checkpoints of older versions do not contain.
_BEFORE = {
    'INPUT.SIZE': 112,
    'INPUT.MEAN': (0.485, 0.456, 0.406),
    'INPUT.STD': (0.229, 0.224, 0.225),
    'INPUT.CROP_RATIO': 0.875,
    'INPUT.INTERPOLATION': 'bilinear',
    'MODEL.PRETRAINED': '',
}
_NEVER_FROM_CHECKPOINT = ('LOG_ROOT', 'RESUME_MODEL', 'RESUME_MODE', 'OVERWRITE')

FindCheckpointConfig = Callable[[str, Path], str | None]


@dataclass
class LoadedConfig:
    """A frozen config, and notes for the log on how it was chosen."""

    cfg: Config
    notes: list[str] = field(default_factory=list)


@dataclass
class Layer:
    """Keys set by one source; later layers win."""

    source: str
    values: Mapping[str, Any]


def load_config(
    argv: Sequence[str],
    *,
    program: str,
    description: str,
    find_checkpoint_config: FindCheckpointConfig,
    needs_model: bool = False,
) -> LoadedConfig:
    """Merge and check everything that sets a key.

    Args:
        argv: the command line after the program's name.
        program, description: for --help.
        find_checkpoint_config: (RESUME_MODEL, run folder) -> the YAML text in that checkpoint, '' if it contains none
            (a checkpoint of the original entry), None if there is no checkpoint yet. Called if RESUME_MODEL is set.
        needs_model: the command uses a trained model, so that its help shows no recipe for training.

    Raises:
        UserError: any mistake in files, options, or their combination.
    """
    files, options = parse_options(
        argv,
        program=program,
        description=description,
        find_recipe=lambda files, options: _find_recipe(files, options, find_checkpoint_config, needs_model),
    )
    notes: list[str] = []
    explicit = _explicit_layers(files, options)
    default = [] if files else [_default_layer(options)]
    values, _ = _merge(default + explicit)
    checkpoint = _find_checkpoint(values, find_checkpoint_config, notes)
    if default and not checkpoint:
        notes.append(f'{default[0].source} is used (no --config), for {_PURPOSE[default[0].source]}')
    return LoadedConfig(_resolve(checkpoint or default, explicit, is_checkpoint=bool(checkpoint)), notes)


def merge_checkpoint_config(
    text: str, path: str | Path, options: Mapping[str, Any], *, files: Sequence[str] = ()
) -> Config:
    """Return the config of a second model: that of its checkpoint, files and options merged over it.

    Args:
        text: YAML in the checkpoint; '' for a checkpoint of the original entry.
        path: path of the checkpoint; becomes RESUME_MODEL.
        options: flat keys, such as {'TEST.BATCH_SIZE': 8}, in their types.
        files: after --config.

    Raises:
        UserError: any mistake in the texts, or a combination that does not work.
    """
    explicit = _explicit_layers(files, {**options, 'RESUME_MODEL': str(path)})
    return _resolve(_checkpoint_layers(text, str(path), []), explicit, is_checkpoint=True)


def _explicit_layers(files: Sequence[str], options: Mapping[str, Any]) -> list[Layer]:
    set_cache(options)
    layers = [*(Layer(file, read_config_file(file)) for file in files), Layer('the command line', options)]
    set_cache({name: value for layer in layers for name, value in layer.values.items()})
    return [Layer(layer.source, localized(layer.values)) for layer in layers]


def _default_layer(options: dict[str, Any]) -> Layer:
    """Choose the config file for a command line without --config.

    The default recipe is for 50,030 classes on several GPUs. A user who gives only a folder, of photos or converted,
    gets a small recipe; RESUME_MODEL last then resumes in the same run folder.
    """
    root = options.get('DATASET.ROOT', '')
    others = {'DATASET.TRAIN_JSON', 'DATASET.NAME'} & options.keys() or options.get('RESUME_MODEL', 'last') != 'last'
    own_photos = root and not others and not _is_large(Path(root, 'converted_train.json'))
    source = _OWN_PHOTOS if own_photos else DEFAULT_CONFIG
    return Layer(source, read_config_file(str(_CONFIGS / Path(source).name)))


def _is_large(annotations: Path) -> bool:
    try:
        return annotations.stat().st_size > _LARGE_BYTES
    except OSError:
        return False


def _find_checkpoint(values: dict[str, Any], find: FindCheckpointConfig, notes: list[str]) -> list[Layer]:
    """Return the config of the checkpoint that RESUME_MODEL names; none if it is empty, or there is no checkpoint."""
    if not values['RESUME_MODEL']:
        return []
    text = find(values['RESUME_MODEL'], Path(values['LOG_ROOT'], _run_name(values)))
    return [] if text is None else _checkpoint_layers(text, values['RESUME_MODEL'], notes)


def _find_recipe(
    files: list[str], options: dict[str, Any], find_checkpoint_config: FindCheckpointConfig, needs_model: bool
) -> Recipe:
    """Return the values that the command would use for options that are not given, for --help."""
    default = [] if files else [_default_layer(options)]
    try:
        explicit = _explicit_layers(files, options)
        values, _ = _merge(default + explicit)
        checkpoint = _find_checkpoint(values, find_checkpoint_config, [])
    except UserError as error:
        return Recipe(f'none, since {error}')
    base = checkpoint or ([] if needs_model else default)
    layers = [*base, *explicit[:-1]]
    found = {name: (value, layer.source) for layer in layers for name, value in layer.values.items()}
    name = _run_name(_merge(base + explicit)[0])
    if name and 'NAME' not in found:
        found['NAME'] = (name, 'the folder name of DATASET.ROOT')
    return Recipe(', '.join(layer.source for layer in layers) or 'the config in the checkpoint', found)


def _checkpoint_layers(text: str, path: str, notes: list[str]) -> list[Layer]:
    if text == '':
        notes.append(f'{path} contains no config: configs/{_ORIGINAL[1]} is used (BGR images, cosine scale 1)')
        return [Layer(f'configs/{name}', read_config_file(str(_CONFIGS / name))) for name in _ORIGINAL]
    source = f'the config in {path}'
    unknown: list[str] = []
    values = parse_config_text(text, source, unknown)
    if unknown:
        names = ', '.join(map(unquoted, unknown[:3])) + ', ...' * (len(unknown) > 3)
        notes.append(f'{path}: keys of another version are ignored: {names}')
    used = {
        name: value
        for name, value in values.items()
        if name not in _NEVER_FROM_CHECKPOINT and not name.startswith(('RUN.', 'STORAGE.'))
    }
    return [Layer(source, _BEFORE | localized(used))]


def _resolve(base: list[Layer], explicit: list[Layer], *, is_checkpoint: bool) -> Config:
    values, levels = _merge(base + explicit, first_level=-len(base) if is_checkpoint else 0)
    if levels['SCHEDULE.WARMUP_FRACTION'] > max(-1, levels['SCHEDULE.WARMUP_EPOCHS']):
        # Both set the same length, so the later one wins, as for any key; within a layer, the epochs win.
        values['SCHEDULE.WARMUP_EPOCHS'] = KEYS['SCHEDULE.WARMUP_EPOCHS'].default
    _unify_frozen(values, levels)
    values['NAME'] = _run_name(values)
    check_values(values, levels)
    return as_node(values)


def _unify_frozen(values: dict[str, Any], levels: dict[str, int]) -> None:
    """Make MODEL.FREEZE_BACKBONE True and MODEL.TUNE head the same: the later of two that differ wins."""
    kind, frozen = values['MODEL.TUNE'], values['MODEL.FREEZE_BACKBONE']
    tune_level, frozen_level = levels['MODEL.TUNE'], levels['MODEL.FREEZE_BACKBONE']
    if frozen == (kind == 'head'):
        return
    if frozen and kind != 'full' and tune_level == frozen_level:
        raise UserError(
            f'MODEL.FREEZE_BACKBONE True trains only the classifier, but MODEL.TUNE {kind} also a part of the '
            'backbone: set only one of them'
        )
    if tune_level > frozen_level:
        values['MODEL.FREEZE_BACKBONE'] = kind == 'head'
    elif frozen_level > tune_level:
        values['MODEL.TUNE'], levels['MODEL.TUNE'] = 'head' if frozen else 'full', frozen_level
    else:  # one of them has its default
        values['MODEL.FREEZE_BACKBONE'], values['MODEL.TUNE'] = True, 'head'


def _run_name(values: dict[str, Any]) -> str:
    return values['NAME'] or Path(values['DATASET.ROOT'] or values['DATASET.SHARDS']).resolve().name


def _merge(layers: list[Layer], first_level: int = 0) -> tuple[dict[str, Any], dict[str, int]]:
    """Return each key's value, and the number of the layer that set it.

    Layers are numbered from `first_level`. Numbers below 0 are of defaults and the checkpoint's config, which the user
    has not typed now.
    """
    values = {name: key.default for name, key in KEYS.items()}
    levels = dict.fromkeys(KEYS, -1)
    for level, layer in enumerate(layers, first_level):
        values.update(layer.values)
        levels.update(dict.fromkeys(layer.values, level))
    return values, levels
