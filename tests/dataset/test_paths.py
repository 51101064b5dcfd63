"""The rule for the paths of an annotation file, chosen once per file."""

import os
import pickle

import pyarrow as pa
import pytest

from lib.dataset.paths import PathColumn, choose_path_rule
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
