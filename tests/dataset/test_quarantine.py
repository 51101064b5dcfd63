"""Quarantine files: the listed rows of a split, and errors in one line."""

import ast
import json
from pathlib import Path

import pyarrow as pa
import pytest

from lib.dataset.corrections import quarantined_rows
from lib.errors import UserError

NAMES = pa.array(['a.jpg', 'b.jpg', 'c.jpg', 'b.jpg'], pa.large_string())


def write(tmp_path, content) -> str:
    file = tmp_path / 'quarantine.json'
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def image(fpath, split='train'):
    return {'fpath': fpath, 'split': split, 'reason': 'the file is empty', 'more': 1}


def test_rows_of_one_split(tmp_path):
    listed = [image('c.jpg'), image('b.jpg'), image('a.jpg', 'valid'), image('gone.jpg'), image('c.jpg')]
    found = quarantined_rows(NAMES, write(tmp_path, {'images': listed, 'other': 'field'}), 'train')
    assert found.rows.tolist() == [1, 2, 3]
    assert (found.num_unknown, found.num_other) == (1, 1)
    assert quarantined_rows(NAMES, write(tmp_path, {'images': listed}), 'valid').rows.tolist() == [0]


def test_nothing_listed(tmp_path):
    found = quarantined_rows(NAMES, write(tmp_path, {'images': []}), 'train')
    assert (found.rows.tolist(), found.num_unknown, found.num_other) == ([], 0, 0)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('', 'not valid JSON'),
        ('{"images": [', 'not valid JSON'),
        ('[' * 100_000, ''),
        ('[]', 'must be {"images"'),
        ('{"images": [{"fpath": "a.jpg"}]}', 'split'),
        ('{"images": [{"fpath": 3, "split": "train"}]}', 'images[0].fpath'),
        ('{"annotations": []}', 'images'),
    ],
)
def test_bad_files(tmp_path, content, words):
    file = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        quarantined_rows(NAMES, file, 'train')
    assert str(error.value).startswith(f'{file}:')
    assert words in str(error.value)
    assert '\n' not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r'no such file; tools/doctor\.py'):
        quarantined_rows(NAMES, tmp_path / 'none.json', 'train')
    with pytest.raises(UserError, match='is a folder'):
        quarantined_rows(NAMES, tmp_path, 'train')


# Those that need every image: the audit, shards for any later quarantine, and the number of classes.
READ_ALL = {'commands/doctor.py', 'commands/pack.py', 'commands/plan.py'}


def test_only_these_read_training_images_that_are_in_quarantine():
    lib = Path(__file__).resolve().parents[2] / 'lib'
    found = set()
    for path in lib.rglob('*.py'):
        source = path.read_text(encoding='utf-8')
        tree = ast.parse(source if 'open_training_data' in source else '')
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        opened = [call for call in calls if getattr(call.func, 'id', '') == 'open_training_data']
        if any(keyword.arg == 'quarantine' for call in opened for keyword in call.keywords):
            found.add(path.relative_to(lib).as_posix())
    assert found == READ_ALL
