"""WebDataset and timm read the shards."""

import io
import json

import numpy as np
import pytest
import webdataset
from PIL import Image
from timm.data.readers import create_reader

from lib.commands.pack import _info
from lib.shards.encode import Reencode
from lib.shards.images import ShardImages
from lib.shards.index import INDEX
from lib.shards.pack import pack_split
from tests.shards.packing import LABELS, NAMES, job_of


@pytest.fixture(params=['copy', 'reencode'])
def folder(request, photos, tmp_path):
    """Pack a train split and write the _info.json of timm."""
    changes = {'encoding': Reencode(20)} if request.param == 'reencode' else {}
    packed = pack_split(job_of(photos, tmp_path / 'out' / 'train', **changes), num_workers=0)
    (tmp_path / 'out' / '_info.json').write_text(json.dumps({'splits': {'train': _info('train', packed)}}))
    return tmp_path / 'out'


def images_of(folder) -> list[np.ndarray]:
    images = ShardImages(folder / 'train' / INDEX)
    return [np.asarray(Image.open(io.BytesIO(images.read(row)))) for row in range(len(images))]


def test_webdataset(folder):
    shards = f'{folder}/train/{{000000..000003}}.tar'
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode('rgb8'))
    assert [sample['cls'] for sample in samples] == LABELS.tolist()
    assert [sample['json'] for sample in samples] == [
        {'fpath': name, 'category_id': label} for name, label in zip(NAMES, LABELS.tolist(), strict=True)
    ]
    assert [sample['__key__'] for sample in samples] == [f'{row:09d}' for row in range(len(LABELS))]
    for sample, expected in zip(samples, images_of(folder), strict=True):
        assert np.array_equal(sample['jpg'], expected)


def test_timm(folder):
    reader = create_reader('wds/', root=str(folder), split='train')
    samples = list(reader)
    assert len(reader) == len(samples) == len(LABELS)
    assert [label for _, label in samples] == LABELS.tolist()
    for (image, _), expected in zip(samples, images_of(folder), strict=True):
        assert np.array_equal(np.asarray(image), expected)
