"""The formats `list` and `csv`."""

import csv
import io
import unicodedata

import pytest

from lib.errors import UserError
from lib.formats.text_lists import convert_csv, convert_grocery_store, convert_image_list


def write(folder, **files):
    for name, text in files.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name.replace('__', '.')).write_bytes(data)
    return folder


def pairs(converted, split='train'):
    return list(converted.splits[split])


def test_list_with_blanks_tabs_and_commas(tmp_path):
    write(
        tmp_path,
        train__txt='\ufeffa/b.jpg 10\n\nmy photos/c 1.jpg\t2\r\nd,e.jpg, 0\nlast.jpg 0',
        val__txt='v.jpg 10\n',
    )
    converted = convert_image_list(tmp_path)
    assert pairs(converted) == [('a/b.jpg', 2), ('my photos/c 1.jpg', 1), ('d,e.jpg', 0), ('last.jpg', 0)]
    assert pairs(converted, 'val') == [('v.jpg', 2)]
    assert converted.names == ['0', '2', '10']
    assert converted.root == tmp_path


def test_list_with_contiguous_labels_and_published_file_names(tmp_path):
    write(
        tmp_path,
        ImageNet_LT_train__txt=''.join(f'train/{label}.JPEG {label}\n' for label in (11, 3, 0, *range(12))),
        ImageNet_LT_val__txt='v 5\n',
        ImageNet_LT_test__txt='val/x.JPEG 7\n',
        ImageNet_LT_open__txt='o -1\n',
    )
    converted = convert_image_list(tmp_path, image_root='/images')
    assert [label for _, label in pairs(converted)] == [11, 3, 0, *range(12)]
    assert list(converted.splits) == ['train', 'val', 'test']
    assert pairs(converted, 'test') == [('val/x.JPEG', 7)]
    assert str(converted.root) == '/images'


def test_list_of_one_file_and_given_files(tmp_path):
    write(tmp_path, mine__lst='a 0\n', other='b 0\n')
    converted = convert_image_list(tmp_path / 'mine.lst', val=str(tmp_path / 'other'))
    assert (pairs(converted), pairs(converted, 'val'), converted.root) == ([('a', 0)], [('b', 0)], tmp_path)


def test_list_test_file_without_labels(tmp_path):
    write(tmp_path, train__txt='a 0\n', test__txt='x y.jpg\nz.jpg\n')
    converted = convert_image_list(tmp_path)
    assert pairs(converted, 'test') == [('x y.jpg', None), ('z.jpg', None)]


def test_list_errors_have_positions(tmp_path):
    write(tmp_path, train__txt=b'ok.jpg 0\nnolabel\nx.jpg -1\ny.jpg 1.5\n\xff.jpg 3\n')
    with pytest.raises(UserError) as caught:
        convert_image_list(tmp_path)
    message = str(caught.value)
    for part in (
        "train.txt:2: 'nolabel' has no label",
        "train.txt:3: label '-1' is not",
        "train.txt:4: label '1.5'",
        'train.txt:5: not UTF-8',
        '(4 faulty in all)',
    ):
        assert part in message


def test_many_list_errors_are_counted(tmp_path):
    write(tmp_path, train__txt='x\n' * 25)
    with pytest.raises(UserError, match=r'train.txt:10: .*; and 15 more \(25 faulty in all\)'):
        convert_image_list(tmp_path)


def test_list_sources_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match='no such file or folder'):
        convert_image_list(tmp_path / 'absent')
    with pytest.raises(UserError, match='contains no file of a split'):
        convert_image_list(tmp_path)
    write(tmp_path, a_train__txt='a 0', b_train__txt='b 0')
    with pytest.raises(UserError, match=r'a_train.txt and b_train.txt could be the train split; select one'):
        convert_image_list(tmp_path)
    with pytest.raises(UserError, match=r'absent: no such file \(the val split\)'):
        convert_image_list(tmp_path / 'a_train.txt', val='absent')


def test_csv_with_quotes_bom_and_leading_zeros(tmp_path):
    text = '\ufefflabel,note,path\r\n00042,"a ""b"", c","x, y.jpg"\r\n'
    text += '0042,,"line\nbreak.jpg"\r\n\r\n00042,,z.jpg\r\n'
    converted = convert_csv(write(tmp_path, shop__csv=text) / 'shop.csv')
    assert converted.names == ['00042', '0042']
    assert pairs(converted) == [('x, y.jpg', 0), ('line\nbreak.jpg', 1), ('z.jpg', 0)]


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
def test_csv_split_and_name_columns(tmp_path, delimiter):
    rows = [
        'path|label|split|name',
        'a|9|train|Milk',
        'b|10|TRAIN|Milk',
        'c|x|train|',
        'd|10|valid|Milch',
        'e||test|',
        'f||test|',
    ]
    write(tmp_path, all__csv='\n'.join(rows).replace('|', delimiter))
    converted = convert_csv(tmp_path / 'all.csv')
    assert converted.names == ['Milk (9)', 'Milk (10)', 'x']
    assert pairs(converted) == [('a', 0), ('b', 1), ('c', 2)]
    assert pairs(converted, 'val') == [('d', 1)]
    assert pairs(converted, 'test') == [('e', None), ('f', None)]


