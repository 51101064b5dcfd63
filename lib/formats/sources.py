"""Files of a source: the file of each split, CSV and text with line numbers, and errors with their positions."""

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path

from lib.errors import UserError, is_unicode, shown
from lib.runtime.read_file import MAX_TEXT_BYTES, open_regular, reason_of
from lib.runtime.text import nfc, text_encoding

SPLITS = ('train', 'val', 'test')
_MAX_SHOWN = 10
_LONGEST_FIELD, _LONGEST_LINE = 1 << 20, 1 << 24  # characters
_SEPARATORS = ',;\t'
_NUM_COMPARED = 50  # rows of a CSV file that are compared with its header


class SourceErrors:
    """Collects the errors in a source: the first ten as text, the number of all."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.total = 0

    def add(self, where: str, message: str) -> None:
        """Add an error at a position such as 'train.txt:12'."""
        self.total += 1
        if len(self.shown) < _MAX_SHOWN:
            self.shown.append(f'{where}: {message}')

    def raise_if_any(self) -> None:
        """Raise UserError if there was any error."""
        if self.total:
            more = f'; and {self.total - _MAX_SHOWN} more' if self.total > _MAX_SHOWN else ''
            raise UserError(f'{"; ".join(self.shown)}{more} ({self.total} faulty in all)')


def check_entries(where: str, entries: list, kinds: dict[str, tuple[str, Callable]], errors: SourceErrors) -> None:
    """Add an error for each invalid field of the entries of a JSON list.

    Args:
        where: position of the list.
        entries: the list.
        kinds: field -> (its form in words, predicate of its value, which is None if the field is missing).
        errors: collects the faults.
    """
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            errors.add(f'{where}[{position}]', f'{shown(entry)} is not an object')
            continue
        for name, (form, is_valid) in kinds.items():
            if not is_valid(entry.get(name)):
                value = shown(entry[name]) if name in entry else 'missing'
                errors.add(f'{where}[{position}]', f'{name} is {value}, not {form}')


def find_split_files(source: Path, pattern: str, given: dict[str, str | None]) -> dict[str, Path]:
    """Return the file of each split: the given ones, else those in `source` whose names match.

    Args:
        source: a folder, or the file of the training split.
        pattern: regular expression of a file name, which contains `{split}`.
        given: split -> path, absolute or relative to the working folder; None or '' if not given.

    Raises:
        UserError: no such source, no matching file, or several for one split.
    """
    chosen = {split: Path(path) for split, path in given.items() if path}
    if source.is_file():
        chosen.setdefault('train', source)
    elif source.is_dir():
        names = {'train': 'train', 'val': '(?:val|valid|validation)', 'test': 'test'}
        files = sorted(entry.name for entry in source.iterdir() if entry.is_file())
        for split in [split for split in SPLITS if split not in chosen]:
            matching = [name for name in files if re.fullmatch(pattern.format(split=names[split]), name, re.IGNORECASE)]
            if len(matching) > 1:
                raise UserError(
                    f'{source}: {" and ".join(matching)} could be the {split} split; select one with --{split}'
                )
            if matching:
                chosen[split] = source / matching[0]
    else:
        raise UserError(f'{source}: no such file or folder')
    for split, path in chosen.items():
        if not path.exists():
            raise UserError(f'{path}: no such file (the {split} split)')
    if not chosen:
        raise UserError(f'{source}: contains no file of a split; name them with --train FILE, --val FILE, --test FILE')
    return {split: chosen[split] for split in SPLITS if split in chosen}


def image_folder(source: Path, image_root: str | None) -> Path:
    """Return the folder that image paths are relative to: `image_root` if given, else `source` or its parent folder."""
    if image_root:
        return Path(image_root)
    return source if source.is_dir() else source.parent


def read_csv(path: Path, titles: Collection[str], errors: SourceErrors) -> Iterator[tuple[str, list[str]]]:
    """Yield (position, fields) of the header and of each row, without blanks around the fields; titles are in NFC.

    The encoding is UTF-8, or UTF-16 as Excel writes it. The separator is that of a first line `sep=;`, or the one of
    comma, semicolon and tab with which the header has the most of `titles`, then, with which the rows fit the header
    best. Rows without text are skipped, and so are empty fields beyond the header. Rows of another length, or that are
    not UTF-8, are added to `errors`.

    Raises:
        UserError: the file cannot be read or is not proper CSV.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        with contextlib.closing(_lines(path)) as lines:
            num_skipped, separator = _csv_form(path, titles)
            reader = csv.reader(itertools.islice(lines, num_skipped, None), delimiter=separator, strict=True)
            header: list[str] = []
            try:
                for record in reader:
                    fields, where = [field.strip() for field in record], f'{path}:{reader.line_num + num_skipped}'
                    if not any(fields):
                        continue
                    if not header:
                        header = [nfc(title) for title in fields]
                        yield where, header
                    elif not _fit(fields, header):
                        hint = f' (a field that contains {shown(separator)} needs quotes)' * (len(fields) > len(header))
                        errors.add(where, f'{len(fields)} fields, but the header has {len(header)}{hint}')
                    elif not all(map(is_unicode, fields)):
                        errors.add(where, 'not UTF-8 text (save the sheet as "CSV UTF-8")')
                    else:
                        yield where, fields
            except csv.Error as error:
                raise UserError(f'{path}:{reader.line_num + num_skipped}: not proper CSV ({shown(error)})') from None
    except UnicodeError as error:
        raise UserError(f'{path}: not text ({shown(error)})') from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not header:
        yield f'{path}:1', header


