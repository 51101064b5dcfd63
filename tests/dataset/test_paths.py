"""The rule for the paths of an annotation file, chosen once per file."""

import os
import pickle
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest

from lib.dataset.images import FileImages
from lib.dataset.paths import PathColumn, choose_path_rule, comparable_paths, spelled_on_disk
from lib.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Create a folder with images 0.jpg to 39.jpg in train/1 and flat.jpg."""
    folder = tmp_path / 'photos'
    (folder / 'train' / '1').mkdir(parents=True)
    for number in range(40):
        (folder / 'train' / '1' / f'{number}.jpg').touch()
    (folder / 'flat.jpg').touch()
    return folder


def written(prefix, separator='/'):
    return [prefix + separator.join(['train', '1', f'{number}.jpg']) for number in range(40)]


def resolved(paths, root):
    column = PathColumn(pa.array(paths, pa.large_string()))
    rule, line = choose_path_rule(column, str(root), 'x.json')
    assert column.to_pylist() == paths
    return column.with_rule(rule).to_pylist(), line


def opened(paths, root):
    return [os.path.exists(os.path.join(root, path)) for path in paths]


def test_relative_paths_are_unchanged(root):
    assert resolved(written(''), root) == (written(''), '')


def test_relative_paths_without_a_root_are_under_the_current_folder(root, monkeypatch):
    monkeypatch.chdir(root)
    assert resolved(written(''), '') == (written(''), '')


def test_existing_absolute_paths_are_unchanged(root, tmp_path):
    paths = written(f'{root}/')
    found, line = resolved(paths, tmp_path / 'elsewhere')
    assert found == paths
    assert 'used unchanged' in line


@pytest.mark.parametrize(
    'prefix',
    [
        '/',  # absolute by mistake: the rest is under the root
        '/data/',
        '/home/somebody/AliProducts/data/',
        '//server/share/',
        '/home//somebody///',
        '/a/b/c/d/e/f/g/h/',
        'C:/Users/me/',
    ],
)
def test_absolute_paths_of_another_machine(root, prefix):
    found, line = resolved(written(prefix), root)
    assert found == written('')
    assert line.startswith('x.json: ')
    assert f'under {root}' in line
    assert all(opened(found, root))


@pytest.mark.parametrize('prefix', ['C:\\', 'd:\\Users\\me\\photos\\', '\\\\server\\share\\'])
def test_absolute_paths_of_windows(root, prefix):
    found, line = resolved(written(prefix, '\\'), root)
    assert [path.replace(os.sep, '/') for path in found] == written('')
    assert f'under {root}' in line
    assert all(opened(found, root))


def test_the_path_may_contain_the_name_of_the_root(root):
    """The root is photos/, and the paths of the other machine contain a photos/ folder too."""
    assert resolved(written('/mnt/photos/'), root)[0] == written('')


def test_as_few_folders_as_possible_are_removed(root):
    (root / 'far' / 'train' / '1').mkdir(parents=True)
    (root / 'far' / 'train' / '1' / '0.jpg').touch()
    assert resolved(written('/x/far/'), root)[0] == written('far/')


def test_relative_paths_among_absolute_ones_are_unchanged(root):
    found, _ = resolved(['flat.jpg', *written('/other/')], root)
    assert found == ['flat.jpg', *written('')]


def test_backslashes_in_file_names_of_this_system_are_unchanged(root):
    if os.sep == '\\':
        pytest.skip('a backslash is a separator here')
    (root / 'train' / '1' / 'a\\b.jpg').touch()
    assert resolved(['/other/train/1/a\\b.jpg'], root)[0] == ['train/1/a\\b.jpg']


def test_a_few_missing_images_do_not_matter(root):
    for number in range(1, 40):
        (root / 'train' / '1' / f'{number}.jpg').unlink()
    assert resolved(written(''), root) == (written(''), '')
    assert resolved(written('/other/'), root)[0] == written('')


@pytest.mark.parametrize('prefix', ['', '/other/', 'C:\\'])
def test_the_error_for_missing_images_names_one(tmp_path, prefix):
    with pytest.raises(UserError) as caught:
        resolved(written(prefix), tmp_path)
    message = str(caught.value)
    assert message.startswith('x.json: image ')
    assert repr(written(prefix)[0]) in message
    assert 'do not exist' in message


def test_a_slice_of_a_column(root):
    """A slice with an offset into its Arrow buffers is read like a whole column."""
    column = pa.array(['x', *written('/other/')], pa.large_string())[1:]
    rule, _ = choose_path_rule(column, str(root), 'x.json')
    assert PathColumn(column, rule).to_pylist() == written('')
    assert pickle.loads(pickle.dumps(PathColumn(column, rule))).to_pylist() == written('')


FOLDERS, NAMES = (
    ['caf\u00e9', 'plain', '\u00c5ngstr\u00f6m/\ud55c\uae00'],
    ['cr\u00e8me br\u00fbl\u00e9e.jpg', 'x.jpg', '\u1e69.jpg'],
)
SPELLED = {
    'as given': str,
    'composed': lambda path: unicodedata.normalize('NFC', path),
    'decomposed': lambda path: unicodedata.normalize('NFD', path),
    'folders decomposed': lambda path: unicodedata.normalize('NFD', str(Path(path).parent)) + '/' + Path(path).name,
    'one accent decomposed': lambda path: path.replace('\u00e9', 'e\u0301', 1).replace('\u1e69', 's\u0323\u0307'),
    'marks in another order': lambda path: path.replace('\u1e69', 's\u0307\u0323'),
    'backslashes': lambda path: path.replace('/', '\\'),
    'decomposed, backslashes': lambda path: unicodedata.normalize('NFD', path).replace('/', '\\'),
    'from the root with backslashes': lambda path: '\\' + path.replace('/', '\\'),
}  # fmt: skip


def spelled_photos(root, spell):
    """Write a file per path, whose content is its number, with folders and names spelled as `spell` does."""
    paths = [f'{folder}/{name}' for folder in FOLDERS for name in NAMES]
    for number, path in enumerate(paths):
        file = root / spell(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(number))
    return paths


@pytest.mark.skipif(sys.platform != 'linux', reason='other file systems compare names under NFC themselves')
@pytest.mark.parametrize('on_disk', [name for name in SPELLED if 'backslash' not in name])
@pytest.mark.parametrize('annotated', SPELLED)
def test_every_spelling_of_a_path_opens_its_file(tmp_path, on_disk, annotated):
    root = tmp_path / 'Fotos a\u0300'
    paths = spelled_photos(root, SPELLED[on_disk])
    column = PathColumn(pa.array(map(SPELLED[annotated], paths), pa.large_string()))
    rule, _ = choose_path_rule(column, str(root), 'x.json')
    images = FileImages(column.with_rule(rule), str(root))
    assert [images.read(row).decode() for row in range(len(paths))] == [str(row) for row in range(len(paths))]


@pytest.mark.skipif(os.sep == '\\', reason='a backslash is always a separator here')
def test_mixed_separators(root):
    paths = [path if row % 3 else path.replace('/', '\\') for row, path in enumerate(written(''))]
    column = PathColumn(pa.array(paths, pa.large_string()))
    rule, line = choose_path_rule(column, str(root), 'x.json')
    assert column.with_rule(rule).to_pylist() == written('')
    assert line == 'x.json: backslashes in paths separate folders'
    # A file that has a backslash in its name is that file.
    (root / 'train\\1\\0.jpg').write_text('other')
    rule, line = choose_path_rule(column, str(root), 'x.json')
    images = FileImages(column.with_rule(rule), str(root))
    assert (line, images.read(0), images.read(3)) == ('', b'other', b'')


@pytest.mark.skipif(sys.platform != 'linux', reason='other file systems compare names under NFC themselves')
def test_two_files_that_are_equal_under_nfc_are_both_read(tmp_path):
    for name in ('caf\u00e9.jpg', 'cafe\u0301.jpg'):
        (tmp_path / name).write_text(ascii(name))
        assert FileImages([name], str(tmp_path)).read(0).decode() == ascii(name)


@pytest.mark.skipif(sys.platform != 'linux', reason='other file systems compare names under NFC themselves')
def test_folders_that_are_equal_under_nfc_are_all_searched(tmp_path):
    folders = ['caf\u00e9 cr\u00e8me', 'cafe\u0301 cre\u0300me', 'caf\u00e9 cre\u0300me']
    for number, folder in enumerate(folders):
        (tmp_path / folder / 'x').mkdir(parents=True)
        (tmp_path / folder / 'x' / f'e\u0301{number}.jpg').write_text(str(number))
    for folder in folders:
        for number in range(3):
            assert FileImages([f'{folder}/x/\u00e9{number}.jpg'], str(tmp_path)).read(0).decode() == str(number)


def test_a_file_that_does_not_exist_in_any_spelling(tmp_path):
    spelled_photos(tmp_path, str)
    for path in (
        'caf\u00e9/other.jpg',
        'cafe/x.jpg',
        'caf\u00e9/x.jpg/y.jpg',
        'caf\\x.jpg',
        '\ud800.jpg',
        'caf\u00e9\0.jpg',
        '\u00e9/\u00e9/\u00e9.jpg',
    ):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            FileImages([path], str(tmp_path)).read(0)


def test_the_listing_of_a_folder_is_read_again_when_it_changes(tmp_path):
    (tmp_path / 'caf\u00e9').mkdir()
    assert spelled_on_disk(str(tmp_path / 'cafe\u0301' / '\u00e9\u1e69.jpg')) is None
    os.utime(tmp_path / 'caf\u00e9', (0, 0))
    (tmp_path / 'caf\u00e9' / 'e\u0301\u1e69.jpg').touch()
    assert spelled_on_disk(str(tmp_path / 'cafe\u0301' / '\u00e9\u1e69.jpg')) == str(
        tmp_path / 'caf\u00e9' / 'e\u0301\u1e69.jpg'
    )


@pytest.mark.parametrize('kind', [pa.string(), pa.large_string()])
def test_comparable_paths(kind):
    texts = ['a', '', 'a\\e\u0301\\b', 'caf\u00e9', 'cafe\u0301', '\u0301', '\u1100\u1161', 's\u0307\u0323']
    for start in range(len(texts)):
        column = pa.array(['x', *texts], kind)[start:]
        expected = [unicodedata.normalize('NFC', text).replace('\\', '/') for text in ['x', *texts][start:]]
        assert comparable_paths(column).to_pylist() == expected
    composed = pa.array(['a', 'caf\u00e9', ''], kind)
    assert comparable_paths(composed) is composed
    assert len(comparable_paths(pa.array([], kind))) == 0
