"""Parsing in blocks and by quotes, compared with json."""

import json
import random
from io import BytesIO

import msgspec
import numpy as np
import pytest

from lib.dataset.annotation_json import UnsupportedForm, parse_in_blocks, parse_whole
from lib.dataset.annotation_rows import Entry, _parse_uniform, fingerprints, has_duplicates

NAMES = ['a', 'train/1/2.jpg', 'ä/日.jpg', 'x' * 50, '12345678', 'odd}, {"x": [1]}', 'a"},\n{"b', '\\', ' \t', '"],']
LAYOUTS = [
    {'separators': (',', ':')},
    {'separators': (', ', ': ')},
    {'indent': 1},
    {'indent': '\t', 'ensure_ascii': False},
    {'separators': (' ,\n', ' : ')},
]


def entries_of(parsed):
    return list(zip(parsed.paths.to_pylist(), parsed.labels.tolist(), strict=True))


def expected_of(text):
    return [(entry['fpath'], entry['category_id']) for entry in json.loads(text)['annotations']]


def random_tree(rng, names, extra):
    tree = {'annotations': [], 'num_classes': 10**9}
    for row in range(rng.randint(1, 300)):
        entry = {'category_id': rng.choice([0, 1, 7, 50_029, 10**7, 99_999_999]), 'fpath': f'{rng.choice(names)}{row}'}
        tree['annotations'].append({**extra(rng), **entry} if rng.random() < 0.5 else {**entry, **extra(rng)})
    return tree


EXTRAS = {
    'none': lambda rng: {},
    'flat': lambda rng: {'height': rng.randint(1, 99), 'note': rng.choice(NAMES)},
    'nested': lambda rng: {'boxes': [{'x': 1, 'y': {'z': 2}}, {'x': 3}], 'tail': None},
}


@pytest.mark.parametrize('layout', LAYOUTS, ids=range(5))
@pytest.mark.parametrize('extra', EXTRAS)
@pytest.mark.parametrize('plain', [True, False])
def test_any_layout_in_blocks_of_any_size(layout, extra, plain):
    for seed in range(6):
        rng = random.Random(seed)
        tree = random_tree(rng, ['train/', '1_'] if plain else NAMES, EXTRAS[extra])
        if seed % 2:
            tree = {'num_classes': tree.pop('num_classes'), **tree}
        text = json.dumps(tree, **layout)
        for block_bytes in (256, 700, 4096, 1 << 20):
            try:
                parsed = parse_in_blocks(BytesIO(text.encode()), block_bytes=block_bytes)
            except UnsupportedForm:  # a block without a cut
                parsed = parse_whole(text.encode())
            assert entries_of(parsed) == expected_of(text), (seed, block_bytes)
            assert parsed.num_classes == 10**9


def test_plain_files_are_parsed_in_blocks():
    """Common layouts don't need the whole file in memory."""
    tree = random_tree(random.Random(3), ['train/'], EXTRAS['none'])
    for layout in LAYOUTS[:4]:  # the last one has a blank before its commas
        parsed = parse_in_blocks(BytesIO(json.dumps(tree, **layout).encode()), block_bytes=1000)
        assert parsed.prefix[2] > 0


def test_other_keys_first_need_the_whole_file():
    text = json.dumps(
        {'info': {'annotations': []}, 'annotations': [{'category_id': 1, 'fpath': 'a'}], 'num_classes': 2}
    )
    with pytest.raises(UnsupportedForm):
        parse_in_blocks(BytesIO(text.encode()))
    assert entries_of(parse_whole(text.encode())) == [('a', 1)]


ONE = '{"category_id":1,"fpath":"a"}'


