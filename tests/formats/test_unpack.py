import io
import tarfile
import zipfile

import pytest

from lib.errors import UserError
from lib.formats.unpack import find_folder_with, link_into, unpack, unpack_once


def tar(path, *members, mode='w'):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            else:
                member.type, member.linkname = content
            archive.addfile(member, io.BytesIO(content if isinstance(content, bytes) else b''))
    return path


def zipped(path, *members):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('kind', ['tar', 'tar.gz', 'tar.xz', 'zip'])
def test_folders_are_merged_and_files_replaced(tmp_path, kind):
    members = [('train/1/a.jpg', b'new'), ('train/2/b.jpg', b'b')]
    archive = tmp_path / f'x.{kind}'
    if kind == 'zip':
        zipped(archive, *members)
    else:
        tar(archive, *members, mode={'tar': 'w', 'tar.gz': 'w:gz', 'tar.xz': 'w:xz'}[kind])
    out = tmp_path / 'out'
    (out / 'train' / '1').mkdir(parents=True)
    (out / 'train' / '1' / 'a.jpg').write_bytes(b'old')
    (out / 'train' / '1' / 'kept.jpg').write_bytes(b'kept')
    unpack(archive, out)
    expected = {'train/1/a.jpg': b'new', 'train/1/kept.jpg': b'kept', 'train/2/b.jpg': b'b'}
    assert contents(out) == expected
    assert [path.name for path in out.iterdir()] == ['train']


def test_hard_links_within_an_archive_are_unpacked(tmp_path):
    archive = tar(tmp_path / 'x.tar', ('a/x', b'1'), ('a/y', b'2'), ('a/z', (tarfile.LNKTYPE, 'a/x')))
    unpack(archive, tmp_path / 'out')
    assert contents(tmp_path / 'out') == {'a/x': b'1', 'a/y': b'2', 'a/z': b'1'}


@pytest.mark.parametrize(
    'member',
    [
        ('/etc/evil', b'x'),
        ('../evil', b'x'),
        ('a/../../evil', b'x'),
        ('C:\\evil', b'x'),
        ('..\\evil', b'x'),
        ('link', (tarfile.SYMTYPE, '/etc/passwd')),
        ('link', (tarfile.SYMTYPE, '../../outside')),
        ('link', (tarfile.LNKTYPE, '../../outside')),
        ('device', (tarfile.CHRTYPE, '')),
    ],
)
def test_archives_with_members_outside_are_refused(tmp_path, member):
    archives = [tar(tmp_path / 'x.tar', ('good', b'x'), member)]
    if isinstance(member[1], bytes):
        archives.append(zipped(tmp_path / 'x.zip', ('good', b'x'), member))
    for archive in archives:
        with pytest.raises(UserError, match='refused'):
            unpack(archive, tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []
    assert not (tmp_path / 'evil').exists()


def test_a_symbolic_link_then_a_file_through_it(tmp_path):
    (tmp_path / 'victim').mkdir()
    archive = tar(tmp_path / 'x.tar', ('d', (tarfile.SYMTYPE, str(tmp_path / 'victim'))), ('d/evil', b'x'))
    with pytest.raises(UserError, match='refused'):
        unpack(archive, tmp_path / 'out')
    assert list((tmp_path / 'victim').iterdir()) == []


def test_damaged_archives(tmp_path):
    whole = tar(tmp_path / 'x.tar.gz', ('a', b'x' * 100_000), mode='w:gz').read_bytes()
    (tmp_path / 'cut.tar.gz').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'text.zip').write_text('no archive')
    (tmp_path / 'empty.tar').touch()
    content = bytearray(zipped(tmp_path / 'x.zip', ('a', b'hello hello')).read_bytes())
    content[content.index(b'hello')] ^= 1
    (tmp_path / 'flipped.zip').write_bytes(content)
    for name in ('cut.tar.gz', 'text.zip', 'empty.tar', 'flipped.zip', 'absent.tar'):
        with pytest.raises(UserError, match=name):
            unpack(tmp_path / name, tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_archives_are_unpacked_once(tmp_path, capsys):
    source, out = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    out.mkdir()
    tar(source / 'a.tar', ('train/a', b'a'))
    zipped(source / 'b.zip', ('val/b', b'b'))
    (source / 'notes.txt').touch()
    unpack_once(source, out)
    assert {'train/a', 'val/b'} < set(contents(out))
    capsys.readouterr()
    unpack_once(source, out)
    assert capsys.readouterr().out.count('was unpacked before') == 2
    tar(source / 'a.tar', ('train/a', b'changed'))
    unpack_once(source, out)
    assert contents(out)['train/a'] == b'changed'


def test_find_folder_with_returns_the_shallowest(tmp_path):
    for folder in ('x/y/z', 'x/b', 'x/a/deep', '.hidden', 'train'):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / 'mark').touch()
    assert find_folder_with(tmp_path, ('mark',)) == tmp_path / 'train'
    (tmp_path / 'train' / 'mark').unlink()
    assert find_folder_with(tmp_path, ('mark',)) == tmp_path / 'x' / 'b'
    assert find_folder_with(tmp_path, ('mark', 'other')) is None
    assert find_folder_with(tmp_path / 'absent', ('mark',)) is None


def test_links_are_replaced_but_nothing_else(tmp_path):
    for name in ('one', 'two'):
        (tmp_path / name / 'train').mkdir(parents=True)
        link_into(tmp_path / name, ['train', 'val'], tmp_path / 'out')
        assert (tmp_path / 'out' / 'train').resolve() == tmp_path / name / 'train'
    assert not (tmp_path / 'out' / 'val').exists()
    (tmp_path / 'full' / 'train').mkdir(parents=True)
    with pytest.raises(UserError, match='exists and is no link'):
        link_into(tmp_path / 'one', ['train'], tmp_path / 'full')


def test_archives_that_unpack_to_far_more_than_their_bytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('lib.formats.unpack._FREE_BYTES', 10_000)
    zeros = bytes(10_000_000)
    bombs = [
        tar(tmp_path / 'x.tar.gz', ('a', zeros), mode='w:gz'),
        tar(tmp_path / 'x.tar.bz2', ('a', zeros), mode='w:bz2'),
    ]
    bombs.append(tar(tmp_path / 'many.tar.xz', *((str(number), b'') for number in range(2000)), mode='w:xz'))
    bombs.append(tmp_path / 'x.zip')
    with zipfile.ZipFile(bombs[-1], 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('a', zeros)
    for archive in bombs:
        with pytest.raises(UserError, match='refused, it unpacks to more than'):
            unpack(archive, tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []
    unpack(tar(tmp_path / 'json.tar.gz', ('a', b'{"a": 1}' * 100), mode='w:gz'), tmp_path / 'out')
