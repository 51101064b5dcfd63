"""JSON files of this and other programs: read from regular files up to a size, checked for their form."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from lib.errors import UserError, shown
from lib.runtime.read_file import MAX_RECORD_BYTES, read_bytes, reason_of
from lib.runtime.text import InvalidJson, decode_json, parse_json

Form = TypeVar('Form')
Record = dict[str, Any]  # the form of an object with entries that are checked where they are used
Count = Annotated[int, Meta(ge=0, le=2**53)]


def read_json(
    path: str | Path,
    form: type[Form] = Any,  # type: ignore[assignment]  # Any is no type for mypy
    *,
    max_bytes: int = MAX_RECORD_BYTES,
    example: str = '',
    hint: str = '',
) -> Form:
    """Decode a JSON file as `form`, a msgspec type; `Any` accepts everything.

    Args:
        max_bytes: largest size of such a file.
        example: the form in JSON, for the error about another form.
        hint: added to each error, such as '; remove it, and run the command again'.

    Raises:
        UserError: no such file, not a regular one, too large, not JSON (with the line), or of another form.
    """
    try:
        return decode_json(path, read_bytes(path, max_bytes=max_bytes), form)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file{hint}') from None
    except OSError as error:
        raise UserError(f'{path}: {reason_of(error)}{hint}') from None
    except msgspec.ValidationError as error:
        fault = f'must be {example} ({shown(error)})' if example else shown(error)
        raise UserError(f'{path}: {fault}{hint}') from None


def numbers_in(record: object) -> dict[str, float]:
    """Return the entries of a JSON object that are numbers, such as its metrics; {} if it is no object."""
    if not isinstance(record, dict):
        return {}
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    }


def read_json_lines(path: Path, form: type[Form]) -> list[Form]:
    """Decode a file with a JSON value per line, without a last line that a killed process left without its end.

    Raises:
        UserError: a line has another form, or the file cannot be read; if there is none, the list is empty.
    """
    try:
        lines = read_bytes(path, max_bytes=MAX_RECORD_BYTES).split(b'\n')
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f'{path}: {reason_of(error)}') from None
    values = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                values.append(parse_json(line, form))
            except InvalidJson as error:
                if number < len(lines) or not _is_cut(line):
                    raise UserError(f'{path}:{number}: is not JSON ({shown(error)}); remove this line') from None
            except msgspec.ValidationError as error:
                raise UserError(f'{path}:{number}: {shown(error)}') from None
    return values


def _is_cut(line: bytes) -> bool:
    """Return whether a last line without its end may be the beginning of one: not zeros, nor with another end."""
    try:
        parse_json(line[:-1], Any)
    except InvalidJson:
        return b'\0' not in line
    return False
