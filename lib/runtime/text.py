"""Text that people and other programs write: names under Unicode NFC, whole numbers, encodings, JSON."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lib.errors import UserError, shown, unquoted

Form = TypeVar('Form')

# Default_Ignorable_Code_Point of Unicode 16 (zero-width spaces and joiners, soft hyphen, marks of direction, byte order
# mark, variation selectors, fillers, tags), control characters, and the blank pattern of Braille.
_IGNORABLE = re.compile(
    '[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f'
    '\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3'
    '\U0001d173-\U0001d17a\U000e0000-\U000e0fff]'
)
_MAX_SHOWN = 3
BYTE_ORDER_MARK = b'\xef\xbb\xbf'  # of UTF-8
_MAX_INT_DIGITS = 20  # of an integer in JSON: more than 64 bits have


def nfc(text: str) -> str:
    """Return a name in Unicode's composed form (NFC): names that are equal in it are the same name."""
    return text if text.isascii() else unicodedata.normalize('NFC', text)


def nfc_list(texts: Sequence[str]) -> list[str]:
    """Return names in NFC."""
    return [nfc(text) for text in texts]


def names_digest(names: Sequence[str]) -> str:
    """Return the SHA-256 of class names in their order, in NFC: `classes_digest` of annotation files."""
    return hashlib.sha256(msgspec.json.encode(nfc_list(names))).hexdigest()


def digest_of_names(value: Any) -> str:
    """Return the value of `classes_digest` in a file if it may be a `names_digest`, else ''."""
    return value if isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value) else ''


def visible(name: str) -> str:
    r"""Return a name as `shown`, with escapes for invisible characters and separate accents, too: \uXXXX."""
    return shown(name, escape=''.join(char for char in name if _IGNORABLE.match(char) or _is_accent(char)))


def _is_accent(char: str) -> bool:
    return unicodedata.combining(char) >= 200  # of Latin and Greek; Indic vowels and Hebrew points have lower classes


def _appearance(name: str) -> str:
    """Return the same text for names that look alike: without invisible characters, spaces and case unified."""
    return ' '.join(_IGNORABLE.sub('', name).split()).casefold()


def name_warnings(names: Sequence[str], known: Iterable[str] = ()) -> list[str]:
    """Return warnings about classes that may be one: equal names, or names that differ in invisible characters.

    Args:
        names: in NFC. Each is compared with the ones before it and with `known`.
        known: names of other classes, which may be among `names`, too.
    """
    first_of: dict[str, str] = {}
    known_names = set()
    for name in known:
        known_names.add(name)
        first_of.setdefault(_appearance(name), name)
    repeated: list[str] = []
    alike: list[str] = []
    seen: set[str] = set()
    for name in names:
        first = first_of.setdefault(_appearance(name), name)
        if name in seen:
            repeated.append(visible(name))
        elif first != name and name not in known_names:
            alike.append(f'{visible(first)} and {visible(name)} (differ in {_difference(first, name)})')
        seen.add(name)
    warnings = []
    if repeated:
        warnings.append(f'classes with the same name: {first_few(repeated)}')
    if alike:
        warnings.append(f'classes that look like one: {first_few(alike)}')
    return warnings


def _difference(first: str, second: str) -> str:
    if first.casefold() == second.casefold():
        return 'upper and lower case'
    return 'invisible characters' if _IGNORABLE.search(first + second) else 'spaces'


def count_of(number: int, singular: str, plural: str = '') -> str:
    """Return a number with its noun, such as '1 image' or '2 images'."""
    return f'{number:,} {singular if number == 1 else plural or singular + "s"}'


def size_text(num_bytes: float) -> str:
    """Return a size with three digits, such as '512 bytes', '6.76 MB' or '240 GB'."""
    value, units = float(num_bytes), ['bytes', 'kB', 'MB', 'GB', 'TB']
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f'{value:.3g} {units[0]}' if value < 100 else f'{value:.0f} {units[0]}'


def first_few(phrases: Sequence[str]) -> str:
    """Return the first texts of a list and the number of the others."""
    more = f', and {len(phrases) - _MAX_SHOWN} more' if len(phrases) > _MAX_SHOWN else ''
    return ', '.join(phrases[:_MAX_SHOWN]) + more


def few_names(names: Sequence[str]) -> str:
    """Return the first names of a list, each `unquoted`, and the number of the others."""
    return first_few([*map(unquoted, names[:_MAX_SHOWN]), *names[_MAX_SHOWN:]])


_DIGITS = re.compile(r'([0-9]+)')


def natural_key(text: str) -> tuple:
    """Return a sort key that sorts `a2` before `a10` and differs for different texts (`7` and `007`).

    The order does not depend on the Unicode form in which a system spells names.
    """
    parts = _DIGITS.split(nfc(text))
    # Numbers are compared by length, then by digits: int() rejects very long ones.
    numbers = [(len(part.lstrip('0')), part.lstrip('0')) for part in parts[1::2]]
    return [*zip(parts[::2], [*numbers, (-1, '')], strict=True)], text


