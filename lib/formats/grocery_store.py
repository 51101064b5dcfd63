"""The Grocery Store Dataset (Klasson et al., WACV 2019): lines `path, fine, coarse` and classes.csv."""

import csv
from pathlib import Path

import numpy as np

from lib.errors import UserError
from lib.formats.converted import Converted, Split
from lib.formats.sources import Faults, short, text_lines
from lib.formats.unpack import find_marked

MARKS = ('classes.csv', 'train.txt')
_COLUMNS = ('Class Name (str)', 'Class ID (int)', 'Coarse Class Name (str)', 'Coarse Class ID (int)')
_ICON = 'Iconic Image Path (str)'


def convert_grocery_store(source: Path) -> Converted:
    """Convert a checkout of the data set, its `dataset` folder, or the unpacked `grocery` folder.

    Labels are the fine ids of classes.csv; parents are the department (Fruit) and the coarse class (Apple).

    Raises:
        UserError: files are missing, or lines are not of the form `path, fine, coarse`.
    """
    root = find_marked(source, MARKS)
    if root is None:
        raise UserError(f'{source}: no classes.csv and train.txt of the Grocery Store Dataset in it')
    names, parents, coarse_of = _read_classes(root / 'classes.csv')
    splits, faults = {}, Faults()
    for split in ('train', 'val', 'test'):
        if (root / f'{split}.txt').is_file():
            splits[split] = _read_split(root / f'{split}.txt', coarse_of, faults)
    faults.check()
    return Converted(splits, names, parents, root)


def _read_classes(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Return names, parents and coarse id of each fine class."""
    faults, rows = Faults(), {}
    with open(path, encoding='utf-8-sig', newline='') as file:
        reader = csv.DictReader(file)
        missing = [title for title in _COLUMNS if title not in (reader.fieldnames or [])]
        if missing:
            raise UserError(f'{path}:1: no column {missing[0]!r}')
        for row in reader:
            name, fine, coarse_name, coarse = (row[title] or '' for title in _COLUMNS)
            if not (name and fine.isdecimal() and coarse.isdecimal()):
                faults.add(f'{path}:{reader.line_num}', f'not a class: {short(list(row.values())[:4])}')
                continue
            # /iconic-images-and-descriptions/Fruit/Apple/...: the department is named nowhere else.
            icon = (row.get(_ICON) or '').strip('/').split('/')
            department = [icon[1]] if len(icon) > 3 else []
            rows[int(fine)] = (name, [*department, coarse_name], int(coarse))
    faults.check()
    if not rows or sorted(rows) != list(range(len(rows))):
        raise UserError(f'{path}: class ids must be 0, 1, 2, ... without a gap; there are {len(rows)} different ones')
    ordered = [rows[fine] for fine in range(len(rows))]
    return [row[0] for row in ordered], [row[1] for row in ordered], [row[2] for row in ordered]


def _read_split(path: Path, coarse_of: list[int], faults: Faults) -> Split:
    paths, labels = [], []
    for where, line in text_lines(path, faults):
        image, *numbers = (part.strip() for part in line.rsplit(',', 2))
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or not image:
            faults.add(where, f'{short(line)} is not of the form: path, fine class, coarse class')
            continue
        fine, coarse = map(int, numbers)
        if fine >= len(coarse_of):
            faults.add(where, f'class {fine} is not in classes.csv, which ends with {len(coarse_of) - 1}')
        elif coarse != coarse_of[fine]:
            faults.add(where, f'coarse class {coarse}, but {coarse_of[fine]} in classes.csv')
        else:
            paths.append(image)
            labels.append(fine)
    return Split(paths, np.array(labels, np.int32))
