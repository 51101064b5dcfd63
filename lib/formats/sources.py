"""Reading the files of a source: which they are, JSON and text with positions, and what is wrong in them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lib.errors import UserError

Form = TypeVar('Form')
SPLITS = ('train', 'val', 'test')
_SHOWN = 10


class Faults:
    """Collects what is wrong with a source: the first ten in words, the others as a number."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.total = 0

    def add(self, where: str, what: str) -> None:
        """Note one fault at a position such as 'train.txt:12'."""
        self.total += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(f'{where}: {what}')

    def check(self) -> None:
        """Raise UserError if there was any fault."""
        if self.total:
            more = f'; and {self.total - _SHOWN} more' if self.total > _SHOWN else ''
            raise UserError(f'{"; ".join(self.shown)}{more} ({self.total} faulty in all)')


def check_entries(where: str, entries: list, kinds: dict[str, tuple[str, Callable]], faults: Faults) -> None:
    """Note the entries of a JSON list whose fields are not as they should be.

    `kinds`: field -> what it should be in words, and a test of its value (None when the field is missing).
    """
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            faults.add(f'{where}[{position}]', f'{short(entry)} is not an object')
            continue
        for name, (meaning, fits) in kinds.items():
            if not fits(entry.get(name)):
                value = short(entry[name]) if name in entry else 'missing'
                faults.add(f'{where}[{position}]', f'{name} is {value}, not {meaning}')


def find_split_files(source: Path, pattern: str, given: dict[str, str | None]) -> dict[str, Path]:
    """Return the file of each split: those given by hand, else those in `source` whose name fits.

    Args:
        source: a folder, or one file, which is then the training split.
        pattern: regular expression of a file name, with `{split}` in it.
        given: split -> path, absolute or relative to the working folder; None or '' when not given.

    Raises:
        UserError: no such source, no file that fits, or several for one split.
    """
    chosen = {split: Path(path) for split, path in given.items() if path}
    if source.is_file():
        chosen.setdefault('train', source)
    elif source.is_dir():
        names = {'train': 'train', 'val': '(?:val|valid|validation)', 'test': 'test'}
        files = sorted(entry.name for entry in source.iterdir() if entry.is_file())
        for split in [split for split in SPLITS if split not in chosen]:
            fitting = [name for name in files if re.fullmatch(pattern.format(split=names[split]), name, re.IGNORECASE)]
            if len(fitting) > 1:
                raise UserError(f'{source}: {" and ".join(fitting)} could be the {split} split; choose with --{split}')
            if fitting:
                chosen[split] = source / fitting[0]
    else:
        raise UserError(f'{source}: no such file or folder')
    for split, path in chosen.items():
        if not path.is_file():
            raise UserError(f'{path}: no such file (the {split} split)')
    if not chosen:
        raise UserError(f'{source}: holds no file of a split; name them with --train FILE, --val FILE, --test FILE')
    return {split: chosen[split] for split in SPLITS if split in chosen}


def read_json(path: Path, form: type[Form]) -> Form:
    """Decode a JSON file as `form`, a msgspec type; `Any` takes everything.

    Raises:
        UserError: no such file, broken JSON (with the line), or msgspec.ValidationError's own words.
    """
    data = read_file(path)
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        raise UserError(f'{path}: {error}') from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        place = re.search(r'\(byte (\d+)\)', str(error))
        line = data.count(b'\n', 0, int(place[1]) if place else len(data)) + 1
        raise UserError(f'{path}:{line}: not valid JSON ({error})') from None


def read_file(path: Path) -> bytes:
    """Return a file's bytes without a byte order mark. Raises UserError when it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f'{path}: {(error.strerror or "cannot be read").lower()}') from None
    return data.removeprefix(b'\xef\xbb\xbf')


def text_lines(path: Path, faults: Faults) -> Iterator[tuple[str, str]]:
    """Yield (position, line) of a UTF-8 text file for its lines that are not blank, stripped.

    A line that is not UTF-8 is a fault.
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
                    faults.add(f'{path}:{number}', 'not UTF-8 text')
    except OSError as error:
        raise UserError(f'{path}: {(error.strerror or "cannot be read").lower()}') from None


def is_utf8(text: str) -> bool:
    """Whether a text read with `surrogateescape`, or a file name, has no undecodable bytes in it."""
    return not any('\ud800' <= char <= '\udfff' for char in text)


def short(value: Any) -> str:
    """Return `value` as it would be typed, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'
