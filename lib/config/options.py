"""The command line: every key of the config tree is an option, with underscores for dots."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from lib.config.command_help import COMMANDS, CommandHelp
from lib.config.defaults import KEYS, SECTIONS
from lib.config.key import AUTO, Key, did_you_mean
from lib.config.storage import mirrored
from lib.errors import UserError, one_line, shortened, shown, text_fault, unquoted, url_fault
from lib.runtime.mirror import is_url

_WIDTH = 80
_LONGEST_MESSAGE = 400  # of argparse, which may name all choices


def option_of(name: str) -> str:
    """Return the option that sets a key: DATASET.TRAIN_JSON -> --DATASET_TRAIN_JSON."""
    return '--' + name.replace('.', '_')


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{shortened(one_line(message), _LONGEST_MESSAGE)}; {self.prog} --help lists the options')


def local_path(text: str) -> Path:
    """Return the path that an argument of argparse names, of a URL that in the mirror, where its file is downloaded.

    Raises:
        argparse.ArgumentTypeError: a URL with another scheme, or no Unicode.
        UserError: a request is refused or fails.
    """
    if fault := url_fault(text) or text_fault(text):
        raise argparse.ArgumentTypeError(fault)
    return Path(mirrored(text) if is_url(text) else text)


class Formatter(argparse.HelpFormatter):
    """Formats help in at most 80 columns on any terminal and keeps line breaks."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8, width=_WIDTH)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in text.splitlines() for line in textwrap.wrap(part, width, break_on_hyphens=False)]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width) or ['']]
        return '\n'.join(indent + line for line in lines)


@dataclass(frozen=True)
class Recipe:
    """Values that a command uses for the options that are not on its command line.

    Attributes:
        source: the files or the checkpoint that they come from.
        values: key -> value, and the file that sets it.
    """

    source: str
    values: dict[str, tuple[Any, str]] = field(default_factory=dict)


FindRecipe = Callable[[list[str], dict[str, Any]], Recipe]  # from the files after --config, and the options


def parse_options(
    argv: Sequence[str], *, program: str, description: str, find_recipe: FindRecipe = lambda *_: Recipe('none')
) -> tuple[list[str], dict[str, Any]]:
    """Read the command line; if it contains --help, print the help with the defaults of its recipe, and exit.

    Returns:
        The files after --config (empty if not given), and the keys set by options, converted to their types.

    Raises:
        UserError: unknown option, missing value, value of the wrong type, or unknown section after --help.
    """
    topic = _help_topic(argv)
    parser = _build_parser(list(KEYS), program, description, Recipe(''))
    if topic is not None:
        parser = _build_parser(_keys_of(topic, program), program, description, find_recipe(*_readable(parser, argv)))
        parser.epilog = _more_help(program)
        parser.print_help()
        sys.exit(0)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown(unknown[0]))
    given = {name: text for name, text in vars(known).items() if name in KEYS and text is not None}
    return known.config, {name: KEYS[name].accept(option_of(name), text) for name, text in given.items()}


def _readable(parser: Parser, argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return files and options beside --help, without those that are mistaken: a request for help never fails."""
    try:
        known, _ = parser.parse_known_args(argv)
    except UserError:
        return [], {}
    options = {}
    for name in KEYS:
        with suppress(UserError):
            if (text := getattr(known, name)) is not None:
                options[name] = KEYS[name].accept(option_of(name), text)
    return known.config, options


def _build_parser(shown: Sequence[str], program: str, description: str, recipe: Recipe) -> Parser:
    parser = Parser(
        prog=program,
        usage='%(prog)s [--config FILE ...] [--SECTION_KEY VALUE ...]',
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
        help=f'YAML files, merged from left to right.\nDefault: {recipe.source}'.replace('%', '%%'),
    )
    for section, keys in SECTIONS.items():
        names = [f'{section}.{leaf}' if section else leaf for leaf in keys.keys_by_name]
        group = parser.add_argument_group(f'{section} ({keys.title})' if section else keys.title)
        for name in names:
            if name in shown:
                text = _help(KEYS[name], *recipe.values.get(name, (KEYS[name].default, '')))
                group.add_argument(option_of(name), dest=name, metavar=type_name(KEYS[name]), help=text)
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
        raise UserError(f'--help {unquoted(topic)}: no such section{hint}; allowed: all, {", ".join(sections)}')
    return [name for name in KEYS if name.partition('.')[0] in command.own or name in command.most_used]


def _more_help(program: str) -> str:
    command = COMMANDS.get(program, CommandHelp((), (), tuple(name for name in SECTIONS if name)))
    return (
        f'--help SECTION shows the options of one section; {program} uses {", ".join(command.sections)}.\n'
        '--help all shows all options.'
    )


def _unknown(word: str) -> str:
    if not word.startswith('-'):
        return (
            f'{shown(word)} is not an option: values follow an option, as in --NAME my_run; --help all lists all '
            'options'
        )
    options = [option_of(name) for name in KEYS]
    spelled = word.split('=')[0]
    underscored = '--' + spelled.lstrip('-').upper().replace('.', '_').replace('-', '_')
    hint = f' (did you mean {underscored}?)' if underscored in options else did_you_mean(spelled, options)
    return f'{unquoted(spelled)} is not an option{hint}; --help all lists all options'


def type_name(key: Key[Any]) -> str:
    """Return the type of a key's values, for help: BOOL, INT, FLOAT, TEXT, PATH, X,Y,... for a tuple, or 'auto|INT'."""
    if isinstance(key.default, tuple):
        name = 'X,Y,...'
    else:
        name = {bool: 'BOOL', int: 'INT', float: 'FLOAT', str: 'PATH' if key.is_path else 'TEXT'}[type(key.default)]
    return name if key.auto is None else f'{AUTO}|{name}'


def default_text(key: Key[Any]) -> str:
    """Return a key's default as it is typed, with its unit; 'none' for an empty tuple."""
    if key.plain(key.default) == AUTO:
        return AUTO
    if isinstance(key.default, tuple):
        return ','.join(entry if isinstance(entry, str) else f'{entry:g}' for entry in key.default) or 'none'
    text = repr(key.default) if key.default == '' else str(key.default)
    return f'{text} {key.unit}'.strip()


def used_by_text(key: Key[Any]) -> str:
    """Return 'LOSS.TYPE focal, sigmoid_focal', the choices that use a key; '' if it is always used."""
    if key.used_by is None:
        return ''
    selector, values = key.used_by
    return f'{" or ".join((selector, *key.or_by))} {", ".join(values)}'


def _help(key: Key[Any], value: Any, source: str) -> str:
    text = key.meaning
    if key.choices:
        text += '\nChoices: ' + ', '.join(str(choice) for choice in key.choices if choice != '') + '.'
    if key.used_by:
        text += f'\nUsed by {used_by_text(key)}.'
    default = default_text(replace(key, default=value))
    if value != key.default:
        default += f' ({source}; else {default_text(key)})'
    return f'{text}\nDefault: {default}'.replace('%', '%%')