def _csv_form(path: Path, titles: Collection[str]) -> tuple[int, str]:
    """Return the number of lines before the header, and the separator of the fields."""
    with contextlib.closing(_lines(path)) as lines:
        given = re.fullmatch(r'"?sep=([^\s"]|\t)"?\s*', next(lines, ''), re.IGNORECASE)
    if given:
        return 1, given[1]

    def score(separator: str) -> tuple[int, int, int]:
        with contextlib.closing(_lines(path)) as lines, contextlib.suppress(csv.Error):
            records = itertools.islice(filter(any, csv.reader(lines, delimiter=separator)), _NUM_COMPARED)
            header, *rows = [[field.strip() for field in record] for record in records] or [[]]
            num_fitting = sum(_fit(row, header) for row in rows) if len(header) > 1 else 0
            return len(set(map(nfc, header)) & set(titles)), num_fitting, len(header)
        return 0, 0, 0

    return 0, max(_SEPARATORS, key=score)


def _fit(fields: list[str], header: list[str]) -> bool:
    """Give a row the length of the header, and return True, if only empty fields are added or removed."""
    if not any(fields[len(header) :]):
        del fields[len(header) :]
    if not any(header[len(fields) :]):
        fields += [''] * (len(header) - len(fields))
    return len(fields) == len(header)


def _lines(path: Path, newline: str | None = '') -> Generator[str]:
    with open_regular(path, max_bytes=MAX_TEXT_BYTES) as file:
        encoding = text_encoding(file.read(4))
        file.seek(0)
        text = io.TextIOWrapper(file, encoding=encoding, errors='surrogateescape', newline=newline)
        while line := text.readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE:
                raise UserError(f'{path}: has a line of more than {_LONGEST_LINE:,} characters')
            yield line


def text_lines(path: Path, errors: SourceErrors) -> Iterator[tuple[str, str]]:
    """Yield (position, line) for the non-blank lines of a text file in UTF-8 or UTF-16, stripped.

    A line that is not UTF-8 is added to `errors`.
    """
    try:
        with contextlib.closing(_lines(path, newline=None)) as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip()
                if not text:
                    continue
                if is_unicode(text):
                    yield f'{path}:{number}', text
                else:
                    errors.add(f'{path}:{number}', 'not UTF-8 text')
    except UnicodeError as error:
        raise UserError(f'{path}: not text ({shown(error)})') from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f'{path}: {reason_of(error)}')
