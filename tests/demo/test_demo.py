import io
import json
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lib.demo import generate
from lib.demo.catalog import FAMILIES, PRODUCTS, VARIANTS_PER_FAMILY
from lib.demo.generate import SPLITS, demo_is_complete, generate_demo, plan_photos
from lib.errors import UserError
from lib.runtime.log import LOGGER

SCALE = 0.05  # about 240 photos


def read(path):
    return json.loads(path.read_text(encoding='utf-8'))


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp('demo') / 'set'
    generate_demo(root, seed=3, num_workers=1, scale=SCALE)
    return root


@pytest.fixture
def without_drawing(monkeypatch):
    """Replace drawing by random bytes, for tests of files and folders."""
    monkeypatch.setattr(generate, 'photograph', lambda front, others, rng: rng.bytes(4))
    monkeypatch.setattr(generate, '_front', lambda product: None)


def test_catalog_has_16_families_of_4_with_usable_names():
    assert (len(FAMILIES), len(PRODUCTS)) == (16, 64)
    assert len({product.name for product in PRODUCTS}) == 64
    assert len({family.brand for family in FAMILIES}) == 16
    assert PRODUCTS[0].name == 'Norvik Sparkling Lemon 330 ml'
    assert PRODUCTS[0].parents == ['Drinks', 'Norvik Sparkling cans']
    for product in PRODUCTS:
        assert product.name.replace(' ', '').isalnum(), product.name  # also a folder's name, on any system


@pytest.mark.parametrize('seed', [0, 1, 12345])
def test_training_counts_decrease_exponentially_and_the_other_splits_are_balanced(seed):
    photos = plan_photos(seed)
    counts = [Counter(photo.label for photo in photos if photo.split == split) for split in range(len(SPLITS))]
    expected = [int(120 * 40 ** (-rank / 63) + 1e-6) for rank in range(64)]
    assert sorted(counts[0].values(), reverse=True) == expected
    assert (expected[0], expected[-1]) == (120, 3)
    assert set(counts[1].values()) == set(counts[2].values()) == {8}
    assert [len(count) for count in counts] == [64, 64, 64]
    largest = np.array([counts[0][label] for label in range(64)]).reshape(16, VARIANTS_PER_FAMILY).max(axis=1)
    assert largest.min() > expected[16], 'each family has a class in the first quarter of the sizes'
    assert len({photo.fpath for photo in photos}) == len(photos)


