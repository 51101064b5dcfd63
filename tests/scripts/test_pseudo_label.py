"""tools/pseudo_label.py against a loop over what test.py predicts: threshold, weights, limit per class, copies."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

from tests.aliproducts import draw_product
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ON_CPU, TINY, error_line

BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
ERROR = 0.3
HOSTILE = [
    '<b>&amp;"\'.jpg',
    'a\nb.jpg',
    ' blank .jpg',
    'e\u0301clair.jpg',
    '=1+2.jpg',
    'c\\d.jpg',
    'pseudo","source":"pseudo.jpg',
]


@pytest.fixture(scope='module')
def photos(products, tmp_path_factory):
    """A folder of 40 photos in sub-folders, one of them twice, one damaged, and copies of known images."""
    folder = tmp_path_factory.mktemp('unlabeled')
    random = np.random.default_rng(11)
    for number in range(40):
        name = HOSTILE[number] if number < len(HOSTILE) else f'{number}.jpg'
        path = folder / f'part {number % 3}' / name
        path.parent.mkdir(exist_ok=True)
        draw_product(number % 6, 6, 40, random).save(path, quality=90)
    shutil.copy(folder / 'part 2' / '20.jpg', folder / 'part 2' / 'again.jpg')
    for split in ('train', 'val'):
        entries = json.loads((products / f'converted_{split}.json').read_text())['annotations']
        shutil.copy(products / entries[3]['fpath'], folder / f'copy_{split}.jpg')
    (folder / 'damaged.jpg').write_bytes(b'no photo')
    return folder


@pytest.fixture(scope='module')
def folder(finished, tmp_path_factory):
    """The test module's own copy of the finished run."""
    own = tmp_path_factory.mktemp('pseudo')
    shutil.copytree(finished / 'log', own / 'log')
    return own


def predicted(scripts, folder, name, *options):
    """Return {path: (class, probability)} as test.py writes them."""
    scripts.run(folder, 'test.py', *BEST, *options, '--TEST_COLUMNS', 'id,predicted,probability')
    with open(folder / 'log' / 'tiny' / f'predictions_{name}.csv', newline='') as file:
        return {row['id']: (int(row['predicted']), float(row['probability'] or 0)) for row in csv.DictReader(file)}


def bound_holds(wrong, number, error):
    """Return whether so few errors have a probability of at most 5 % at this rate."""
    return sum(math.comb(number, k) * error**k * (1 - error) ** (number - k) for k in range(wrong + 1)) <= 0.05


def slow_threshold(measured, error):
    best = None
    for limit in sorted({confidence for confidence, _ in measured}):
        accepted = [correct for confidence, correct in measured if confidence >= limit]
        if best is None and bound_holds(accepted.count(False), len(accepted), error):
            best = limit
    return best


def slow_accuracy(measured, confidence):
    """Isotonic regression by its max-min formula, at the largest measured confidence that is not above."""
    measured = sorted(measured)
    levels = sorted({value for value, _ in measured})
    level = max(value for value in levels if value <= confidence)

    def mean(low, high):
        inside = [correct for value, correct in measured if low <= value <= high]
        return sum(inside) / len(inside)

    return max(min(mean(low, high) for high in levels if high >= level) for low in levels if low <= level)


@pytest.fixture(scope='module')
def expected(scripts, folder, photos, products):
    """{file in the photos' folder: (class, weight)} without a limit per class, and what was left out."""
    valid = json.loads((products / 'converted_val.json').read_text())['annotations']
    label_of = {entry['fpath']: entry['category_id'] for entry in valid}
    of_valid = predicted(scripts, folder, 'converted_val', '--DATASET_TEST_JSON', products / 'converted_val.json')
    measured = [(confidence, found == label_of[path]) for path, (found, confidence) in of_valid.items()]
    limit = slow_threshold(measured, ERROR)
    found = predicted(scripts, folder, photos.name, '--TEST_IMAGES', photos)
    accepted = {path: (label, slow_accuracy(measured, confidence), confidence)
                for path, (label, confidence) in found.items() if label >= 0 and confidence >= limit}  # fmt: skip
    for copy in ('part 2/again.jpg', 'copy_train.jpg', 'copy_val.jpg'):
        accepted.pop(copy, None)
    assert len(accepted) > 10
    return accepted


