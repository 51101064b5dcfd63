"""CSV files with names of any characters, read by Python's csv module and by Arrow as independent readers."""

import csv
import io
import random

import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv

from lib.runtime.csv_file import quote_formulas, without_quote, write_rows

NASTY = ['=', '+', '-', '@', '\t', '\r', '\n', '\r\n', ',', '"', "'", '$x^{', '\x1b[31m', '\u2028', 'é', '1', 'a', ' ']
HEADER = ('id', 'name')


@pytest.fixture
def quoting():
    quote_formulas(True)
    yield
    quote_formulas(False)


def written(rows):
    text = io.StringIO(newline='')
    write_rows(text, HEADER, rows)
    return text.getvalue()


def read(text):
    header, *rows = csv.reader(io.StringIO(text, newline=''), strict=True)
    assert tuple(header) == HEADER
    return [tuple(row) for row in rows]


def random_names(count=400):
    seed = random.randrange(1 << 30)
    print(f'seed {seed}')
    rng = random.Random(seed)
    return [''.join(rng.choices(NASTY, k=rng.randrange(1, 6))) for _ in range(count)]


def test_any_name_reads_back():
    rows = [(name, name[::-1]) for name in random_names()]
    text = written(rows)
    assert read(text) == rows
    options = arrow_csv.ParseOptions(newlines_in_values=True)
    as_text = arrow_csv.ConvertOptions(column_types=dict.fromkeys(HEADER, pa.string()), strings_can_be_null=False)
    table = arrow_csv.read_csv(io.BytesIO(text.encode()), parse_options=options, convert_options=as_text)
    assert list(zip(*table.to_pydict().values(), strict=True)) == rows


def test_plain_rows_are_as_before():
    assert written([('a.jpg', 1), ('b c.jpg', -1), ('x,y', 0.5)]) == 'id,name\na.jpg,1\nb c.jpg,-1\n"x,y",0.5\n'


def test_formulas_are_quoted_for_spreadsheets(quoting):
    names = ['=1+1', '+1', '-x', '@SUM(A1)', '\tx', '\rx', "'=1", "''=1", "'plain", 'plain', '', 'a=1']
    assert [name for name, _ in read(written([(name, 1) for name in names]))] == [
        "'=1+1", "'+1", "'-x", "'@SUM(A1)", "'\tx", "'\rx", "''=1", "'''=1", "'plain", 'plain', '', 'a=1'
    ]  # fmt: skip
    # Negative numbers stay numbers.
    assert read(written([('a', -1), ('b', '-0.123456')])) == [('a', '-1'), ('b', '-0.123456')]


def test_quoted_names_differ_and_return(quoting):
    names = sorted(set(random_names()))
    cells = [name for name, _ in read(written([(name, 0) for name in names]))]
    assert len(set(cells)) == len(names)
    assert [*map(without_quote, cells)] == names
    assert not [cell for cell in cells if cell.startswith(('=', '+', '@', '\t', '\r'))]
