"""How the paths of an annotation file are read: settled once a file."""

import os
import pickle

import pyarrow as pa
import pytest

from lib.dataset.paths import PathColumn, settle_paths
from lib.errors import UserError


@pytest.fixture
def root(tmp_path):
    """A folder with images 0.jpg to 39.jpg in train/1 and one beside."""
    folder = tmp_path / 'photos'
    (folder / 'train' / '1').mkdir(parents=True)
    for number in range(40):
        (folder / 'train' / '1' / f'{number}.jpg').touch()
    (folder / 'flat.jpg').touch()
    return folder


def written(prefix, separator='/'):
    return [prefix + separator.join(['train', '1', f'{number}.jpg']) for number in range(40)]


def settle(paths, root):
    column = PathColumn(pa.array(paths, pa.large_string()))
    rule, note = settle_paths(column, str(root), 'x.json')
    assert column.to_pylist() == paths
    return column.read_by(rule).to_pylist(), note


def opened(paths, root):
    return [os.path.exists(os.path.join(root, path)) for path in paths]


def test_relative_paths_stay(root):
    assert settle(written(''), root) == (written(''), '')


def test_relative_paths_without_a_root_are_under_the_current_folder(root, monkeypatch):
    monkeypatch.chdir(root)
    assert settle(written(''), '') == (written(''), '')


def test_absolute_paths_that_exist_stay(root, tmp_path):
    paths = written(f'{root}/')
    found, note = settle(paths, tmp_path / 'elsewhere')
    assert found == paths
    assert 'taken as they are' in note


@pytest.mark.parametrize(
    'prefix',
    [
        '/',  # absolute by mistake: under the root as it is
        '/data/',
        '/home/somebody/AliProducts/data/',
        '//server/share/',
        '/home//somebody///',
        '/a/b/c/d/e/f/g/h/',
        'C:/Users/me/',
    ],
)
def test_absolute_paths_of_another_machine(root, prefix):
    found, note = settle(written(prefix), root)
    assert found == written('')
    assert note.startswith('x.json: ')
    assert f'under {root}' in note
    assert all(opened(found, root))


@pytest.mark.parametrize('prefix', ['C:\\', 'd:\\Users\\me\\photos\\', '\\\\server\\share\\'])
def test_absolute_paths_of_windows(root, prefix):
    found, note = settle(written(prefix, '\\'), root)
    assert [path.replace(os.sep, '/') for path in found] == written('')
    assert f'under {root}' in note
    assert all(opened(found, root))


def test_the_root_may_be_named_inside_the_path(root):
    """photos/ is the root, and the other machine's paths lead through a photos/ of its own."""
    assert settle(written('/mnt/photos/'), root)[0] == written('')


def test_as_few_folders_as_possible_are_taken_off(root):
    (root / 'far' / 'train' / '1').mkdir(parents=True)
    (root / 'far' / 'train' / '1' / '0.jpg').touch()
    assert settle(written('/x/far/'), root)[0] == written('far/')


def test_relative_paths_among_others_stay(root):
    found, _ = settle(['flat.jpg', *written('/other/')], root)
    assert found == ['flat.jpg', *written('')]


def test_backslashes_in_names_of_this_system_stay(root):
    if os.sep == '\\':
        pytest.skip('a backslash is a separator here')
    (root / 'train' / '1' / 'a\\b.jpg').touch()
    assert settle(['/other/train/1/a\\b.jpg'], root)[0] == ['train/1/a\\b.jpg']


def test_a_few_missing_images_do_not_matter(root):
    for number in range(1, 40):
        (root / 'train' / '1' / f'{number}.jpg').unlink()
    assert settle(written(''), root) == (written(''), '')
    assert settle(written('/other/'), root)[0] == written('')


@pytest.mark.parametrize('prefix', ['', '/other/', 'C:\\'])
def test_none_there_is_an_error_that_names_one(tmp_path, prefix):
    with pytest.raises(UserError) as caught:
        settle(written(prefix), tmp_path)
    message = str(caught.value)
    assert message.startswith('x.json: image ')
    assert repr(written(prefix)[0]) in message
    assert 'set DATASET.ROOT' in message


def test_a_column_in_several_pieces_of_memory(root):
    """A slice, as Arrow hands them out, is read like a whole column."""
    column = pa.array(['x', *written('/other/')], pa.large_string())[1:]
    rule, _ = settle_paths(column, str(root), 'x.json')
    assert PathColumn(column, rule).to_pylist() == written('')
    assert pickle.loads(pickle.dumps(PathColumn(column, rule))).to_pylist() == written('')