def pseudo_label(scripts, folder, photos, *options, code=0):
    command = (*BEST, '--PSEUDO_IMAGES', photos, '--PSEUDO_ERROR', ERROR, *options)
    return scripts.run(folder, 'tools/pseudo_label.py', *command, code=code)


def entries_of(path):
    content = json.loads(path.read_text())
    entries = content['annotations']
    pseudo = [entry for entry in entries if entry.get('source') == 'pseudo']
    assert pseudo == entries[len(entries) - len(pseudo) :]
    return content, entries[: len(entries) - len(pseudo)], pseudo


def by_name(root, photos, pseudo):
    """Return {file in the photos' folder: entry}, where a path is followed as a loader follows it."""
    return {str((root / entry['fpath']).resolve().relative_to(photos.resolve())): entry for entry in pseudo}


def test_all_accepted_photos(scripts, folder, photos, products, expected):
    done = pseudo_label(scripts, folder, photos, '--PSEUDO_PER_CLASS', 1000)
    content, known, pseudo = entries_of(folder / 'log' / 'tiny' / 'with_pseudo.json')
    original = json.loads((products / 'converted_train.json').read_text())
    assert known == original['annotations']
    assert {key: value for key, value in content.items() if key != 'annotations'} == {
        key: value for key, value in original.items() if key != 'annotations'
    }
    found = by_name(products, photos, pseudo)
    assert found.keys() == expected.keys()
    for path, (label, weight, _) in expected.items():
        assert found[path]['category_id'] == label
        assert found[path]['weight'] == pytest.approx(weight, abs=1e-6)
        assert 0 < found[path]['weight'] <= 1
    assert '1 cannot be read' in done.stdout
    assert f'{len(expected)} pseudo-labels' in done.stdout
    assert '--DATASET_TRAIN_JSON log/tiny/with_pseudo.json' in done.stdout
    assert not list((folder / 'log' / 'tiny').glob('*.partial'))
    table = done.stdout[done.stdout.index('photos, ') : done.stdout.index('wrote ')]
    assert [line for line in table.splitlines() if len(line) > 80] == []


@pytest.mark.slow
def test_the_limit_per_class(scripts, folder, photos, products, expected):
    """By default the median count of the training classes, 14 12 9 7 5 4: 8."""
    for options, limit in (((), 8), (('--PSEUDO_PER_CLASS', 2), 2)):
        pseudo_label(scripts, folder, photos, '--PSEUDO_OUT', 'out/limited.json', *options)
        found = by_name(products, photos, entries_of(folder / 'out' / 'limited.json')[2])
        kept = set()
        for label in range(6):
            of_class = sorted((-one[2], path) for path, one in expected.items() if one[0] == label)
            kept |= {path for _, path in of_class[:limit]}
        assert found.keys() == kept


@pytest.mark.slow
def test_training_on_them_and_another_round(scripts, folder, photos, products):
    pseudo_label(scripts, folder, photos)
    path = folder / 'log' / 'tiny' / 'with_pseudo.json'
    _, known, first = entries_of(path)
    data = ('--config', 'log/tiny/config.yaml', '--DATASET_TRAIN_JSON', path.relative_to(folder), *ON_CPU)
    done = scripts.run(folder, 'main.py', *data, '--NAME', 'tiny_pseudo', '--OVERWRITE', True)
    assert f'{len(known) + len(first)} images' in done.stdout
    options = ('--RESUME_MODEL', 'log/tiny_pseudo/best_model.pth', '--PSEUDO_ERROR', 0.9, *ON_CPU)
    scripts.run(folder, 'tools/pseudo_label.py', '--PSEUDO_IMAGES', photos, *options)
    _, again, second = entries_of(folder / 'log' / 'tiny_pseudo' / 'with_pseudo.json')
    assert again == known
    assert second
    assert len({entry['fpath'] for entry in [*again, *second]}) == len(again) + len(second)