@pytest.mark.parametrize('seed', [0, 1, 12345])
def test_four_percent_of_the_training_labels_are_wrong_and_about_half_of_them_are_siblings(seed):
    photos = plan_photos(seed)
    wrong = [photo for photo in photos if photo.label != photo.true_label]
    assert all(photo.split == 0 for photo in wrong)
    assert len(wrong) == round(0.04 * sum(photo.split == 0 for photo in photos))
    siblings = np.mean([p.label // VARIANTS_PER_FAMILY == p.true_label // VARIANTS_PER_FAMILY for p in wrong])
    assert 0.3 < siblings < 0.7
    right = Counter(p.label for p in photos if p.split == 0 and p.label == p.true_label)
    assert min(right[label] for label in range(64)) >= 2


@pytest.mark.long
def test_structure(demo):
    assert {path.name for path in demo.iterdir()} == {
        *('images', 'classes.json', 'noise.json', 'demo.json'),
        *('converted_train.json', 'converted_val.json', 'converted_test.json'),
    }
    classes = read(demo / 'classes.json')
    assert classes['names'] == [product.name for product in PRODUCTS]
    assert classes['parents'] == [product.parents for product in PRODUCTS]
    listed = []
    for split in SPLITS:
        content = read(demo / f'converted_{split}.json')
        assert content['num_classes'] == 64
        assert {row['category_id'] for row in content['annotations']} == set(range(64))
        for row in content['annotations']:
            assert row['fpath'].startswith(f'images/{split}/{classes["names"][row["category_id"]]}/')
        listed += [row['fpath'] for row in content['annotations']]
    assert sorted(listed) == sorted(name for name in files(demo) if name.endswith('.jpg'))


@pytest.mark.long
def test_photos_are_jpegs_of_the_documented_sizes_and_all_different(demo):
    photos = [data for name, data in files(demo).items() if name.endswith('.jpg')]
    assert len(set(photos)) == len(photos)
    for data in photos[::5]:
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode) == ('JPEG', 'RGB')
        assert all(160 <= side <= 200 for side in image.size)
        assert np.asarray(image).std() > 8, 'not a flat image'


@pytest.mark.long
def test_noise_file_contains_the_true_labels(demo):
    noise = read(demo / 'noise.json')
    annotations = read(demo / 'converted_train.json')['annotations']
    true_labels = {photo.fpath: photo.true_label for photo in plan_photos(3, SCALE)}
    assert noise
    for item in noise:
        assert annotations[item['row']] == {'category_id': item['given'], 'fpath': item['fpath']}
        assert item['true'] == true_labels[item['fpath']] != item['given']
    listed = {item['row'] for item in noise}
    for row, annotation in enumerate(annotations):
        assert (row in listed) == (true_labels[annotation['fpath']] != annotation['category_id'])


@pytest.mark.process
def test_two_workers_write_the_same_bytes_as_one(demo, tmp_path):
    photos = plan_photos(3, SCALE)[::40]
    generate._draw_all(photos, tmp_path, 3, num_workers=2)
    drawn = files(tmp_path)
    assert len(drawn) == len(photos) > 5
    assert drawn.items() <= files(demo).items()


@pytest.mark.long
def test_another_seed_gives_other_photos_sizes_and_noise(demo, tmp_path):
    photos = plan_photos(3, SCALE)[:3]
    for photo in photos:
        (tmp_path / photo.fpath).parent.mkdir(parents=True, exist_ok=True)
    generate.DrawPhotos(tmp_path, 4)(photos, lambda num_photos: None)
    assert all((tmp_path / p.fpath).read_bytes() != (demo / p.fpath).read_bytes() for p in photos)
    assert [p.label for p in plan_photos(3)] != [p.label for p in plan_photos(4)]
    assert [p.true_label for p in plan_photos(3)] != [p.true_label for p in plan_photos(4)]


def test_complete_means_every_file_of_this_seed(demo, tmp_path):
    assert demo_is_complete(demo, 3, SCALE)
    assert not demo_is_complete(demo, 4, SCALE)
    assert not demo_is_complete(demo, 3)
    assert not demo_is_complete(tmp_path / 'nowhere', 3)


def test_complete_data_is_not_changed(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob('*')}
    generate_demo(demo, seed=3, num_workers=1, scale=SCALE)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob('*')} == before


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_interrupted_generation_writes_nothing(tmp_path, monkeypatch, without_drawing, error):
    calls = iter(range(10**6))

    def interrupted(*_):
        if next(calls) == 40:
            raise error
        return b'photo'

    monkeypatch.setattr(generate, 'photograph', interrupted)
    with pytest.raises(error):
        generate_demo(tmp_path / 'set', seed=3, num_workers=1, scale=SCALE)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_error_line_and_writes_nothing(tmp_path, monkeypatch, without_drawing):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(generate, 'photograph', full)
    with pytest.raises(UserError, match='set: No space left on device; free some disk space'):
        generate_demo(tmp_path / 'set', seed=3, num_workers=1, scale=SCALE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_incomplete_data_and_other_seeds_are_replaced(tmp_path, without_drawing):
    root = tmp_path / 'set'
    root.mkdir()  # an empty folder is used
    generate_demo(root, seed=3, num_workers=1, scale=SCALE)
    complete = files(root)
    next(root.rglob('*.jpg')).unlink()
    assert not demo_is_complete(root, 3, SCALE)
    generate_demo(root, seed=3, num_workers=1, scale=SCALE)
    assert files(root) == complete
    generate_demo(root, seed=4, num_workers=1, scale=SCALE)
    assert demo_is_complete(root, 4, SCALE)
    assert [path.name for path in tmp_path.iterdir()] == ['set']


@pytest.mark.parametrize('foreign', ['notes.txt', 'images/a.jpg', 'images/train/Mine/000.jpg', 'images/train/a/b/c'])
@pytest.mark.parametrize('beside_a_demo_set', [True, False])
@pytest.mark.long
def test_a_folder_with_foreign_files_is_refused_and_not_changed(tmp_path, without_drawing, foreign, beside_a_demo_set):
    root = tmp_path / 'set'
    if beside_a_demo_set:
        generate_demo(root, seed=4, num_workers=1, scale=SCALE)
    (root / foreign).parent.mkdir(parents=True, exist_ok=True)
    (root / foreign).write_text('mine')
    before = files(root)
    with pytest.raises(UserError, match='which is no demo data'):
        generate_demo(root, seed=3, num_workers=1, scale=SCALE)
    assert files(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ['set']


def test_lists_of_another_dataset_are_no_demo_data(tmp_path, without_drawing):
    (tmp_path / 'converted_train.json').write_text('{}')
    with pytest.raises(UserError, match=r'contains converted_train\.json'):
        generate_demo(tmp_path, seed=3, num_workers=1, scale=SCALE)
    assert files(tmp_path) == {'converted_train.json': b'{}'}


def test_a_file_at_the_path_of_the_folder_is_refused(tmp_path, without_drawing):
    (tmp_path / 'set').write_text('mine')
    with pytest.raises(UserError, match='is a file'):
        generate_demo(tmp_path / 'set', seed=3, num_workers=1, scale=SCALE)
    assert (tmp_path / 'set').read_text() == 'mine'


def test_old_temporary_folders_of_killed_processes_are_removed(tmp_path, without_drawing):
    old, young, other = (tmp_path / name for name in ('.set.0123abcd.tmp', '.set.89abcdef.tmp', '.set.mine.tmp'))
    for folder in (old, young, other):
        folder.mkdir()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    generate_demo(tmp_path / 'set', seed=3, num_workers=1, scale=SCALE)
    assert {path.name for path in tmp_path.iterdir()} == {'set', young.name, other.name}


def test_progress_in_a_pipe_is_one_line(tmp_path, without_drawing, capsys, caplog):
    with caplog.at_level('INFO', LOGGER.name):
        generate_demo(tmp_path / 'set', seed=3, num_workers=1, scale=SCALE)
    number = len(plan_photos(3, SCALE))
    assert caplog.messages == [f'drawing {number} photos of {len(PRODUCTS)} products into {tmp_path / "set"} (once)']
    assert capsys.readouterr() == ('', '')