def sorted_naturally(texts: Iterable[str]) -> list[str]:
    """Return the texts in natural order: numbers in them are sorted as numbers."""
    return sorted(texts, key=natural_key)


# Numbers as spreadsheets write them, 4.00638E+12 or 4,00638E+12, and of which they store only 15 digits.
_SCIENTIFIC = re.compile(r'\s*[+-]?\d([.,]\d+)?E\+\d+\s*', re.IGNORECASE)
_LONG_NUMBER = re.compile(r'0*[1-9]\d{14}(\d+)')


def rounded_code_warnings(names: Sequence[str], what: str = 'class') -> list[str]:
    """Return a warning if names are product codes that a spreadsheet has rounded; `what` they name."""
    rounded = [name for name in names if _SCIENTIFIC.fullmatch(name)]
    ends = {name: match[1] for name in names if (match := _LONG_NUMBER.fullmatch(name))}
    if len(ends) > 1 and not any(end.strip('0') for end in ends.values()):
        rounded += ends  # all of them end with zeros, which is no chance
    if not rounded:
        return []
    are = f'{what} name is a number' if len(rounded) == 1 else f'{what} names are numbers'
    return [
        f'{len(rounded):,} {are} that a spreadsheet has rounded ({few_names(rounded)}): different products may share '
        'one; format the column as text and export it again'
    ]


def decimal_text(text: str) -> str | None:
    """Return a whole number of any length in its usual form (`007` and `٧` are `7`); None if it is none."""
    if not text.isdecimal():
        return None
    digits = text if text.isascii() else ''.join(str(unicodedata.decimal(char)) for char in text)
    return digits.lstrip('0') or '0'


def small_number(text: str) -> int | None:
    """Return a whole number of at most 18 digits; None for any other text."""
    digits = decimal_text(text)
    return int(digits) if digits is not None and len(digits) <= 18 else None


def whole(value: Any) -> int | None:
    """Return a number of JSON as an integer if it is one: 3 and 3.0; else None."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text_encoding(head: bytes) -> str:
    """Return the encoding of a text from its first bytes: UTF-8, or UTF-16 or UTF-32, each with or without a mark."""
    encoding = json.detect_encoding(head[:4])
    return 'utf-8-sig' if encoding == 'utf-8' else encoding


class InvalidJson(ValueError):
    """Data that is no JSON: the message states the fault, `line` is its position."""

    def __init__(self, fault: str, line: int) -> None:
        super().__init__(fault)
        self.line = line


def parse_json(data: bytes, form: type[Form] = Any) -> Form:  # type: ignore[assignment]  # Any is no type for mypy
    """Decode JSON as `form`, a msgspec type.

    Beyond the standard, files of common programs are accepted: UTF-16 and UTF-32, a byte order mark, NaN and Infinity.
    3.0 is an integer where one is needed. Numbers of any length may be in fields that `form` does not have.

    Raises:
        InvalidJson: not JSON.
        msgspec.ValidationError: of another form.
    """
    encoding = text_encoding(data)
    try:
        text = data if encoding == 'utf-8-sig' else data.decode(encoding).encode()
        text = text.removeprefix(BYTE_ORDER_MARK)
    except UnicodeError as error:
        raise InvalidJson(f'not {encoding} text: {shown(error)}', 1) from None
    try:
        return msgspec.json.decode(text, type=form)
    except RecursionError:
        raise InvalidJson('nested too deep', 1) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        fault = error
    # Slower, and several times as much memory: only for what msgspec does not decode.
    try:
        tree = json.loads(text, parse_int=_parse_int, parse_float=_parse_float, strict=False)
    except UnicodeDecodeError as error:
        line = text.count(b'\n', 0, error.start) + 1
        raise InvalidJson(f'byte {error.start} is not UTF-8 text; save it as UTF-8', line) from None
    except (ValueError, RecursionError):
        if isinstance(fault, msgspec.ValidationError) and form is not Any:
            raise fault from None
        position = re.search(r'\(byte (\d+)\)', str(fault))
        line = text.count(b'\n', 0, int(position[1]) if position else len(text)) + 1
        raise InvalidJson(str(fault), line) from None
    try:
        return msgspec.convert(tree, form)
    except UnicodeEncodeError:  # a lone surrogate as a name
        raise msgspec.ValidationError('a name in it is not Unicode') from None


class _LongNumber(float):
    """A number that is too long for an integer; it is shown as it was written."""

    digits: str

    def __repr__(self) -> str:
        return self.digits


def _parse_int(digits: str) -> int | float:
    if len(digits) <= _MAX_INT_DIGITS:
        return int(digits)
    number = _LongNumber('-inf' if digits.startswith('-') else 'inf')
    number.digits = digits
    return number


def _parse_float(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def decode_json(path: str | Path, data: bytes, form: type[Form] = Any) -> Form:  # type: ignore[assignment]  # as above
    """Decode a JSON file as `parse_json` does.

    Raises:
        UserError: not JSON, with the line of the fault.
        msgspec.ValidationError: of another form.
    """
    try:
        return parse_json(data, form)
    except InvalidJson as error:
        raise UserError(f'{path}:{error.line}: not valid JSON ({shown(error)})') from None
