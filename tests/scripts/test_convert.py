"""tools/convert.py, as a user runs it."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from tests.aliproducts import make_aliproducts
from tests.scripts.in_process import run_in_process
from tools.convert import FORMATS, converters

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'convert.py'


def run(*arguments, folder=None):
    """Return the outcome of tools/convert.py, run in this process."""
    return run_in_process(folder or Path.cwd(), 'tools/convert.py', *arguments)


@pytest.mark.process
def test_aliproducts_in_place(tmp_path):
    make_aliproducts(tmp_path / 'my data', 4, [8, 4, 2, 1], size=8)
    command = [sys.executable, str(SCRIPT), 'aliproducts', 'my data']
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stderr) == (0, '')
    assert '15 images, 4 of 4 classes, 1 to 8 images per class (imbalance 8.0)' in result.stdout
    assert "Now train:\n  python main.py --DATASET_ROOT 'my data'\n" in result.stdout
    for split, key, number in (('train', 'fpath', 15), ('val', 'fpath', 8), ('test', 'image_id', 6)):
        tree = json.loads((tmp_path / 'my data' / f'converted_{split}.json').read_text())
        entries = tree['images' if split == 'test' else 'annotations']
        assert len(entries) == number
        assert all((tmp_path / 'my data' / entry[key]).is_file() for entry in entries)
    assert len(json.loads((tmp_path / 'my data' / 'classes.json').read_text())['parents']) == 4


def test_options_and_another_folder(tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.jpg').touch()
    (tmp_path / 'shop.csv').write_text('file;gtin\na.jpg;0042\n')
    options = ['--path_column', 'file', '--label_column', 'gtin', '--image_root', 'photos']
    result = run('csv', 'shop.csv', 'out', *options, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    entry = json.loads((tmp_path / 'out' / 'converted_train.json').read_text())['annotations'][0]
    assert (tmp_path / 'out' / entry['fpath']).is_file()
    assert json.loads((tmp_path / 'out' / 'classes.json').read_text()) == {'names': ['0042']}
    assert 'python main.py --config configs/own_photos.yaml --DATASET_ROOT out\n' in result.stdout


def test_help(tmp_path):
    result = run('--help')
    assert result.returncode == 0
    assert all(name in result.stdout for name in FORMATS)
    assert '--label_column' in run('csv', '--help').stdout


def test_formats_are_those_with_a_converter():
    assert list(FORMATS) == list(converters())


@pytest.mark.parametrize(
    ('arguments', 'part'),
    [
        ([], 'required: FORMAT'),
        (['coco', 'x'], "invalid choice: 'coco' (choose from"),
        (['list'], 'required: SOURCE'),
        (['list', 'absent'], 'absent: no such file or folder'),
        (['list', 'x', '--labels', 'y'], 'unrecognized arguments: --labels y'),
        (['aliproducts', '.'], 'contains no train.json'),
        (['list', 'bad.txt'], 'bad.txt:2:'),
        (['list', 'lost.txt'], "image 'nowhere.jpg' and others do not exist"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, part):
    (tmp_path / 'bad.txt').write_text('a.jpg 0\nb.jpg\n')
    (tmp_path / 'lost.txt').write_text('nowhere.jpg 0\n')
    result = run(*arguments, folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1
    assert part in result.stderr
    assert result.stdout == ''
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bad.txt', 'lost.txt']


def test_warnings_go_to_standard_error(tmp_path):
    make_aliproducts(tmp_path, 2, 1, size=8)
    (tmp_path / 'product_tree.json').write_text('[]')
    result = run('aliproducts', tmp_path)
    assert result.returncode == 0
    assert result.stderr.startswith('warning: ')


def test_a_validation_split_for_a_source_without_one(tmp_path):
    for number in range(20):
        (tmp_path / f'{number}.jpg').touch()
    (tmp_path / 'shop.csv').write_text('path,label\n' + ''.join(f'{n}.jpg,{"ab"[n % 2]}\n' for n in range(20)))
    result = run('csv', 'shop.csv', folder=tmp_path)
    assert result.returncode == 0
    assert '--valid_fraction 0.1' in result.stderr
    assert not (tmp_path / 'converted_val.json').exists()
    result = run('csv', 'shop.csv', '--valid_fraction', 0.2, '--seed', 7, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, '')
    splits = [json.loads((tmp_path / f'converted_{split}.json').read_text()) for split in ('train', 'val')]
    assert [len(split['annotations']) for split in splits] == [16, 4]
    assert [entry['category_id'] for entry in splits[1]['annotations']].count(0) == 2
    for value in ('0', '1', 'x', '-1'):
        result = run('csv', 'shop.csv', '--valid_fraction', value, folder=tmp_path)
        assert result.returncode == 2
        assert '--valid_fraction' in result.stderr
        assert result.stderr.count('\n') == 1


def test_a_long_tailed_subset(tmp_path):
    make_aliproducts(tmp_path, 4, [16, 16, 16, 16], size=8)
    (tmp_path / 'out').mkdir()
    result = run('aliproducts', '.', 'out', '--imbalance', 8, '--seed', 3, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, '')
    assert '30 images, 4 of 4 classes, 2 to 16 images per class (imbalance 8.0)' in result.stdout
    assert '\n--imbalance 8: 30 of 64 training images selected (--seed 3)\n' in result.stdout
    tree = json.loads((tmp_path / 'out' / 'converted_train.json').read_text())
    labels = [entry['category_id'] for entry in tree['annotations']]
    assert [labels.count(label) for label in range(4)] == [16, 8, 4, 2]
    assert all((tmp_path / 'out' / entry['fpath']).is_file() for entry in tree['annotations'])
    val = json.loads((tmp_path / 'out' / 'converted_val.json').read_text())['annotations']
    assert len(val) == 8, 'all of them'


def test_the_validation_split_is_split_off_before_the_long_tailed_subset(tmp_path):
    for number in range(40):
        (tmp_path / f'{number}.jpg').touch()
    (tmp_path / 'shop.csv').write_text('path,label\n' + ''.join(f'{n}.jpg,{"ab"[n % 2]}\n' for n in range(40)))
    result = run('csv', 'shop.csv', '--valid_fraction', 0.2, '--imbalance', 4, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, '')
    splits = [json.loads((tmp_path / f'converted_{split}.json').read_text()) for split in ('train', 'val')]
    labels = [[entry['category_id'] for entry in split['annotations']] for split in splits]
    assert [(part.count(0), part.count(1)) for part in labels] == [(16, 4), (4, 4)]
    paths = [entry['fpath'] for split in splits for entry in split['annotations']]
    assert len(set(paths)) == len(paths)


def test_similar_names_are_a_warning(tmp_path):
    for name in 'abcd':
        (tmp_path / f'{name}.jpg').touch()
    rows = 'path,label\na.jpg,Milk\nb.jpg,Milk\u00ad\nc.jpg,caf\u00e9\nd.jpg,cafe\u0301\n'
    (tmp_path / 'shop.csv').write_text(rows, encoding='utf-8')
    result = run('csv', 'shop.csv', 'out', folder=tmp_path)
    assert result.returncode == 0, result.stderr
    line = "warning: classes that look like one: 'Milk' and 'Milk\\xad' (differ in invisible characters)\n"
    assert line in result.stderr
    assert json.loads((tmp_path / 'out' / 'classes.json').read_text())['names'] == ['Milk', 'Milk\u00ad', 'caf\u00e9']
    # The same set in another form is the same set; a class that looks like a known one is a warning.
    rows = unicodedata.normalize('NFD', rows) + 'e.jpg,Cafe\u0301\n'
    (tmp_path / 'e.jpg').touch()
    (tmp_path / 'shop.csv').write_text(rows, encoding='utf-8')
    result = run('csv', 'shop.csv', 'out', '--append', folder=tmp_path)
    assert '1 image added, 4 skipped' in result.stdout
    assert 'classes.json: 1 class added, 4 in total' in result.stdout
    assert "'caf\u00e9' and 'Caf\u00e9' (differ in upper and lower case)" in result.stderr


@pytest.mark.parametrize('seed', ['1234567890' * 500, '-1', str(2**63), '1e3'])
def test_seeds_that_are_none(tmp_path, seed):
    (tmp_path / 'shop.csv').write_text('path,label\na.jpg,1\nb.jpg,1\n')
    result = run('csv', 'shop.csv', '--valid_fraction', '0.5', '--seed', seed, folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f'error: {"--seed is" if len(seed) < 100 and seed != "1e3" else "argument --seed"}')
    assert result.stderr.count('\n') == 1
