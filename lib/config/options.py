"""The command line: every leaf of the tree is an option, its dots written as underscores."""

import argparse
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from lib.config.defaults import KEYS, TREE
from lib.config.key import Key, did_you_mean
from lib.errors import UserError

_SECTIONS = {
    '': 'the run',
    'DATASET': 'images and labels',
    'INPUT': 'what the backbone sees',
    'SAMPLER': 'how classes are drawn',
    'MODEL': 'backbone and classifier',
    'LOSS': 'what is minimised',
    'MIX': 'two images in one',
    'OPTIMIZER': 'how',
    'SCHEDULE': 'the learning rate over time',
    'TRAIN': 'epochs, batches, checkpoints',
    'TEST': 'prediction',
    'TAU_NORM': 're-balancing',
    'REPORT': 'report.html',
    'POSTHOC': 'tools/posthoc.py: re-balancing and calibration on kept features',
    'EXPORT': 'tools/export.py: for other programs',
    'DOCTOR': 'tools/doctor.py',
    'PACK': 'a data set into a few large files',
    'PLAN': 'tools/plan.py: hardware that is not at hand',
    'SEARCH': 'tools/search.py: nearest neighbours',
    'ENROLL': 'tools/enroll.py: new classes without training',
    'RUN': 'this machine',
}


def option_of(name: str) -> str:
    """Return the option that sets a key: DATASET.TRAIN_JSON -> --DATASET_TRAIN_JSON."""
    return '--' + name.replace('.', '_')


class Parser(argparse.ArgumentParser):
    """Tells a mistake as all others are told."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; --help lists the options')


class Formatter(argparse.HelpFormatter):
    """Lines of at most 80 columns on any terminal; a line break in a meaning is one in the help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8, width=80)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in text.splitlines() for line in textwrap.wrap(part, width)]


def parse_options(
    argv: Sequence[str], *, program: str, description: str, default_config: str
) -> tuple[list[str], dict[str, object]]:
    """Read the command line.

    Returns:
        The files after ``--config`` (empty when not given) and the keys set by options, converted to their types.

    Raises:
        UserError: unknown option, a value missing, or of the wrong type.
    """
    parser = Parser(
        prog=program,
        usage='%(prog)s [--config FILE [FILE ...]] [--SECTION_KEY VALUE ...]',
        description=description,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        '--config',
        nargs='+',
        action='extend',
        default=[],
        metavar='FILE',
        help=f'YAML files, merged left to right (default: {default_config})',
    )
    for section, keys in TREE.items():
        group = parser.add_argument_group(f'{section} ({_SECTIONS[section]})' if section else _SECTIONS[section])
        for leaf, key in keys.items():
            name = f'{section}.{leaf}' if section else leaf
            group.add_argument(option_of(name), dest=name, metavar=_metavar(key), help=_help(key))
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown(unknown[0]))
    given = {name: text for name, text in vars(known).items() if name in KEYS and text is not None}
    return known.config, {name: KEYS[name].accept(option_of(name), text) for name, text in given.items()}


def _unknown(word: str) -> str:
    if not word.startswith('-'):
        return f'{word!r} is not an option: values follow an option, as in --NAME my_run; --help lists the options'
    options = [option_of(name) for name in KEYS]
    spelled = word.split('=')[0]
    underscored = '--' + spelled.lstrip('-').upper().replace('.', '_').replace('-', '_')
    hint = f' (did you mean {underscored}?)' if underscored in options else did_you_mean(spelled, options)
    return f'{spelled} is not an option{hint}; --help lists the options'


def _metavar(key: Key) -> str:
    if isinstance(key.default, tuple):
        return 'X,Y,...'
    return {bool: 'BOOL', int: 'INT', float: 'FLOAT', str: 'TEXT'}[type(key.default)]


def _help(key: Key) -> str:
    text = key.meaning
    if key.choices:
        text += '\nChoices: ' + ', '.join(str(choice) for choice in key.choices if choice != '') + '.'
    if key.used_by:
        selector, values = key.used_by
        text += f'\nUsed by {" or ".join((selector, *key.or_by))} {", ".join(values)}.'
    if isinstance(key.default, tuple):
        default = ','.join(f'{number:g}' for number in key.default) or 'none'
    else:
        default = repr(key.default) if key.default == '' else str(key.default)
    return f'{text}\nDefault: {default}'.replace('%', '%%')
