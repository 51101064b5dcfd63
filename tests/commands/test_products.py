"""TEST.PRODUCTS: the product of each image, from files of spreadsheets, with names compared under NFC."""

import unicodedata

import pytest

from lib.commands.predict_inputs import products_of
from lib.config.yaml_text import as_node
from lib.errors import UserError
from tests.defaults import DEFAULTS

NAMES = ['caf\u00e9/a.jpg', 'cafe\u0301/b.jpg', 'tea, green.jpg']


def products(source, names=NAMES):
    values = DEFAULTS
    indices, found = products_of(as_node(values | {'TEST.PRODUCTS': str(source)}), names)
    return indices.tolist(), found


def test_folders_that_are_equal_under_nfc_are_one_product():
    assert products('folder')[0] == [0, 0, 1]


@pytest.mark.parametrize(
    ('encoding', 'first', 'delimiter', 'end'),
    [
        ('utf-8-sig', '', ',', '\r\n'), ('utf-16', '', '\t', '\r\n'), ('utf-8', 'sep=;\r\n', ';', '\r\n'),
        ('utf-8', '', ';', ';;\n'),
    ],
)  # fmt: skip
@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_files_of_spreadsheets(tmp_path, encoding, first, delimiter, end, form):
    rows = [
        ('product', 'a title, with, commas', 'id'),
        ('P 1', 'x', NAMES[0]),
        ('P 1', 'y', NAMES[1]),
        ('7', 'z', NAMES[2]),
    ]
    text = first + ''.join(delimiter.join(f'"{field}"' for field in row) + end for row in rows) + f'{end}{delimiter}\n'
    (tmp_path / 'p.csv').write_bytes(unicodedata.normalize(form, text).encode(encoding))
    assert products(tmp_path / 'p.csv') == ([0, 0, 1], ['P 1', '7'])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('id;produkt\n', 'p.csv:1: its first line must name the columns id and product; give'),
        ('id,product\na.jpg\n', 'p.csv:2: 1 fields, but the header has 2'),
        ('id,product\n"a.jpg,1\n', 'p.csv:2: not proper CSV'),
        ('id,product\na.jpg,1\n', 'no product is given for caf'),
        ('', 'p.csv:1: its first line must name'),
    ],
)
def test_faults_are_named(tmp_path, text, message):
    (tmp_path / 'p.csv').write_text(text)
    with pytest.raises(UserError, match=f'^TEST.PRODUCTS .*{message}'):
        products(tmp_path / 'p.csv')
    with pytest.raises(UserError, match=r'TEST.PRODUCTS .*absent.csv: no such file or directory; give'):
        products(tmp_path / 'absent.csv')


def test_products_that_a_spreadsheet_has_rounded_are_a_warning(tmp_path, caplog):
    text = 'id,product\n' + ''.join(f'"{name}",4.00638E+12\n' for name in NAMES)
    (tmp_path / 'p.csv').write_text(text, encoding='utf-8')
    with caplog.at_level('WARNING', logger='recognizer'):
        assert products(tmp_path / 'p.csv') == ([0, 0, 0], ['4.00638E+12'])
    assert '1 product name is a number that a spreadsheet has rounded (4.00638E+12)' in caplog.text
