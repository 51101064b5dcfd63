"""A sharded classifier, written by some ranks and read by others."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.trainer.checkpointing.sharded import (
    INDEX,
    num_classes_of,
    read_rows,
    shard_file_name,
    write_index,
    write_shard,
)

WHOLE = {'classifier.weight': torch.arange(33.0).view(11, 3), 'classifier.bias': torch.arange(11.0)}


def classes_of(rank, count, num_classes=11):
    return range(*ProcessGroup(rank, count).shard(num_classes).indices(num_classes))


def write(folder, count):
    for rank in range(count):
        classes = classes_of(rank, count)
        rows = {name: tensor[classes.start : classes.stop] for name, tensor in WHOLE.items()}
        write_shard(folder, rows, classes, rank=rank, count=count)
    write_index(folder, 11, count)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 11), st.integers(1, 11))
@pytest.mark.long
def test_any_number_of_writers_and_readers(tmp_path_factory, writers, readers):
    folder = tmp_path_factory.mktemp('head')
    write(folder, writers)
    assert num_classes_of(folder) == 11
    parts = [read_rows(folder, classes_of(rank, readers)) for rank in range(readers)]
    for name, tensor in WHOLE.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)
        assert torch.equal(read_rows(folder)[name], tensor)


def test_the_index_maps_rows_to_files(tmp_path):
    write(tmp_path, 2)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index['weight_map'] == {
        'classifier.bias[0:5]': shard_file_name(0, 2),
        'classifier.weight[0:5]': shard_file_name(0, 2),
        'classifier.bias[5:11]': shard_file_name(1, 2),
        'classifier.weight[5:11]': shard_file_name(1, 2),
    }


@pytest.mark.parametrize('damage', ['cut', 'gone', 'no index', 'torn index', 'elsewhere', 'rows missing'])
def test_damage_is_reported_in_one_line(tmp_path, damage):
    write(tmp_path, 3)
    part, index = tmp_path / shard_file_name(1, 3), tmp_path / INDEX
    content = json.loads(index.read_text())
    if damage == 'cut':
        part.write_bytes(part.read_bytes()[:-8])
    elif damage == 'gone':
        part.unlink()
    elif damage == 'no index':
        index.unlink()
    elif damage == 'torn index':
        index.write_text(index.read_text()[:-9])
    elif damage == 'elsewhere':
        index.write_text(json.dumps(content | {'weight_map': {'classifier.weight[0:11]': '../other.safetensors'}}))
    else:
        kept = {entry: file for entry, file in content['weight_map'].items() if file != part.name}
        index.write_text(json.dumps(content | {'weight_map': kept}))
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path)
    assert '\n' not in str(caught.value)
