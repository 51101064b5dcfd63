"""Files of several conversions: a mixture is one error line, and those of one conversion are used together."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest

from lib.builders.data import open_named_images, open_test_split, open_training_data, open_valid_split
from lib.dataset import annotations
from lib.dataset.annotations import read_annotations, read_classes, read_test_images
from lib.errors import UserError
from lib.formats.converted import ConvertedDataset, ConvertedSplit
from lib.formats.write import append_converted, write_converted
from lib.runtime import files
from lib.runtime.files import FILES_LOCK, finish_set
from lib.runtime.text import names_digest
from tests.builders.test_class_folders import config

NAMES = ('converted_train.json', 'converted_val.json', 'converted_test.json', 'classes.json')
OLD, NEW = ['milk', 'oats'], ['bread', 'milk', 'oats']


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


def dataset(root, classes, names=None, *, labeled_test=True):
    """A data set with an image of each class in each split: train/bread.jpg, ..."""
    splits = {}
    for split in ('train', 'val', 'test'):
        paths = [f'{split}/{name}.jpg' for name in names or classes]
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        labels = np.arange(len(paths), dtype=np.int32) if labeled_test or split != 'test' else None
        splits[split] = ConvertedSplit(paths, labels)
    return ConvertedDataset(splits, list(classes), None, root)


@pytest.fixture
def folders(tmp_path):
    """Two conversions with other classes."""
    for name, classes in {'old': OLD, 'new': NEW}.items():
        write_converted(dataset(tmp_path / name, classes), tmp_path / name)
    return tmp_path


def open_all(root):
    open_training_data(config(root))
    open_valid_split(config(root))
    open_test_split(config(root), json.loads((root / 'classes.json').read_text())['names'])


def test_files_of_one_conversion_are_opened(folders):
    open_all(folders / 'old')
    open_all(folders / 'new')


def test_every_file_carries_the_digest_of_the_class_names(folders):
    for name in NAMES[:3]:
        text = (folders / 'new' / name).read_text()
        assert text.endswith(f'],\n"num_classes": 3,\n"classes_digest": "{names_digest(NEW)}"}}\n')
    write_converted(dataset(folders / 'u', OLD, labeled_test=False), folders / 'u')
    assert (folders / 'u' / NAMES[2]).read_text().endswith(f'],\n"classes_digest": "{names_digest(OLD)}"}}\n')
    assert read_test_images(folders / 'u' / NAMES[2], 2).classes_digest == names_digest(OLD)


@pytest.mark.parametrize('new', [new for n in (1, 2, 3) for new in itertools.combinations(NAMES, n)])
@pytest.mark.parametrize('classes', [NEW, ['cola', 'milk']])
def test_each_mixture_is_an_error(folders, new, classes):
    """Also with the same number of classes, where no label is out of range."""
    write_converted(dataset(folders / 'new', classes), folders / 'new')
    mixed = shutil.copytree(folders / 'old', folders / 'mixed')
    for name in new:
        shutil.copy(folders / 'new' / name, mixed)
    with pytest.raises(UserError) as caught:
        open_all(mixed)
    assert '\n' not in str(caught.value)
    assert str(mixed) in str(caught.value)


def test_a_split_that_a_later_conversion_does_not_have(folders):
    """It stays, with a warning, and is an error where it is opened."""
    later = dataset(folders / 'old', NEW)
    del later.splits['test']
    write_converted(later, folders / 'old')
    assert 'is from an earlier conversion; the source has no such split' in later.warnings[0]
    open_training_data(config(folders / 'old'))
    with pytest.raises(UserError, match=r'converted_test.json: is of another conversion .* or remove the former'):
        open_test_split(config(folders / 'old'), NEW)
    (folders / 'old' / 'converted_test.json').unlink()
    append_converted(dataset(folders / 'old' / 'more', NEW), folders / 'old')
    open_all(folders / 'old')


def test_mixtures_without_class_names_beside_them(folders):
    """For example a validation file given by an option."""
    write_converted(dataset(folders / 'other', ['cola', 'milk']), folders / 'other')
    for name in ('old', 'other'):
        (folders / name / 'classes.json').unlink()
    options = config(folders / 'old', DATASET__VALID_JSON=str(folders / 'other' / NAMES[1]))
    with pytest.raises(UserError, match='were written with different class names; convert all images again, or give'):
        open_training_data(options)
    open_training_data(config(folders / 'old'))


def test_renamed_classes_are_an_error_with_advice(folders):
    (folders / 'old' / 'classes.json').write_text(json.dumps({'names': ['Milk', 'Oats']}))
    with pytest.raises(UserError, match='If you renamed classes: remove "classes_digest" at its end'):
        open_training_data(config(folders / 'old'))
    for path in (folders / 'old').glob('converted_*.json'):
        tree = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in tree.items() if key != 'classes_digest'}))
    open_all(folders / 'old')


@pytest.mark.parametrize('digest', [None, 7, 'x', '', [], {'a': [[]]}, 'F' * 64])
def test_files_made_elsewhere_may_have_anything_there(folders, digest):
    for name in NAMES[:3]:
        tree = json.loads((folders / 'old' / name).read_text())
        (folders / 'old' / name).write_text(json.dumps({**tree, 'classes_digest': digest}))
    open_all(folders / 'old')
    assert len(open_named_images(str(folders / 'old' / NAMES[0]), nested=False)[0]) == 2


def test_parents_and_the_form_of_accents_are_not_part_of_the_digest(tmp_path):
    write_converted(dataset(tmp_path, ['caf\u00e9', 'oats'], names=['a', 'b']), tmp_path)
    (tmp_path / 'classes.json').write_text(json.dumps({'names': ['cafe\u0301', 'oats'], 'parents': [['Drinks'], []]}))
    open_all(tmp_path)


def test_the_digest_is_cached(folders, monkeypatch):
    monkeypatch.setattr(annotations, 'CACHED_FROM_BYTES', 0)
    path = folders / 'old' / NAMES[0]
    for _ in range(2):
        assert read_annotations(path).classes_digest == names_digest(OLD)
    assert (path.parent / f'.{path.name}.arrow').exists()


def test_an_append_after_an_append_of_another_process(folders, monkeypatch):
    """The cache that the second one finds is of the files before the first."""
    monkeypatch.setattr(annotations, 'CACHED_FROM_BYTES', 0)
    folder = folders / 'old'
    read_annotations(folder / NAMES[0])
    cache = (folder / f'.{NAMES[0]}.arrow').read_bytes()
    appended(folder)
    (folder / f'.{NAMES[0]}.arrow').write_bytes(cache)
    append_converted(dataset(folder / 'yet more', ['cola']), folder)
    open_all(folder)
    assert len(read_annotations(folder / NAMES[0])) == 6


def appended(folder, classes=NEW):
    append_converted(dataset(folder / 'more', classes), folder)


def test_an_append_leaves_the_entries_and_renews_all_digests(folders):
    """Also of files of an older version, without a digest."""
    folder = folders / 'old'
    before = {name: (folder / name).read_text() for name in NAMES[:3]}
    for name, text in before.items():
        before[name] = text.replace(f',\n"classes_digest": "{names_digest(OLD)}"', '')
        assert before[name] != text
    (folder / NAMES[0]).write_text(before[NAMES[0]])
    appended(folder)
    names = [*OLD, 'bread']
    for name, text in before.items():
        old, end = text.split('\n],')
        assert end == '\n"num_classes": 2}\n'
        new = (folder / name).read_text()
        assert new.startswith(old + ',\n')
        assert new.endswith(f'],\n"num_classes": 3,\n"classes_digest": "{names_digest(names)}"}}\n')
    open_all(folder)
    classes = read_classes(folder / 'classes.json', 3)
    assert classes is not None
    assert classes.names == names


def test_an_append_to_a_mixture_is_an_error(folders):
    write_converted(dataset(folders / 'other', ['cola', 'milk']), folders / 'other')
    shutil.copy(folders / 'other' / NAMES[1], folders / 'old')
    with pytest.raises(UserError, match='is of another conversion than classes'):
        appended(folders / 'old')


def test_an_append_to_no_set_makes_no_folder(tmp_path):
    with pytest.raises(UserError, match='no such file; --append needs a folder that was converted before'):
        append_converted(dataset(tmp_path / 'more', NEW), tmp_path / 'missing')
    assert os.listdir(tmp_path) == ['more']


def killed(folder, number, work):
    """Run `work` in a fork that is killed at an operation; return True if it came to its end before."""
    child = os.fork()
    if not child:
        left = [number]

        def hook(event, path):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), 9)

        files.on_operation = hook
        try:
            work(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize('is_append', [True, False])
@pytest.mark.parametrize('every', [pytest.param(1, marks=pytest.mark.slow), 5])
def test_the_same_command_after_a_kill_gives_the_bytes_of_an_undisturbed_one(folders, is_append, every):
    """And a reader meets all old or all new files at any time."""

    def work(folder):
        if is_append:
            appended(folder)
        else:
            write_converted(dataset(folder, ['cola', 'milk', 'water']), folder)

    def content(folder):
        return {name: (folder / name).read_bytes() for name in NAMES}

    old = content(folders / 'old')
    expected = shutil.copytree(folders / 'old', folders / 'expected')
    work(expected)
    number, ended = 0, False
    while not ended:
        folder = shutil.copytree(folders / 'old', folders / f'killed_{number}')
        ended = killed(folder, number, work)
        if number % 2:
            open_all(folder)  # a reader completes the set
        finish_set(folder)
        assert content(folder) in (old, content(expected)), number
        work(folder)
        assert content(folder) == content(expected), number
        left = {path.name for path in folder.iterdir() if path.name.startswith('.')}
        assert not left - {FILES_LOCK}, number
        number += every
    assert number > 20
