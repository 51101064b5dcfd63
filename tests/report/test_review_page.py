"""The files of the review pages."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from lib.report import review_page
from lib.report.contact_sheet import link_to
from lib.report.review_page import KINDS, ReviewData, write_review_pages
from tests.report.report_data import HOSTILE
from tests.report.test_run_page import Page

HOSTILE_NAMES = [
    HOSTILE,
    '</script><script>alert(2)</script>',
    '<!--<script>',
    'line\u2028end\u2029\n"quoted" \\ \'',
    'undecodable \udcff\ud800 bytes',
    '\u202egnp.evitagen',
    '__proto__',
]


def photo(row):
    rng = np.random.default_rng(row)
    small = rng.integers(0, 256, (40, 50, 3), np.uint8)
    return Image.fromarray(small).resize((250, 200), Image.Resampling.BILINEAR)


def review_data(num_images=12, num_classes=6, **changes):
    """Return a review whose images are labeled 0, 1, 2, ...; the proposals are the next classes."""
    labels = np.arange(num_images) % num_classes
    proposals = (labels[:, None] + [1, 2]) % num_classes
    fields = {
        'title': 'review',
        'source': 'some images',
        'split': 'train',
        'rows': np.arange(num_images) + 100,
        'fpaths': [f'photos/{row}.jpg' for row in range(num_images)],
        'kinds': [list(KINDS)[row % 3] for row in range(num_images)],
        'labels': labels,
        'errors': np.linspace(1, 0.5, num_images),
        'proposals': proposals,
        'probabilities': np.tile([0.6, 0.3], (num_images, 1)),
        'class_names': [f'class {label}' for label in range(num_classes)],
        'typical': lambda label: [label, label + 10, label + 20, label + 30],
        'open_image': photo,
        'path_of': lambda row: f'photos/{row - 100}.jpg',
    }
    return ReviewData(**fields | changes)


def block(text, name):
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)[1])


def written(path, data, max_bytes=5e6):
    """Write pages; return their texts and the content of each."""
    paths = write_review_pages(path, data, max_bytes=max_bytes)
    texts = [file.read_text('utf-8') for file in paths]
    return texts, [block(text, 'review-data') for text in texts]


def paths_of(contents):
    return [fpath for content in contents for fpath in content['fpaths']]


def test_content_of_a_page(tmp_path):
    (text,), (content,) = written(tmp_path / 'clean.html', review_data(errors=np.full(12, np.nan)))
    assert content['fpaths'] == [f'photos/{row}.jpg' for row in range(12)]
    assert content['labels'] == [row % 6 for row in range(12)]
    assert content['proposals'][5] == [0, 1]
    assert content['probabilities'][5] == [0.6, 0.3]
    assert content['errors'] == [None] * 12
    assert content['links'][3].endswith('photos/3.jpg')
    assert all(base64.b64decode(jpeg).startswith(b'\xff\xd8') for jpeg in content['photos'])
    # Each class once, with its most typical photos.
    assert {int(label): name for label, (name, _) in content['classes'].items()} == {c: f'class {c}' for c in range(6)}
    assert [len(photos) for _, photos in content['classes'].values()] == [review_page.NUM_TYPICAL] * 6
    packed = json.loads(zlib.decompress(base64.b64decode(block(text, 'review-packed'))))
    assert packed['names'] == [f'class {label}' for label in range(6)]


def test_hostile_texts_are_no_markup(tmp_path):
    number = len(HOSTILE_NAMES)
    names = HOSTILE_NAMES
    data = review_data(
        number, number, title=HOSTILE, source=HOSTILE, next_step=HOSTILE, class_names=names, fpaths=names
    )
    (text,), (content,) = written(tmp_path / 'clean.html', data)
    parsed = Page(text)
    assert parsed.tags.count('script') == 3
    assert all(not name.startswith('on') for _, name, _ in parsed.attributes)
    assert parsed.values('content')[0].startswith("default-src 'none'")
    assert 'http' not in re.sub(r'http-equiv', '', text)
    assert '\u2028' not in text
    assert content['fpaths'] == names
    assert [content['classes'][str(label)][0] for label in range(number)] == names


def test_unreadable_and_missing_photos(tmp_path):
    def open_image(row):
        if row in (100, 1):
            raise OSError('cannot be read')
        return photo(row)

    _, (content,) = written(tmp_path / 'clean.html', review_data(open_image=open_image, path_of=None))
    assert content['photos'][0] is None
    assert all(content['photos'][1:])
    assert set(content['links']) == {''}
    assert [len(photos) for _, photos in content['classes'].values()] == [3, 2, 3, 3, 3, 3]


def test_links_of_images_that_are_files(tmp_path):
    """Links are those of single paths; an image that is no file, such as one in a shard, has none."""
    paths = ['', f'{tmp_path}/a b/#?.jpg', f'{tmp_path}/x.jpg', '/elsewhere/caf\udce9.jpg'] * 3
    data = review_data(path_of=lambda row: paths[row % 4], typical=lambda label: [0, 1])
    _, (content,) = written(tmp_path / 'clean.html', data, 0)
    assert content['links'][:4] == [
        link_to(path, tmp_path).replace('./x', '././x') if path else '' for path in paths[:4]
    ]
    assert [photos for _, photos in content['classes'].values()] == [['./a%20b/%23%3F.jpg']] * 6


def test_photos_fill_several_pages_of_limited_size(tmp_path):
    path, limit = tmp_path / 'clean.html', 250_000
    data = review_data(60, 6)
    texts, contents = written(path, data, limit)
    assert len(texts) > 2
    assert all(len(text.encode()) <= limit for text in texts)
    assert paths_of(contents) == data.fpaths
    assert all(jpeg for content in contents for jpeg in content['photos'])
    assert len({content['review'] for content in contents}) == 1
    assert [content['page'] for content in contents] == list(range(1, len(texts) + 1))
    assert all(f'href="./clean_{number}.html#from-1"' in texts[0] for number in range(2, len(texts) + 1))
    # A later, shorter set leaves no page of this one.
    write_review_pages(path, data, max_bytes=5e6)
    assert [file.name for file in tmp_path.iterdir()] == ['clean.html']


@pytest.mark.parametrize('max_bytes', [0, 60_000])
def test_without_space_for_photos_there_is_one_page_of_links(tmp_path, max_bytes):
    data = review_data(50, 6, open_image=pytest.fail)
    _, (content,) = written(tmp_path / 'clean.html', data, max_bytes)
    assert content['photos'] == [''] * 50
    assert all(content['links'])
    assert all(address.startswith('./') for _, photos in content['classes'].values() for address in photos)


def test_last_page_has_all_other_images(tmp_path, monkeypatch):
    monkeypatch.setattr(review_page, 'MAX_PAGES', 2)
    data = review_data(60, 6)
    _, contents = written(tmp_path / 'clean.html', data, 200_000)
    assert len(contents) == 2
    assert paths_of(contents) == data.fpaths
    photos = [bool(jpeg) for jpeg in contents[1]['photos']]
    assert photos == sorted(photos, reverse=True), 'the first ones are embedded'
    assert len(set(photos)) == 2


def test_images_beyond_the_maximum_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(review_page, 'MAX_ITEMS', 7)
    (text,), (content,) = written(tmp_path / 'clean.html', review_data(1500))
    assert len(content['fpaths']) == 7
    assert 'Listed are the first 7 of 1\u202f500.' in text


def test_digest_depends_on_images_and_labels_only(tmp_path):
    def digest(**changes):
        return written(tmp_path / 'clean.html', review_data(**changes), 0)[1][0]['review']

    same = digest()
    assert digest(errors=np.zeros(12), title='other') == same
    assert digest(labels=np.zeros(12, int)) != same
    assert digest(split='valid') != same
    assert digest(fpaths=[f'{row}.jpg' for row in range(12)]) != same


def test_no_images(tmp_path):
    empty = np.zeros((0, 2))
    data = review_data(0, rows=[], fpaths=[], kinds=[], labels=[], errors=[], proposals=empty, probabilities=empty)
    _, (content,) = written(tmp_path / 'clean.html', data)
    assert content['fpaths'] == []