def test_csv_with_given_columns_and_one_file_per_split(tmp_path):
    write(tmp_path, train__csv='file,gtin\na,1\n', val__csv='gtin,file\n1,b\n', test__csv='file\nc\n')
    converted = convert_csv(tmp_path, path_column='file', label_column='gtin')
    assert [pairs(converted, split) for split in ('train', 'val', 'test')] == [
        [('a', 0)],
        [('b', 0)],
        [('c', None)],
    ]


def test_csv_errors_have_positions(tmp_path):
    rows = b'path,label,split\nok,1,train\na,1\n,1,train\nb,,train\nc,1,dev\n\xe4,1,train\n'
    with pytest.raises(UserError) as caught:
        convert_csv(write(tmp_path, a__csv=rows) / 'a.csv')
    message = str(caught.value)
    for part in (
        'a.csv:3: 2 fields, but the header has 3',
        'a.csv:4: no path',
        'a.csv:5: no label',
        "a.csv:6: split is 'dev'",
        'a.csv:7: not UTF-8',
        '(5 faulty in all)',
    ):
        assert part in message


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'file,label\na,1\n',
            r"a.csv:1: no column 'path'; there are: file, label; choose one with --path_column",
        ),
        ('', r"a.csv:1: no column 'path'; there are: none"),
        ('path,label\n"a"b,1\n', r'a.csv:2: not proper CSV'),
        ('path,label\n"a,1\n', r'a.csv:2: not proper CSV'),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        convert_csv(write(tmp_path, a__csv=text) / 'a.csv')


ROWS = [
    ('x, y.jpg', '00042', 'train', 'Milk; "fresh", 1,5 l'),
    ('line\nbreak.jpg', '0042', 'train', 'Tea'),
    ('caf\u00e9.jpg', '00042', 'val', ''),
]
EXPECTED = {'train': [('x, y.jpg', 0), ('line\nbreak.jpg', 1)], 'val': [('caf\u00e9.jpg', 0)]}
MANY_COMMAS = 'Title (brand, size, color, flavor, country)'
# delimiter, encoding, line end, first line, last lines, separators at the end of lines, title of another column
CSV_FORMS = {
    'Excel in the US': (',', 'utf-8-sig', '\r\n', '', '', '', 'note'),
    'Excel in Germany': (';', 'utf-8-sig', '\r\n', 'sep=;\r\n', '', '', 'note'),
    'sep in capitals and quotes': ('|', 'utf-8', '\n', '"SEP=|"\n', '', '', 'note'),
    'sep of tabs': ('\t', 'utf-8', '\n', 'sep=\t\n', '', '', 'note'),
    'Unicode text of Excel': ('\t', 'utf-16', '\r\n', '', '', '', 'note'),
    'UTF-16 without mark': (';', 'utf-16-be', '\n', '', '', '', 'note'),
    'old Mac': (';', 'utf-8', '\r', '', '', '', 'note'),
    'empty last lines': (',', 'utf-8', '\r\n', '', '\r\n,,,,\r\n  \r\n\r\n', '', 'note'),
    'empty first lines': (',', 'utf-8', '\n', '\n,,,\n', '', '', 'note'),
    'separators at the end': (',', 'utf-8', '\n', '', '', ',,', 'note'),
    'semicolons, commas in a title': (';', 'utf-8', '\n', '', '', '', MANY_COMMAS),
    'tabs, commas in a title': ('\t', 'utf-8', '\n', '', '', '', MANY_COMMAS),
    'commas, semicolons in a title': (',', 'utf-8', '\n', '', '', '', 'a;b;c;d;e;f;g'),
    'line break in a title': (';', 'utf-8', '\r\n', '', '', '', 'a,\r\nb,c,\r\nd'),
}


@pytest.mark.parametrize('form', CSV_FORMS.values(), ids=CSV_FORMS)
def test_csv_files_of_spreadsheets(tmp_path, form):
    delimiter, encoding, line_end, first, last, ends, title = form
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=f'{ends}\r\n')
    writer.writerow(('path', 'label', 'split', 'name', title))
    writer.writerows((*row, 'x') for row in ROWS)
    content = first + text.getvalue().replace('\r\n', line_end) + last
    converted = convert_csv(write(tmp_path, a__csv=content.encode(encoding)) / 'a.csv')
    assert converted.names == ['Milk; "fresh", 1,5 l', 'Tea']
    assert {name: list(split) for name, split in converted.splits.items()} == EXPECTED


