"""The command line: every key of the config tree is an option, with underscores for dots."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

from lib.config.command_help import COMMANDS, CommandHelp
from lib.config.defaults import KEYS, SECTIONS
from lib.config.key import Key, did_you_mean
from lib.errors import UserError

_WIDTH = 80


def option_of(name: str) -> str:
    """Return the option that sets a key: DATASET.TRAIN_JSON -> --DATASET_TRAIN_JSON."""
    return '--' + name.replace('.', '_')


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; --help lists the options')


class Formatter(argparse.HelpFormatter):
    """Formats help in at most 80 columns on any terminal and keeps line breaks."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8, width=_WIDTH)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in text.splitlines() for line in textwrap.wrap(part, width)]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width) or ['']]
        return '\n'.join(indent + line for line in lines)


def parse_options(
    argv: Sequence[str], *, program: str, description: str, default_config: str
) -> tuple[list[str], dict[str, Any]]:
    """Read the command line; print the help and exit if it contains --help.

    Returns:
        The files after --config (empty if not given), and the keys set by options, converted to their types.

    Raises:
        UserError: unknown option, missing value, value of the wrong type, or unknown section after --help.
    """
    topic = _help_topic(argv)
    shown = list(KEYS) if topic is None else _keys_of(topic, program)
    parser = _build_parser(shown, program, description, default_config)
    if topic is not None:
        parser.epilog = _more_help(program)
        parser.print_help()
        sys.exit(0)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown(unknown[0]))
    given = {name: text for name, text in vars(known).items() if name in KEYS and text is not None}
    return known.config, {name: KEYS[name].accept(option_of(name), text) for name, text in given.items()}


def _build_parser(shown: Sequence[str], program: str, description: str, default_config: str) -> Parser:
    parser = Parser(
        prog=program,
        usage='%(prog)s [--config FILE [FILE ...]] [--SECTION_KEY VALUE ...]',
        description=description,
        formatter_class=Formatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        '-h',
        '--help',
        nargs='?',
        metavar='SECTION',
        help="show the most used options of this command, those of a section, or with 'all' all options",
    )
    parser.add_argument(
        '--config',
        nargs='+',
        action='extend',
        default=[],
        metavar='FILE',
        help=f'YAML files, merged from left to right (default: {default_config})',
    )
    for section, keys in SECTIONS.items():
        names = [f'{section}.{leaf}' if section else leaf for leaf in keys.keys_by_name]
        group = parser.add_argument_group(f'{section} ({keys.title})' if section else keys.title)
        for name in names:
            if name in shown:
                group.add_argument(option_of(name), dest=name, metavar=type_name(KEYS[name]), help=_help(KEYS[name]))
    return parser


def _help_topic(argv: Sequence[str]) -> str | None:
    """Return the word after --help, '' if there is none; None without --help."""
    for word, following in pairwise([*argv, '-']):
        option, _, topic = word.partition('=')
        if option in ('-h', '--help'):
            return topic or ('' if following.startswith('-') else following)
    return None


def _keys_of(topic: str, program: str) -> list[str]:
    """Return the keys that --help shows, in the order of the tree."""
    if topic.upper() in SECTIONS and topic:
        return [name for name in KEYS if name.startswith(f'{topic.upper()}.')]
    command = COMMANDS.get(program)
    if topic.lower() == 'all' or (command is None and not topic):
        return list(KEYS)
    if topic or command is None:
        sections = [name for name in SECTIONS if name]
        hint = did_you_mean(topic, [*sections, 'all'])
        raise UserError(f'--help {topic}: no such section{hint}; allowed: all, {", ".join(sections)}')
    return [name for name in KEYS if name.partition('.')[0] in command.own or name in command.most_used]


def _more_help(program: str) -> str:
    command = COMMANDS.get(program, CommandHelp((), (), tuple(name for name in SECTIONS if name)))
    return (
        f'--help SECTION shows the options of one section; {program} uses {", ".join(command.sections)}.\n'
        '--help all shows all options.'
    )


def _unknown(word: str) -> str:
    if not word.startswith('-'):
        return f'{word!r} is not an option: values follow an option, as in --NAME my_run; --help all lists all options'
    options = [option_of(name) for name in KEYS]
    spelled = word.split('=')[0]
    underscored = '--' + spelled.lstrip('-').upper().replace('.', '_').replace('-', '_')
    hint = f' (did you mean {underscored}?)' if underscored in options else did_you_mean(spelled, options)
    return f'{spelled} is not an option{hint}; --help all lists all options'


def type_name(key: Key[Any]) -> str:
    """Return the type of a key's values, for help: BOOL, INT, FLOAT, TEXT, or X,Y,... for a tuple."""
    if isinstance(key.default, tuple):
        return 'X,Y,...'
    return {bool: 'BOOL', int: 'INT', float: 'FLOAT', str: 'TEXT'}[type(key.default)]


def default_text(key: Key[Any]) -> str:
    """Return a key's default as it is typed, with its unit; 'none' for an empty tuple."""
    if isinstance(key.default, tuple):
        return ','.join(f'{number:g}' for number in key.default) or 'none'
    text = repr(key.default) if key.default == '' else str(key.default)
    return f'{text} {key.unit}'.strip()


def used_by_text(key: Key[Any]) -> str:
    """Return 'LOSS.TYPE focal, sigmoid_focal', the choices that use a key; '' if it is always used."""
    if key.used_by is None:
        return ''
    selector, values = key.used_by
    return f'{" or ".join((selector, *key.or_by))} {", ".join(values)}'


def _help(key: Key[Any]) -> str:
    text = key.meaning
    if key.choices:
        text += '\nChoices: ' + ', '.join(str(choice) for choice in key.choices if choice != '') + '.'
    if key.used_by:
        text += f'\nUsed by {used_by_text(key)}.'
    return f'{text}\nDefault: {default_text(key)}'.replace('%', '%%')
