"""Class folders, images and options with names of any characters: every command works to its end, in plain lines.

A name may hold escape sequences, line ends, formulas of spreadsheets and of matplotlib, HTML, format directives and
bytes that are not UTF-8. It must not forge a line, color the terminal, run code in a page or stop a run in its report.
"""

import csv
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lib.trainer.checkpointing.io import read_checkpoint
from tests.aliproducts import draw_product
from tests.scripts.running import ON_CPU, error_line

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != 'linux', reason='other systems refuse many of these names'),
]
FORGED = 'error: forged'
NAMES = [
    '$x^{', '$\\frac{1}{', '\x1b[31mred\x1b[0m', 'مرحبا \u202eRTL', '\U0001f34e\u200d\U0001f469', 'n' * 250,
    f'line\n{FORGED}', f'cr\r{FORGED}', '<script>alert(1)<b>', '=1+1', '+1', '-leading', '@SUM(A1)', '\ttab', '"q\'',
    ',;,', '%s %d %(x)s', '{} {0} {x}', '\\x41', '\\', '__proto__', '\u2028sep', '\x7f\x9b2J', 'C:\\x',
    'None', 'nan', '#', '~', '&amp;', "'", '`', '\ufeffbom', '\ufdd0', '\U0010ffff',
]  # fmt: skip
BYTES = [b'caf\xe9', b'\xff\xfe', b'\xed\xa0\x80']  # Latin-1, no text at all, an encoded surrogate
TINY = ('--MODEL_BACKBONE', 'test_resnet', '--INPUT_SIZE', 32, '--TRAIN_MAX_EPOCH', 1, '--TRAIN_BATCH_SIZE', 16)
CONTROL = re.compile('[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]')
BEST = ('--RESUME_MODEL', 'log/photos/best_model.pth')