def test_csv_with_unquoted_commas_in_a_title(tmp_path):
    text = f'path;label;{MANY_COMMAS}\na.jpg;1;x, y, z\nb.jpg;2;\n'
    assert pairs(convert_csv(write(tmp_path, a__csv=text) / 'a.csv')) == [('a.jpg', 0), ('b.jpg', 1)]
    # Without the titles, the columns are those with which the rows fit the header.
    text = f'Photo;{MANY_COMMAS}\na.jpg;1\nb.jpg;2, 3\n'
    with pytest.raises(UserError, match=r"no column 'path'; there are: Photo, Title \(brand, size") as caught:
        convert_csv(write(tmp_path, b__csv=text) / 'b.csv')
    assert '/b.csv:1: ' in str(caught.value)


def test_csv_errors_count_lines_before_the_header(tmp_path):
    text = 'sep=;\n\npath;label\na.jpg;1\nb.jpg;2;3\n"c\nd.jpg";\n'
    with pytest.raises(UserError, match=r"a.csv:5: 3 fields, but the header has 2 \(a field that contains ';' needs"):
        convert_csv(write(tmp_path, a__csv=text) / 'a.csv')
    with pytest.raises(UserError, match=r'a.csv:7: no label'):
        convert_csv(tmp_path / 'a.csv')


def test_labels_are_equal_under_nfc(tmp_path):
    composed, decomposed = 'Cr\u00e8me br\u00fbl\u00e9e', unicodedata.normalize('NFD', 'Cr\u00e8me br\u00fbl\u00e9e')
    rows = [('caf\u00e9.jpg', composed, 'train'), ('cafe\u0301.jpg', decomposed, 'train'), ('c', decomposed, 'val')]
    for number, some in enumerate((rows, rows[::-1])):
        text = ''.join(f'{path},{label},{split}\n' for path, label, split in some)
        converted = convert_csv(write(tmp_path, **{f'{number}__csv': f'path,label,split\n{text}'}) / f'{number}.csv')
        assert converted.names == [composed]
        # Paths are as they are spelled.
        assert sorted(pairs(converted)) == sorted((path, 0) for path, _, split in some if split == 'train')
    text = f'Pfad\u0308,label\na,{decomposed}\n'
    converted = convert_csv(
        write(tmp_path, t__csv=text) / 't.csv', path_column=unicodedata.normalize('NFC', 'Pfad\u0308')
    )
    assert converted.names == [composed]


@pytest.mark.parametrize('form', ['NFC', 'NFD', 'NFKD'])
def test_readable_names_are_compared_under_nfc(tmp_path, form):
    name = unicodedata.normalize(form, 'Caf\u00e9')
    text = f'path,label,name\na,1,Caf\u00e9\nb,2,{name}\n'
    assert convert_csv(write(tmp_path, a__csv=text) / 'a.csv').names == ['Caf\u00e9 (1)', 'Caf\u00e9 (2)']


def test_labels_of_thousands_of_digits(tmp_path):
    long = '7' * 5000
    write(
        tmp_path, train__txt=f'a {long}\nb 12\nc 00{long}\n', val__txt=f'd {long}\n', a__csv=f'path,label\na,{long}\n'
    )
    converted = convert_image_list(tmp_path)
    assert converted.names == ['12', long]
    assert pairs(converted) == [('a', 1), ('b', 0), ('c', 1)]
    assert convert_csv(tmp_path / 'a.csv').names == [long]
    titles = 'Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)'
    write(tmp_path, classes__csv=f'{titles}\nApple,{long},Fruit,0\n')
    with pytest.raises(UserError, match=r'classes.csv:2: not a class: .{,70} \(1 faulty in all\)$'):
        convert_grocery_store(tmp_path)
    write(
        tmp_path,
        classes__csv=f'{titles}\nApple,0,Fruit,0\n',
        train__txt=f'a.jpg, 0, {long}\n',
        val__txt='',
        test__txt='',
    )
    with pytest.raises(UserError, match=r'train.txt:1: .{,70} is not of the form: path, fine class'):
        convert_grocery_store(tmp_path)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le'])
def test_lists_in_encodings_of_windows(tmp_path, encoding):
    write(tmp_path, train__txt='train\\caf\u00e9.jpg 1\r\ntrain\\b.jpg 0\r\n'.encode(encoding))
    assert pairs(convert_image_list(tmp_path)) == [('train\\caf\u00e9.jpg', 1), ('train\\b.jpg', 0)]
