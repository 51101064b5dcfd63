"""Converters of text files: CSV with a header, lists of `path label` lines, and the Grocery Store Dataset."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lib.dataset.folder import VALID_NAMES
from lib.errors import UserError, shown
from lib.formats.converted import ConvertedDataset, ConvertedSplit, SplitBuilder
from lib.formats.sources import SourceErrors, find_split_files, image_folder, read_csv, text_lines
from lib.formats.unpack import find_folder_with
from lib.runtime.text import decimal_text, nfc, rounded_code_warnings, small_number, visible

_CSV_FILE = r'(?:.*[_-])?{split}\.(?:csv|tsv)'
_SPLIT_NAMES = {'train': 'train', 'test': 'test', **dict.fromkeys(VALID_NAMES, 'val')}


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
) -> ConvertedDataset:
    """Convert CSV files in UTF-8 or UTF-16, separated by commas, semicolons or tabs (detected; see `read_csv`).

    Labels may be any text and are not changed, except to NFC: the leading zeros of a GTIN remain. Category ids follow
    the natural order of the labels. The source is one file with a column of splits (train, val or valid, test), or one
    file per split. A column of names gives classes a readable name (the first one that is not empty); if two classes
    have the same name, the label is appended.

    Args:
        source: a CSV file, or a folder with train.csv, val.csv, test.csv.
        path_column, label_column: required columns (in a test file the label may be missing or empty).
        split_column, name_column: optional columns.
        train, val, test: the files, if their names differ from those above.
        image_root: folder that the paths are relative to; by default `source`, or the folder that contains it.

    Raises:
        UserError: files or columns are missing, or rows are invalid.
    """
    files = find_split_files(source, _CSV_FILE, {'train': train, 'val': val, 'test': test})
    builder, errors = SplitBuilder(), SourceErrors()
    named: dict[str, str] = {}
    columns = {'path': path_column, 'label': label_column, 'split': split_column, 'name': name_column}
    for file_split, path in files.items():
        builder.begin(file_split)
        for where, row in _rows(path, columns, errors, label_needed=file_split != 'test'):
            split = _SPLIT_NAMES.get(row['split'].lower()) if row.get('split') else file_split
            if split is None:
                errors.add(where, f'{split_column} is {shown(row["split"])}; train, val or test is needed')
            elif not row['path']:
                errors.add(where, f'no {path_column}')
            elif not row.get('label') and split != 'test':
                errors.add(where, f'no {label_column}')
            else:
                label = row.get('label') or None
                builder.add(split, row['path'], label)
                if label and row.get('name'):
                    named.setdefault(nfc(label), nfc(row['name']))
    errors.raise_if_any()
    splits, labels = builder.finish()
    names, root = _readable_names(labels, named), image_folder(source, image_root)
    return ConvertedDataset(splits, names, None, root, rounded_code_warnings(labels))


def _rows(
    path: Path, columns: dict[str, str], errors: SourceErrors, *, label_needed: bool
) -> Iterator[tuple[str, dict]]:
    """Yield (position, {role: text}) of the rows with all their fields."""
    titles = {role: nfc(title) for role, title in columns.items()}
    rows = read_csv(path, titles.values(), errors)
    where, header = next(rows)
    columns_of = _column_indices(where, header, titles, label_needed)
    for where, fields in rows:
        yield where, {role: fields[index] for role, index in columns_of.items()}


def _column_indices(where: str, header: list[str], titles: dict[str, str], label_needed: bool) -> dict[str, int]:
    indices = {role: header.index(title) for role, title in titles.items() if title in header}
    # Without quotes, but with escapes for invisible characters.
    columns = ', '.join(visible(title)[1:-1] for title in header[:20]) or 'none'
    for role in ['path', 'label'] if label_needed else ['path']:
        if role not in indices:
            missing = shown(titles[role])
            raise UserError(f'{where}: no column {missing}; there are: {columns}; choose one with --{role}_column')
    return indices


def _readable_names(labels: list[str], named: dict[str, str]) -> list[str]:
    names = [named.get(label, label) for label in labels]
    repeated = {name for name, number in Counter(names).items() if number > 1}
    return [f'{name} ({label})' if name in repeated else name for name, label in zip(names, labels, strict=True)]


# train.txt, ImageNet_LT_train.txt, Places_LT_val.txt, ...
_LIST_FILE = r'(?:.*[_-])?{split}\.(?:txt|lst|list)'
_SEPARATORS = ' \t,'


def convert_image_list(
    source: Path,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    image_root: str | None = None,
) -> ConvertedDataset:
    """Convert text files with one image per line: its path, then blanks, a tab or a comma, then its label.

    Paths may contain blanks: the label is the last field. Category ids are the labels in numeric order, so labels 0 to
    C - 1 are not changed. A test file may have no labels.

    Args:
        source: folder with the files, or the training file.
        train, val, test: the files, if their names differ from those above.
        image_root: folder that the paths are relative to; by default `source`, or the folder that contains it.

    Raises:
        UserError: files are missing, or lines are invalid.
    """
    files = find_split_files(source, _LIST_FILE, {'train': train, 'val': val, 'test': test})
    builder, errors = SplitBuilder(), SourceErrors()
    for split, path in files.items():
        builder.begin(split)
        for where, line in text_lines(path, errors):
            image, label = _fields(line)
            number = decimal_text(label)
            if image and number is not None:
                builder.add(split, image, number)
            elif split == 'test':
                builder.add(split, line, None)
            elif not image:
                errors.add(where, f'{shown(line)} has no label')
            else:
                errors.add(where, f'label {shown(label)} is not a non-negative integer')
    errors.raise_if_any()
    splits, names = builder.finish()
    return ConvertedDataset(splits, names, None, image_folder(source, image_root))


def _fields(line: str) -> tuple[str, str]:
    """Return path and label: the text before and after the last separator."""
    end = max(line.rfind(char) for char in _SEPARATORS)
    return line[: max(end, 0)].rstrip(_SEPARATORS), line[end + 1 :]


GROCERY_STORE_FILES = ('classes.csv', 'train.txt')
_GROCERY_COLUMNS = ('Class Name (str)', 'Class ID (int)', 'Coarse Class Name (str)', 'Coarse Class ID (int)')
_ICON_COLUMN = 'Iconic Image Path (str)'


def convert_grocery_store(source: Path) -> ConvertedDataset:
    """Convert the Grocery Store Dataset (Klasson et al., WACV 2019): lines `path, fine, coarse` and classes.csv.

    Labels are the fine ids of classes.csv; parents are the department (Fruit) and the coarse class (Apple).

    Args:
        source: a checkout of the repository, its `dataset` folder, or the unpacked `grocery` folder.

    Raises:
        UserError: files are missing, or lines are not of the form `path, fine, coarse`.
    """
    root = find_folder_with(source, GROCERY_STORE_FILES)
    if root is None:
        raise UserError(f'{source}: contains no classes.csv and train.txt of the Grocery Store Dataset')
    names, parents, coarse_of = _read_grocery_classes(root / 'classes.csv')
    splits: dict[str, ConvertedSplit] = {}
    errors = SourceErrors()
    for split in ('train', 'val', 'test'):
        if (root / f'{split}.txt').is_file():
            splits[split] = _read_grocery_split(root / f'{split}.txt', coarse_of, errors)
    errors.raise_if_any()
    return ConvertedDataset(splits, names, parents, root)


def _read_grocery_classes(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the name, the parents and the coarse id of each fine class."""
    errors, rows = SourceErrors(), {}
    records = read_csv(path, _GROCERY_COLUMNS, errors)
    where, header = next(records)
    missing = [title for title in _GROCERY_COLUMNS if title not in header]
    if missing:
        raise UserError(f'{where}: no column {shown(missing[0])}')
    for where, fields in records:
        row = dict(zip(header, fields, strict=True))
        name, coarse_name = row[_GROCERY_COLUMNS[0]], row[_GROCERY_COLUMNS[2]]
        fine, coarse = small_number(row[_GROCERY_COLUMNS[1]]), small_number(row[_GROCERY_COLUMNS[3]])
        if not name or fine is None or coarse is None:
            errors.add(where, f'not a class: {shown(fields[:4])}')
            continue
        # /iconic-images-and-descriptions/Fruit/Apple/...: the only source of the department.
        icon = row.get(_ICON_COLUMN, '').strip('/').split('/')
        department = [icon[1]] if len(icon) > 3 else []
        rows[fine] = (name, [*department, coarse_name], coarse)
    errors.raise_if_any()
    if not rows or sorted(rows) != list(range(len(rows))):
        raise UserError(f'{path}: class ids must be 0, 1, 2, ... without a gap; it has {len(rows)} different ones')
    ordered = [rows[fine] for fine in range(len(rows))]
    return [row[0] for row in ordered], [row[1] for row in ordered], [row[2] for row in ordered]


def _read_grocery_split(path: Path, coarse_of: list[int], errors: SourceErrors) -> ConvertedSplit:
    paths, labels = [], []
    for where, line in text_lines(path, errors):
        image, *numbers = (part.strip() for part in line.rsplit(',', 2))
        fine, coarse = map(small_number, numbers) if len(numbers) == 2 else (None, None)
        if fine is None or coarse is None or not image:
            errors.add(where, f'{shown(line)} is not of the form: path, fine class, coarse class')
        elif fine >= len(coarse_of):
            errors.add(where, f'class {fine} is not in classes.csv, which ends with {len(coarse_of) - 1}')
        elif coarse != coarse_of[fine]:
            errors.add(where, f'coarse class {coarse}, but {coarse_of[fine]} in classes.csv')
        else:
            paths.append(image)
            labels.append(fine)
    return ConvertedSplit(paths, np.array(labels, np.int32))
