"""Loaders from the config: errors of lib.dataset become one line that names the options."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from lib.builders import loader
from lib.builders.loader import build_eval_loader, build_train_loader, num_workers
from lib.builders.split import DatasetSplit
from lib.config.yaml_text import as_node
from lib.dataset import pipeline, ram_cache
from lib.dataset.images import ArrayImages, FileImages
from lib.dataset.index import ClassIndex
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.runtime.device import pick_device
from tests.defaults import DEFAULTS

DEVICE = pick_device('cpu', 'float32')


def config(**changes):
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    return as_node(DEFAULTS | {'NAME': 'x', 'RUN.NUM_WORKERS': 0, 'INPUT.SIZE': 16} | changes)


def split_of(num_images: int, images=None) -> DatasetSplit:
    images = images or ArrayImages(np.zeros((num_images, 20, 20, 3), np.uint8))
    return DatasetSplit(images, np.zeros(num_images, np.int32), 1, pa.array(['a'] * num_images), 'train')


def train_loader(cfg, split: DatasetSplit, world_size: int = 1):
    index = ClassIndex(split.labels, 1)
    return build_train_loader(cfg, split, index, DEVICE, ProcessGroup(0, world_size))


@pytest.mark.parametrize(('batch_size', 'world_size'), [(3, 4), (6, 4), (2, 2), (1, 2), (14, 8)])
def test_a_batch_too_small_for_the_ranks(batch_size, world_size):
    with pytest.raises(UserError) as caught:
        train_loader(config(TRAIN__BATCH_SIZE=batch_size), split_of(100), world_size)
    message = str(caught.value)
    assert '\n' not in message
    assert message.startswith(f'TRAIN.BATCH_SIZE: steps of {batch_size} images')
    assert f'{world_size} ranks' in message
    assert f'--TRAIN_BATCH_SIZE {2 * world_size} ' in message


def test_a_set_too_small_for_the_ranks():
    with pytest.raises(UserError, match=r'^6 training images are too few for 4 ranks.*start at most 3$'):
        train_loader(config(TRAIN__BATCH_SIZE=512), split_of(6), 4)
    train_loader(config(TRAIN__BATCH_SIZE=512), split_of(6), 3)


def test_too_little_shared_memory_for_the_batches(monkeypatch):
    monkeypatch.setattr(pipeline, 'free_shared_bytes', lambda: 100)
    for build in (train_loader, lambda cfg, split: build_eval_loader(cfg, split, DEVICE)):
        with pytest.raises(UserError, match=r'shared memory.*--RUN_NUM_WORKERS.*--TRAIN_BATCH_SIZE.*--shm-size'):
            build(config(RUN__NUM_WORKERS=2), split_of(6))
        build(config(), split_of(6))


def test_too_little_shared_memory_for_the_cache(monkeypatch, tmp_path):
    Image.new('RGB', (30, 20)).save(tmp_path / 'a.png')
    monkeypatch.setattr(ram_cache, 'free_shared_bytes', lambda: 1000)
    with pytest.raises(UserError, match=r'^DATASET\.CACHE ram: train takes .*--DATASET_CACHE .*tools/pack\.py'):
        train_loader(config(DATASET__CACHE='ram'), split_of(1, FileImages(['a.png'], str(tmp_path))))


def test_the_error_for_an_unreadable_image_names_the_option(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'not an image')
    raising = train_loader(config(DATASET__ON_BAD_IMAGE='raise'), split_of(1, FileImages(['a.png'], str(tmp_path))))
    with pytest.raises(UserError, match=r'a\.png: .*; --DATASET_ON_BAD_IMAGE skip trains without such images$'):
        list(raising.batches(0))


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({}, 'the images of this run are processed on cpu'),
        ({'device': 'cuda', 'DATASET__CACHE': 'ram'}, 'DATASET.CACHE ram stores decoded images'),
        ({'device': 'cuda', 'INPUT__AUGMENT': 'trivial_augment'}, 'INPUT.AUGMENT, .* need the pixels on the CPU'),
        ({'device': 'cuda'}, r'torchvision cannot decode JPEG images on cuda \(no decoder\)'),
    ],
)
def test_images_that_no_device_can_decode(monkeypatch, changes, reason):
    monkeypatch.setattr(loader, 'decoder_fault', lambda device: 'no decoder')
    device = replace(DEVICE, main=torch.device(changes.pop('device', 'cpu')))
    cfg, split = config(RUN__DECODE_DEVICE='cuda', **changes), split_of(6)
    with pytest.raises(UserError, match=f'^RUN.DECODE_DEVICE is cuda, but {reason}: --RUN_DECODE_DEVICE cpu$'):
        build_train_loader(cfg, split, ClassIndex(split.labels, 1), device)


def test_the_option_reaches_the_pipeline(monkeypatch):
    monkeypatch.setattr(loader, '_check_device_decoding', lambda *_: None)
    for value, expected in (('cpu', False), ('cuda', True)):
        for build in (train_loader, lambda cfg, split: build_eval_loader(cfg, split, DEVICE)):
            built = build(config(RUN__DECODE_DEVICE=value), split_of(6))
            assert built._pipeline._reader.leaves_to_device is expected


def test_the_number_of_worker_processes_is_plausible():
    with pytest.raises(UserError, match=r'RUN.NUM_WORKERS is 100000, but this machine has \d+ CPU cores?: at most \d+'):
        num_workers(100_000)
    assert num_workers(64) == 64