@pytest.mark.slow
def test_ranks(scripts, folder, photos):
    options = (*BEST, '--PSEUDO_IMAGES', photos, '--PSEUDO_ERROR', ERROR)
    scripts.run(folder, 'tools/pseudo_label.py', *options, '--PSEUDO_OUT', 'out/one.json')
    run_ranks_of(scripts, 2, folder, 'tools/pseudo_label.py', *options, '--PSEUDO_OUT', 'out/two.json')
    assert (folder / 'out' / 'two.json').read_bytes() == (folder / 'out' / 'one.json').read_bytes()


@pytest.mark.slow
def test_class_folders(scripts, photos, products, tmp_path):
    """The training images and the validation fraction get a file each."""
    train = products / 'train'
    scripts.run(tmp_path, 'main.py', '--config', TINY, '--DATASET_ROOT', train, '--NAME', 'shop', *ON_CPU)
    model = ('--RESUME_MODEL', 'log/shop/best_model.pth', *ON_CPU)
    scripts.run(tmp_path, 'tools/pseudo_label.py', *model, '--PSEUDO_IMAGES', photos, '--PSEUDO_ERROR', 0.9)
    run = tmp_path / 'log' / 'shop'
    _, known, pseudo = entries_of(run / 'with_pseudo.json')
    valid = json.loads((run / 'with_pseudo_val.json').read_text())['annotations']
    assert len(known) + len(valid) == 51
    assert not {entry['fpath'] for entry in known} & {entry['fpath'] for entry in valid}
    assert by_name(train, photos, pseudo)
    done = scripts.run(
        tmp_path, 'main.py', '--config', 'log/shop/config.yaml', '--NAME', 'again', *ON_CPU, '--DATASET_TRAIN_JSON',
        'log/shop/with_pseudo.json', '--DATASET_VALID_JSON', 'log/shop/with_pseudo_val.json',
    )  # fmt: skip
    assert f'valid: {len(valid)} images' in done.stdout


def test_no_threshold_holds_the_error(scripts, folder, photos):
    done = pseudo_label(scripts, folder, photos, '--PSEUDO_ERROR', 0.01, code=2)
    line = error_line(done)
    assert 'PSEUDO.ERROR 0.01: no threshold holds this error' in line
    advised = float(line.partition('--PSEUDO_ERROR ')[2].split(',')[0])
    pseudo_label(scripts, folder, photos, '--PSEUDO_ERROR', advised, '--PSEUDO_OUT', 'out/advised.json')


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (('--PSEUDO_IMAGES', ''), 'PSEUDO.IMAGES is empty'),
        (('--PSEUDO_IMAGES', 'nowhere'), 'nowhere: no such folder or file'),
        (('--PSEUDO_OUT', 'log'), 'log is a folder'),
        (('--PSEUDO_OUT', 'log/tiny/classes.json'), 'exists, and holds no pseudo-labels'),
    ],
)
def test_mistakes(scripts, folder, photos, options, words):
    assert words in error_line(pseudo_label(scripts, folder, photos, *options, code=2))


def test_the_training_file_is_never_replaced(scripts, folder, photos, products):
    options = ('--PSEUDO_OUT', products / 'converted_train.json', '--OVERWRITE', True)
    assert 'holds no pseudo-labels' in error_line(pseudo_label(scripts, folder, photos, *options, code=2))


def test_classes_of_other_data(scripts, folder, photos):
    other = folder / 'other'
    other.mkdir()
    (other / 'classes.json').write_text(json.dumps({'names': list('abcdef')}))
    done = pseudo_label(scripts, folder, photos, '--PSEUDO_OUT', 'other/train.json', code=2)
    assert 'other class names' in error_line(done)
