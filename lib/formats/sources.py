"""Files of a source: the file of each split, JSON and text with line numbers, and errors with their positions."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lib.errors import UserError

Form = TypeVar('Form')
SPLITS = ('train', 'val', 'test')
_MAX_SHOWN = 10


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
        errors: to add to.
    """
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            errors.add(f'{where}[{position}]', f'{short(entry)} is not an object')
            continue
        for name, (form, is_valid) in kinds.items():
            if not is_valid(entry.get(name)):
                value = short(entry[name]) if name in entry else 'missing'
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
        if not path.is_file():
            raise UserError(f'{path}: no such file (the {split} split)')
    if not chosen:
        raise UserError(f'{source}: contains no file of a split; name them with --train FILE, --val FILE, --test FILE')
    return {split: chosen[split] for split in SPLITS if split in chosen}


def image_folder(source: Path, image_root: str | None) -> Path:
    """Return the folder that image paths are relative to: `image_root` if given, else `source` or its parent folder."""
    if image_root:
        return Path(image_root)
    return source if source.is_dir() else source.parent


def read_json(path: Path, form: type[Form]) -> Form:
    """Decode a JSON file as `form`, a msgspec type; `Any` accepts everything.

    Raises:
        UserError: no such file, invalid JSON (with the line), or the message of msgspec.ValidationError.
    """
    data = read_file(path)
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        raise UserError(f'{path}: {error}') from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        offset = re.search(r'\(byte (\d+)\)', str(error))
        line = data.count(b'\n', 0, int(offset[1]) if offset else len(data)) + 1
        raise UserError(f'{path}:{line}: not valid JSON ({error})') from None


def read_file(path: Path) -> bytes:
    """Return a file's bytes without a byte order mark. Raises UserError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f'{path}: {(error.strerror or "cannot be read").lower()}') from None
    return data.removeprefix(b'\xef\xbb\xbf')


def text_lines(path: Path, errors: SourceErrors) -> Iterator[tuple[str, str]]:
    """Yield (position, line) for the non-blank lines of a UTF-8 text file, stripped.

    A line that is not UTF-8 is added to `errors`.
    """
    try:
        with open(path, encoding='utf-8-sig', errors='surrogateescape', newline=None) as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if not text:
                    continue
                if text.isascii() or is_utf8(text):
                    yield f'{path}:{number}', text
                else:
                    errors.add(f'{path}:{number}', 'not UTF-8 text')
    except OSError as error:
        raise UserError(f'{path}: {(error.strerror or "cannot be read").lower()}') from None


def is_utf8(text: str) -> bool:
    """Return whether a text read with `surrogateescape`, or a file name, has no undecodable bytes."""
    return not any('\ud800' <= char <= '\udfff' for char in text)


def short(value: Any) -> str:
    """Return the repr of `value`, truncated to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'