@pytest.mark.parametrize(
    'text',
    [
        f'{{"annotations": [{",".join([ONE] * 50)},], "num_classes": 2}}',  # an extra comma
        f'{{"annotations": [{",".join([ONE] * 50)} {ONE}], "num_classes": 2}}',  # a missing comma
        f'{{"annotations": [{",".join([ONE] * 50)}], "num_classes": 2',
        f'{{"annotations": [{",".join([ONE] * 50)}], "num_classes": 2}} more',
        f'{{"annotations": [{",".join([ONE] * 50)}]}}',
        f'{{"annotations": [{",".join([ONE] * 50)}', f'{{"annotations": [{",".join([ONE] * 50)},',
        f'{{"annotations": [{",".join([ONE] * 50)},{ONE[:-1]}], "num_classes": 2}}',
        f'{{"annotations": [{",".join([ONE] * 50)},null], "num_classes": 2}}',
        f'{{"annotations": [{",".join([ONE] * 20)},{{"fpath": "a"}},{",".join([ONE] * 50)}], "num_classes": 2}}',
        f'{{"annotations": [{ONE.replace("1", "01")},{",".join([ONE] * 50)}], "num_classes": 2}}',
        f'{{"annotations": [{",".join([ONE] * 50)}], "annotations": [{ONE},{ONE}], "num_classes": 2}}',
    ],
    ids=range(12),
)  # fmt: skip
def test_files_that_json_rejects_or_reads_differently(text):
    with pytest.raises(UnsupportedForm):
        parse_in_blocks(BytesIO(text.encode()), block_bytes=300)


@pytest.mark.long
def test_uniform_entries_are_a_part_of_json():
    """Whatever is parsed by quotes equals msgspec's result: valid entries, and ones with changed or added bytes."""
    rng, decode, num_parsed = random.Random(1), msgspec.json.Decoder(list[Entry]).decode, 0
    for _ in range(40_000):
        layout = rng.choice([(',', ':'), (', ', ': '), (' ,\n', ' :\t')])
        entries = [
            {'category_id': rng.choice([0, 1, 7, 50_029, 99_999_999, 10**8]), 'fpath': f'{rng.choice(NAMES)}{row}'}
            for row in range(rng.randint(1, 6))
        ]
        block = bytearray(
            layout[0].join(json.dumps(e, ensure_ascii=False, separators=layout) for e in entries).encode()
        )
        for _ in range(rng.choice([0, 1, 1, 2])):
            position, byte = rng.randrange(len(block)), rng.choice(b'"\\{}[]:,0 9a\n\x01\xff-+.e')
            if rng.random() < 0.5:
                block[position] = byte
            else:
                block.insert(position, byte)
        rows = _parse_uniform(bytes(block))
        if rows is not None:
            num_parsed += 1
            expected = decode(b'[' + block + b']')
            assert bytes(rows.text).decode() == ''.join(entry.fpath for entry in expected), block
            assert rows.lengths.tolist() == [len(entry.fpath.encode()) for entry in expected], block
            assert rows.labels.tolist() == [entry.category_id for entry in expected], block
    assert num_parsed > 1500


@pytest.mark.parametrize('label', [0, 5, 10, 99, 100, 12_345_678, 99_999_999, 7_000_000, 10_203_040])
def test_labels_of_every_length_by_quotes(label):
    rows = _parse_uniform(f'{{"category_id": {label}, "fpath": "x"}}, {{"category_id": 3, "fpath": "yy"}}'.encode())
    assert rows.labels.tolist() == [label, 3]
    assert rows.labels.dtype == np.int32


def test_fingerprints_differ_for_different_texts():
    texts = [
        b'',
        b'a',
        b'b',
        b'a\0',
        b'\0a',
        b'abcdefgh',
        b'abcdefg',
        b'abcdefghi',
        b'x' * 100,
        b'x' * 101,
        'ä'.encode(),
    ]
    texts += [b'train/%07d.jpg' % number for number in range(5000)]
    order = [*range(len(texts)), *reversed(range(len(texts)))]
    column = [texts[row] for row in order]
    hashes = fingerprints(b''.join(column), np.array([len(text) for text in column], np.int32))
    assert hashes[: len(texts)].tolist() == hashes[len(texts) :][::-1].tolist()
    assert len(set(hashes.tolist())) == len(texts)


def test_duplicates_are_found_at_any_position():
    random_numbers = np.random.default_rng(0).integers(2**64, size=20_000, dtype=np.uint64)
    assert len(set(random_numbers.tolist())) == len(random_numbers)
    assert not has_duplicates(random_numbers)
    assert not has_duplicates(np.arange(20_000, dtype=np.uint64))  # all in one slot, but different
    assert not has_duplicates(np.zeros(0, np.uint64))
    for seed in range(50):
        numbers = random_numbers.copy()
        first, second = np.random.default_rng(seed).choice(len(numbers), 2, replace=False)
        numbers[first] = numbers[second]
        assert has_duplicates(numbers), seed