def check(done):
    """Check that the output of a command has no control characters and no forged line."""
    for text in (done.stdout, done.stderr):
        assert not CONTROL.search(text), (done.args, CONTROL.search(text), text)
        assert not [line for line in text.splitlines() if line.startswith(FORGED)], text
        assert 'Traceback' not in text, text
        long = [line for line in text.splitlines() if len(line) > 600]
        assert not long, long
    return done


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder with photos/CLASS/FILE: each class three images, one class with a file of each name."""
    folder = tmp_path_factory.mktemp('hostile')
    random = np.random.default_rng(5)
    stems = [*(os.fsencode(name) for name in NAMES), *BYTES]
    draw_product(0, 4, 40, random).save(folder / 'photo.jpg', quality=90)
    data = (folder / 'photo.jpg').read_bytes()
    for label, stem in enumerate(stems):
        of_class = os.path.join(os.fsencode(folder), b'photos', stem)
        os.makedirs(of_class)
        names = [b'a.jpg', b'b.jpg', b'c.jpg'] + [name[:240] + b'.jpg' for name in stems] * (label == 3)
        for number, name in enumerate(names):
            with open(os.path.join(of_class, name), 'wb') as file:
                file.write(data if number or label % 4 else data[:300])
    return folder


@pytest.fixture(scope='module')
def run(scripts, photos):
    done = check(scripts.run(photos, 'main.py', '--DATASET_ROOT', 'photos', *TINY, *ON_CPU, report=True))
    return photos, done


def check_files(folder):
    """Check that every text file is UTF-8, every table and JSON file readable, no page with a name as HTML."""
    for path in folder.rglob('*'):
        if path.suffix not in ('.html', '.json', '.jsonl', '.csv', '.txt', '.yaml', '.svg'):
            continue
        text = path.read_bytes().decode('utf-8')
        if path.suffix == '.json':
            json.loads(text)
        elif path.suffix == '.csv':
            with open(path, newline='', encoding='utf-8') as file:
                assert len({len(row) for row in csv.reader(file, strict=True)}) == 1, path
        elif path.suffix == '.html':
            assert '<script>alert(1)<b>' not in text, path
        elif path.name == 'log.txt':
            assert not CONTROL.search(text), path


def test_training_and_its_report(run):
    folder, _ = run
    names = read_checkpoint(folder / 'log/photos/best_model.pth').training_set.class_names
    assert len(names) == len(NAMES) + len(BYTES)
    assert r'caf\xe9' in names
    assert (folder / 'log/photos/report.html').exists()
    check_files(folder / 'log')


@pytest.mark.slow
@pytest.mark.parametrize(
    'command',
    [
        ('test.py', *BEST, '--DATASET_TEST_ROOT', 'photos', '--TEST_TOP_K', 3),
        ('tau_norm.py', *BEST),
        ('tools/report.py', *BEST),
        ('tools/search.py', *BEST, '--SEARCH_CSV', 'near.csv', '--DATASET_TEST_ROOT', 'photos'),
        ('tools/posthoc.py', *BEST),
        ('tools/doctor.py', '--DATASET_ROOT', 'photos', '--NAME', 'photos'),
        ('tools/pack.py', '--DATASET_ROOT', 'photos', '--PACK_OUT', 'packed'),
        ('tools/export.py', *BEST, '--EXPORT_FORMAT', 'onnx'),
        ('tools/export.py', *BEST, '--EXPORT_FORMAT', 'torch_export'),
        ('tools/export.py', *BEST, '--EXPORT_FORMAT', 'safetensors'),
        ('tools/summary.py', *BEST),
        ('tools/compare.py', 'log/photos', '--DATASET_ROOT', 'photos'),
    ],
    ids=range(12),
)
def test_commands_on_the_model(scripts, run, command):
    folder, _ = run
    script, *options = command
    on_cpu = ON_CPU if script not in ('tools/compare.py', 'tools/summary.py') else ()
    check(scripts.run(folder, script, *options, *on_cpu, report=True))
    check_files(folder)


@pytest.mark.slow
def test_packed_images(scripts, run):
    folder, _ = run
    check(scripts.run(folder, 'tools/pack.py', '--DATASET_ROOT', 'photos', '--PACK_OUT', 'packed_2', *ON_CPU))
    options = ('--DATASET_SHARDS', 'packed_2', '--NAME', 'shards', *TINY, *ON_CPU)
    check(scripts.run(folder, 'main.py', '--config', Path(__file__).with_name('tiny.yaml'), *options, report=True))
    options = ('--RESUME_MODEL', 'log/shards/best_model.pth', '--DATASET_TEST_ROOT', 'photos')
    check(scripts.run(folder, 'test.py', *options, *ON_CPU))
    check_files(folder / 'log' / 'shards')


@pytest.mark.slow
def test_enrolling(scripts, run):
    folder, _ = run
    os.rename(os.path.join(os.fsencode(folder), b'photos', b'caf\xe9'), os.path.join(os.fsencode(folder), b'moved'))
    new = Path(folder, 'new')
    for name in [*(f'{name[:200]}2' for name in NAMES), *(os.fsdecode(name + b'2') for name in BYTES)]:
        (new / name).mkdir(parents=True)
        for file in ('a.jpg', f'{name[:60]}.jpg'):
            (new / name / file).write_bytes((folder / 'photo.jpg').read_bytes())
    os.rename(os.path.join(os.fsencode(folder), b'moved'), os.path.join(os.fsencode(folder), b'photos', b'caf\xe9'))
    check(scripts.run(folder, 'tools/enroll.py', *BEST, '--ENROLL_IMAGES', 'new', *ON_CPU))
    check_files(folder / 'log')


@pytest.mark.slow
def test_converting(scripts, run):
    folder, _ = run
    (folder / 'split').mkdir()
    (folder / 'split' / 'train').symlink_to(folder / 'photos')
    done = check(scripts.run(folder, 'tools/convert.py', 'imagefolder', 'split', 'converted', code=2))
    assert 'not UTF-8' in error_line(done)


@pytest.mark.slow
def test_formulas_are_quoted_on_request(scripts, run):
    folder, _ = run
    (folder / 'few' / '=1+1').mkdir(parents=True)
    for name in ('=2.jpg', '-3.jpg', 'plain.jpg'):
        (folder / 'few' / '=1+1' / name).write_bytes((folder / 'photo.jpg').read_bytes())
    (folder / 'few' / '@bad.jpg').write_bytes(b'no image')
    options = ('--DATASET_TEST_ROOT', 'few', '--TEST_TOP_K', 2, '--RUN_QUOTE_FORMULAS', True, *ON_CPU)
    check(scripts.run(folder, 'test.py', *BEST, *options))
    for name in ('predictions_few.csv', 'predictions_few.top2.csv', 'bad_images.csv'):
        with open(folder / 'log/photos' / name, newline='', encoding='utf-8') as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(('=', '+', '@', '\t', '\r')) or cell[:2] == '-3'], cells
        assert [cell for cell in cells if cell.startswith(("'=", "'@"))]
