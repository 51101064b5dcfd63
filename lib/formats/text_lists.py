"""CSV with a header, as spreadsheets and databases write it: a column of paths and one of labels.

Lines `path label`, as ImageNet-LT and Places-LT have them.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lib.dataset.folder import VALID_NAMES
from lib.errors import UserError
from lib.formats.converted import Converted, SplitBuilder
from lib.formats.sources import Faults, find_split_files, is_utf8, short, text_lines

_PATTERN = r'(?:.*[_-])?{split}\.(?:csv|tsv)'
_SPLIT_NAMES = {'train': 'train', 'test': 'test', **dict.fromkeys(VALID_NAMES, 'val')}
_LONGEST_FIELD = 1 << 20


def convert_csv(
    source: Path,
    *,
    path_column: str = 'path',
    label_column: str = 'label',
    split_column: str = 'split',
    name_column: str = 'name',
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    image_root: str | None = None,
) -> Converted:
    """Convert CSV files in UTF-8, separated by commas, semicolons or tabs (the header tells).

    Labels are any text and stay what they are, leading zeros of a GTIN too; category ids follow their
    natural order. One file with a column of splits (train, val or valid, test), or one file a split. A
    column of names gives classes a readable name (the first one that is not empty); where two classes share
    it, the label is added.

    Args:
        source: a CSV file, or a folder with train.csv, val.csv, test.csv.
        path_column, label_column: columns that must be there (in a test file the label may be missing or
            empty).
        split_column, name_column: columns that may be there.
        train, val, test: the files, where names do not tell.
        image_root: folder that the paths start from; `source` (or the folder it lies in) by default.
    """
    files = find_split_files(source, _PATTERN, {'train': train, 'val': val, 'test': test})
    builder, faults, named = SplitBuilder(), Faults(), {}
    columns = {'path': path_column, 'label': label_column, 'split': split_column, 'name': name_column}
    for file_split, path in files.items():
        builder.begin(file_split)
        for where, row in _rows(path, columns, faults, label_needed=file_split != 'test'):
            split = _SPLIT_NAMES.get(row['split'].lower()) if row.get('split') else file_split
            if split is None:
                faults.add(where, f'{split_column} is {short(row["split"])}; train, val or test is needed')
            elif not row['path']:
                faults.add(where, f'no {path_column}')
            elif not row.get('label') and split != 'test':
                faults.add(where, f'no {label_column}')
            else:
                label = row.get('label') or None
                builder.add(split, row['path'], label)
                if label and row.get('name'):
                    named.setdefault(label, row['name'])
    faults.check()
    splits, labels = builder.finish()
    base = source if source.is_dir() else source.parent
    return Converted(splits, _readable(labels, named), None, Path(image_root) if image_root else base)


def _rows(path: Path, columns: dict[str, str], faults: Faults, *, label_needed: bool) -> Iterator[tuple[str, dict]]:
    """Yield (position, {role: text}) of the rows that have all their fields."""
    csv.field_size_limit(_LONGEST_FIELD)
    with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
        header_line = file.readline()
        delimiter = max(',;\t', key=header_line.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = [title.strip() for title in next(reader, [])]
            places = _places(path, header, columns, label_needed)
            for fields in reader:
                where = f'{path}:{reader.line_num}'
                if not any(fields):
                    continue
                if len(fields) != len(header):
                    faults.add(where, f'{len(fields)} fields, but the header has {len(header)}')
                elif not all(field.isascii() or is_utf8(field) for field in fields):
                    faults.add(where, 'not UTF-8 text (save the sheet as "CSV UTF-8")')
                else:
                    yield where, {role: fields[place].strip() for role, place in places.items()}
        except csv.Error as error:
            raise UserError(f'{path}:{reader.line_num}: not proper CSV ({error})') from None


def _places(path: Path, header: list[str], columns: dict[str, str], label_needed: bool) -> dict[str, int]:
    places = {role: header.index(title) for role, title in columns.items() if title in header}
    for role in ['path', 'label'] if label_needed else ['path']:
        if role not in places:
            raise UserError(
                f'{path}:1: no column {columns[role]!r}; there are: {", ".join(header) or "none"}; '
                f'choose one with --{role}_column'
            )
    return places


def _readable(labels: list[str], named: dict[str, str]) -> list[str]:
    names = [named.get(label, label) for label in labels]
    shared = {name for name, number in Counter(names).items() if number > 1}
    return [f'{name} ({label})' if name in shared else name for name, label in zip(names, labels, strict=True)]


# train.txt, ImageNet_LT_train.txt, Places_LT_val.txt, ...
_LINE = r'(?:.*[_-])?{split}\.(?:txt|lst|list)'
_BETWEEN = ' \t,'


def convert_image_list(
    source: Path,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    image_root: str | None = None,
) -> Converted:
    """Convert text files with an image a line: its path, then blanks, a tab or a comma, then its label.

    Paths may hold blanks: the label is the last field. Category ids are the labels in numeric order, so 0 to
        C - 1 stay what they are. A test file may do without labels.

    Args:
        source: folder with the files, or the training file.
        train, val, test: the files, where names do not tell.
        image_root: folder that the paths start from; `source` (or the folder it lies in) by default.
    """
    files = find_split_files(source, _LINE, {'train': train, 'val': val, 'test': test})
    builder, faults = SplitBuilder(), Faults()
    for split, path in files.items():
        builder.begin(split)
        for where, line in text_lines(path, faults):
            image, label = _fields(line)
            if image and label.isdecimal():
                builder.add(split, image, str(int(label)))
            elif split == 'test':
                builder.add(split, line, None)
            elif not image:
                faults.add(where, f'{short(line)} has no label')
            else:
                faults.add(where, f'label {short(label)} is not a whole number from 0 on')
    faults.check()
    splits, names = builder.finish()
    base = source if source.is_dir() else source.parent
    return Converted(splits, names, None, Path(image_root) if image_root else base)


def _fields(line: str) -> tuple[str, str]:
    """Return path and label: the text before and after the last separator."""
    place = max(line.rfind(char) for char in _BETWEEN)
    return line[: max(place, 0)].rstrip(_BETWEEN), line[place + 1 :]
