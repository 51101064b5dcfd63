"""Which files and folders are read: decided by content, counted and named where they are left out."""

import builtins
import errno
import inspect
import io
import os
import random
import socket
import sys
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from lib.dataset import image_walk
from lib.dataset.image_walk import ImageWalk, left_out_lines
from lib.dataset.paths import TextPathRule, path_as_text, path_from_text
from lib.errors import UserError

LINKS = hasattr(os, 'mkfifo')


def image_bytes(name: str = 'JPEG') -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8), 'red').save(buffer, name)
    return buffer.getvalue()


JPEG = image_bytes()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def images_of(root: Path) -> tuple[list[str], list[str]]:
    walk = ImageWalk(root)
    return list(walk.images()), left_out_lines(walk, 1)


UNUSUAL = ['a', 'a.dat', 'a.jpg_large', 'a.jpg!w800', 'IMG 1.v2 of it', 'a.html', 'a.JPG~', 'a.jpg ', 'a.txt', 'x.b/a']


@pytest.mark.parametrize('name', ['JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'AVIF', 'JPEG2000'])
def test_content_decides_where_the_extension_does_not(tmp_path, name):
    fill(tmp_path, {f'{number}/{file}': image_bytes(name) for number, file in enumerate(UNUSUAL)})
    fill(tmp_path, {f'{number}/other': b'no image' for number in range(len(UNUSUAL))})
    assert images_of(tmp_path)[0] == [f'{number}/{file}' for number, file in enumerate(UNUSUAL)]


@pytest.mark.parametrize('extension', ['jpg', 'JPEG', 'Jpe', 'jfif', 'avif', 'jp2', 'HEIC', 'heif', 'tif'])
def test_files_with_extensions_of_images_are_not_opened(tmp_path, extension, monkeypatch):
    fill(tmp_path, {f'c/a.{extension}': b'', 'c/b.csv': b'', 'c/c.cr2': b'II*\0'})
    opened = []
    monkeypatch.setattr(builtins, 'open', lambda path, *args, **options: opened.append(path) or io.BytesIO(b''))
    assert images_of(tmp_path)[0] == [f'c/a.{extension}']
    assert [os.path.basename(path) for path in opened] == ['b.csv']


def test_few_files_are_opened_beside_millions_of_labels(tmp_path, monkeypatch):
    fill(tmp_path, {f'c/{number}.{end}': b'' for number in range(30) for end in ('jpg', 'txt', 'json')})
    opened = []
    monkeypatch.setattr(builtins, 'open', lambda path, *args, **options: opened.append(path) or io.BytesIO(b''))
    images, lines = images_of(tmp_path)
    assert len(images) == 30
    assert len(opened) == 2 * image_walk._MAX_OPENED
    assert lines == [f'{tmp_path}: 60 files left out: 30 .json, 30 .txt', '  c: 60 (0.json, 0.txt, 1.json, ...)']


def test_if_one_text_file_is_an_image_all_are_opened(tmp_path):
    fill(tmp_path, {f'c/{number:02}.txt': JPEG if number % 2 else b'text' for number in range(30)})
    assert images_of(tmp_path)[0] == [f'c/{number:02}.txt' for number in range(1, 30, 2)]


def test_what_is_left_out_is_counted_and_named_per_class(tmp_path):
    fill(
        tmp_path,
        {
            'cola/1.jpg': JPEG,
            'cola/notes.txt': b'x',
            'cola/old/video.mp4': b'\0\0\0\x18ftypisom',
            'cola/old/.photo.jpg': JPEG,
            'tea/2.jpg': JPEG,
            'tea/raw.CR2': b'II*\0',
            'tea/empty': b'',
            'milk/.DS_Store': b'x',
            'milk/Thumbs.db': b'x',
            'milk/desktop.ini': b'x',
            'milk/._3.jpg': JPEG,
            'milk/3.jpg': JPEG,
        },
    )
    images, lines = images_of(tmp_path)
    assert images == ['cola/1.jpg', 'milk/3.jpg', 'tea/2.jpg']
    assert lines == [
        f'{tmp_path}: 9 files left out: 1 .cr2, 1 .mp4, 1 .txt, 2 others, 4 of file managers',
        '  cola: 3 (notes.txt, old/.photo.jpg, old/video.mp4)',
        '  tea: 2 (empty, raw.CR2)',
    ]


def test_many_classes_take_few_lines(tmp_path):
    fill(tmp_path, {f'c{number}/{file}': b'x' for number in range(25) for file in 'abcde'})
    lines = images_of(tmp_path)[1]
    assert lines[0] == f'{tmp_path}: 125 files left out: 125 without extension'
    assert lines[1:3] == ['  c0: 5 (a, b, c, ...)', '  c1: 5 (a, b, c, ...)']
    assert lines[-1] == '  and in 15 more folders'
    assert len(lines) == 12


SYSTEM_FOLDERS = ['@eaDir', '#recycle', '$RECYCLE.BIN', 'lost+found', '.thumbnails', '__MACOSX', '.git',
                  '.ipynb_checkpoints', 'System Volume Information', '@EADIR', '.Trash-1000', '@Recycle']  # fmt: skip


@pytest.mark.parametrize('name', SYSTEM_FOLDERS)
def test_folders_of_systems_are_not_read_at_any_depth(tmp_path, name):
    fill(tmp_path, {f'{name}/a.jpg': JPEG, f'c/{name}/1.jpg/thumb.jpg': JPEG, 'c/1.jpg': JPEG})
    images, lines = images_of(tmp_path)
    assert images == ['c/1.jpg']
    assert lines == [f'{tmp_path}: folders left out: {name} (2)']


@pytest.mark.skipif(not LINKS, reason='needs links and pipes')
def test_links_to_parent_folders_are_not_followed(tmp_path):
    root = fill(tmp_path / 'a' / 'root', {'cola/1.jpg': JPEG, 'cola/in/2.jpg': JPEG, 'tea/3.jpg': JPEG})
    fill(tmp_path, {'beside/4.jpg': JPEG, 'a/5.jpg': JPEG, 'elsewhere/deep/6.jpg': JPEG})
    targets = {'in/here': '.', 'in/up': '..', 'in/root': '../..', 'above': '../../..', 'top': tmp_path, 'slash': '/'}
    for name, target in targets.items():
        (root / 'cola' / name).symlink_to(target)
    (root / 'all').symlink_to(root)
    # Followed: a folder outside, of which one link leads to its own parent, and one back into the data.
    (root / 'tea' / 'more').symlink_to(tmp_path / 'elsewhere' / 'deep')
    (tmp_path / 'elsewhere' / 'deep' / 'parent').symlink_to('..')
    (tmp_path / 'elsewhere' / 'deep' / 'back').symlink_to(root)
    # Also followed: a class beside this one.
    (root / 'milk').symlink_to('tea')
    images, lines = images_of(root)
    expected = ['cola/1.jpg', 'cola/in/2.jpg', 'milk/3.jpg', 'milk/more/6.jpg', 'tea/3.jpg', 'tea/more/6.jpg']
    assert images == expected
    assert lines[0] == f'{root}: 11 files left out: 11 parent links'
    for walked in (root / '..' / 'root', Path(os.path.relpath(root))):
        assert images_of(walked)[0] == expected
    (tmp_path / 'link').symlink_to(root)
    assert images_of(tmp_path / 'link')[0] == expected


@pytest.mark.skipif(not LINKS, reason='needs links and pipes')
def test_a_class_that_is_a_link_is_read_from_its_own_walk(tmp_path):
    root = fill(tmp_path / 'root', {'tea/1.jpg': JPEG})
    (root / 'cola').symlink_to(root)
    (root / 'milk').symlink_to(tmp_path)
    walk = ImageWalk(root)
    assert [list(walk.images(name)) for name in ('cola', 'milk', 'tea')] == [[], [], ['tea/1.jpg']]
    assert left_out_lines(walk, 1)[1] == '  .: 2 (cola, milk)'


@pytest.mark.skipif(not LINKS, reason='needs links and pipes')
def test_only_regular_files_are_read(tmp_path):
    folder = fill(tmp_path, {'c/1.jpg': JPEG, 'c/real': JPEG}) / 'c'
    os.mkfifo(folder / 'pipe.jpg')
    os.mkfifo(folder / 'pipe')
    (folder / 'broken.jpg').symlink_to('nowhere')
    (folder / 'circle').symlink_to('circle')
    (folder / 'device.jpg').symlink_to('/dev/zero')
    (folder / 'link').symlink_to('real')
    with socket.socket(socket.AF_UNIX) as listener:
        old = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        try:
            listener.bind('socket.png')
        finally:
            os.chdir(old)
        images, lines = images_of(tmp_path)
    assert images == ['c/1.jpg', 'c/link', 'c/real']
    assert lines[0] == f'{tmp_path}: 6 files left out: 4 pipes or devices, 2 broken links'


def test_folders_and_files_without_permission(tmp_path, monkeypatch):
    fill(tmp_path, {'a/1.jpg': JPEG, 'b/2.jpg': JPEG, 'b/secret': JPEG})
    scandir, opened = os.scandir, builtins.open

    def refuse_folder(path):
        if os.fspath(path).endswith('/a'):
            raise PermissionError(errno.EACCES, 'Permission denied', path)
        return scandir(path)

    def refuse_file(path, *args, **options):
        if os.fspath(path).endswith('secret'):
            raise PermissionError(errno.EACCES, 'Permission denied', path)
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'scandir', refuse_folder)
        with pytest.raises(UserError, match=r'a: the folder cannot be read \(permission denied\)'):
            images_of(tmp_path)
    monkeypatch.setattr(builtins, 'open', refuse_file)
    assert images_of(tmp_path)[1][0] == f'{tmp_path}: 1 file left out: 1 unreadable'


def test_very_deep_folders(tmp_path):
    path = 'd/' * 200 + 'a.jpg'
    fill(tmp_path, {path: JPEG})
    old = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        assert images_of(tmp_path)[0] == [path]
    finally:
        sys.setrecursionlimit(old)


NAMES = [
    b'new\nline.jpg', b'tab\t.jpg', b'\x1b[31mred.jpg', 'emoji \U0001f468\u200d\U0001f469.jpg'.encode(),
    'rtl\u202egpj.exe.jpg'.encode(), b'x' * 240 + b'.jpg', b'a.jpg', b'A.jpg', b'quote".jpg', b'comma,.jpg', b'-rf.jpg',
    b'caf\xe9.jpg', b'caf\xc3\xa9.jpg', b'\xff\xfe.jpg', b'back\\slash.jpg', b'back\\xe9.jpg', b'\\x5c.jpg',
    b'\\ue9ff.jpg',    b'\xed\xb3\xbf.jpg', b'%41.jpg', b' .jpg', b'*.jpg',
]  # fmt: skip


@pytest.mark.skipif(os.name == 'nt', reason='Windows allows no such names')
def test_any_name_is_found_and_its_text_identifies_the_file(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b'cl\xe4ss')
    os.mkdir(folder)
    for number, name in enumerate(NAMES):
        with open(os.path.join(folder, name), 'wb') as file:
            file.write(str(number).encode())
    paths = list(ImageWalk(tmp_path).images())
    texts = [path_as_text(path) for path in paths]
    assert len(set(texts)) == len(paths) == len(NAMES)
    '\n'.join(texts).encode('utf-8')
    contents = [Path(tmp_path, TextPathRule()(text)).read_bytes() for text in texts]
    assert sorted(map(int, contents)) == list(range(len(NAMES)))
    assert r'cl\xe4ss/caf\xe9.jpg' in texts


def test_texts_of_paths_are_one_to_one():
    seed = random.randrange(2**32)
    print('seed', seed)
    choose = random.Random(seed).choice
    pieces = ['\\', 'x', 'u', '5c', 'e9', 'd8', '0', 'f', '/', 'é', '\udce9', '\udcff', '\ud800', '\udfff', 'X', 'E9']
    paths = [''.join(choose(pieces) for _ in range(choose(range(12)))) for _ in range(20_000)]
    texts = [path_as_text(path) for path in paths]
    assert [path_from_text(text) for text in texts] == paths
    assert len(set(texts)) == len(set(paths))
    ''.join(texts).encode('utf-8')


def test_random_trees_against_pillow_and_a_plain_walk(tmp_path):
    seed = random.randrange(2**32)
    print('seed', seed)
    source = random.Random(seed)
    contents = [
        *(image_bytes(name) for name in ('JPEG', 'PNG', 'GIF', 'AVIF')),
        b'',
        b'text',
        b'\0\0\0\x18ftypisom',
        b'BM',
    ]
    folders = ['a', 'a/b', 'a/@eaDir', 'c 10', 'c 9/.git/x', 'c 9', '#recycle/a', 'd.jpg', 'd.jpg/e']
    for number in range(120):
        end = source.choice(['', '.dat', '.mp4', '.jpg_', '.', '.jpeg2', '.pdf'])
        fill(tmp_path, {f'{source.choice(folders)}/{source.choice("xXyé")}{number}{end}': source.choice(contents)})
    expected, num_files = set(), 0
    for folder, _, files in os.walk(tmp_path):
        parts = Path(folder).relative_to(tmp_path).parts
        if {'@eaDir', '.git', '#recycle'} & {*parts}:
            continue
        for file in files:
            num_files += 1
            try:
                Image.open(os.path.join(folder, file)).close()
                expected.add('/'.join([*parts, file]))
            except UnidentifiedImageError:
                pass
    walk = ImageWalk(tmp_path)
    images = list(walk.images())
    assert len(images) == len(expected)
    assert set(images) == expected
    assert sum(left_out.kinds.total() for left_out in walk.left_out.values()) == num_files - len(expected)
