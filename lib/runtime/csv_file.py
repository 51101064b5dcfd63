"""CSV files of the project: names of any characters read back, and a spreadsheet need not compute them."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from lib.runtime.files import replace_atomically

# At the start of a cell, these are a formula for spreadsheets. An apostrophe makes it text; it is doubled where a name
# starts with one before them, so that names stay different.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_NUMBER = re.compile(r'-\d+(\.\d+)?')
_STYLE = {'quote_formulas': False}


def quote_formulas(enabled: bool) -> None:
    """Set for this process whether write_rows puts ' before texts that a spreadsheet would compute."""
    _STYLE['quote_formulas'] = enabled


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Replace the CSV file at `path`, atomically; see `write_rows`."""
    with replace_atomically(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='') as file:
        write_rows(file, header, rows)


def write_rows(file: TextIO, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file; its lines end with a line feed.

    Texts may contain any characters. The file must be opened with newline=''.
    """
    writer = csv.writer(_LineFeeds(file), lineterminator='\r\n')
    writer.writerow(header)
    writer.writerows(map(_quoted, rows) if _STYLE['quote_formulas'] else rows)


class _LineFeeds:
    """A file of which the csv module thinks that its lines end with \\r\\n: otherwise it leaves \\r without quotes."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> int:
        """Write a line."""
        return self._file.write(f'{line[:-2]}\n')


def _quoted(row: Iterable[Any]) -> list[Any]:
    return [f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell for cell in row]


def _is_formula(text: str) -> bool:
    return _FORMULA.match(text) is not None and not _NUMBER.fullmatch(text)


def without_quote(text: str) -> str:
    """Return a cell of write_rows as it was before an apostrophe was put before it."""
    return text[1:] if _STYLE['quote_formulas'] and text.startswith("'") and _is_formula(text) else text
