"""Batches: the same pixels in the same order for any number of workers, with replacements and unreadable images."""

import io
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from lib.dataset import pipeline
from lib.dataset.images import ArrayImages, FileImages
from lib.dataset.index import ClassIndex
from lib.dataset.lazy_image import LazyImage
from lib.dataset.loader import EvalLoader, TrainLoader
from lib.dataset.normalize import Normalize, flip_images
from lib.dataset.reader import BatchReader, BatchRequest, RawBatch
from lib.dataset.sampler import instance_balance
from lib.dataset.transforms import PadCrop, ResizeCenterCrop, ResizeCornerCrop, ResizeWhole
from lib.errors import UserError
from lib.runtime.shared_memory import SharedMemoryFull
from tests.dataset.loading import (
    BAD,
    CROP,
    LABELS,
    SIZE,
    all_same,
    eval_loader,
    files,
    pipeline_options,
    reader_of,
    train_loader,
    write_images,
)


@pytest.fixture
def folder(tmp_path):
    """Create a folder with one image per row."""
    return write_images(tmp_path)


@pytest.fixture
def bad_folder(tmp_path):
    return write_images(tmp_path, BAD)


def pixels_of(batch: RawBatch) -> torch.Tensor:
    """Return the pixels after the flip on the device."""
    return flip_images(batch.pixels.clone(), torch.from_numpy(np.flatnonzero(batch.flip)))


def error_of(loader: TrainLoader, epoch: int) -> str:
    # pytest.raises would keep the traceback, the loader and its workers alive until a later test.
    try:
        list(loader.batches(epoch))
    except UserError as error:
        return str(error)
    pytest.fail('no error was raised')


@pytest.mark.process
def test_workers_read_the_same_batches(bad_folder):
    """Two workers read whole epochs, a part from mid-epoch on, and an interrupted epoch."""
    images = files(bad_folder)
    alone, pair = train_loader(images), train_loader(images, num_workers=2)
    assert all_same(alone.batches(0), pair.batches(0))
    assert all_same(alone.batches(1, first_step=1), pair.batches(1, first_step=1))
    next(pair.batches(2))
    assert all_same(alone.batches(3), pair.batches(3))
    for row in (0, 2, 3, 4):  # all of class 0
        (bad_folder / f'{row}.png').write_bytes(b'')
    message = error_of(pair, epoch=4)
    assert 'class 0: none of its 5 training images can be decoded' in message
    assert '\n' not in message, 'the traceback of a worker is part of the message'


@pytest.mark.process
def test_workers_read_the_same_batches_in_evaluation(bad_folder):
    images = files(bad_folder)
    assert all_same(eval_loader(images), eval_loader(images, num_workers=2))


@pytest.mark.parametrize('first_step', [0, 1, 2, 3])
def test_an_epoch_may_start_at_any_step(folder, first_step):
    loader = train_loader(files(folder), batch_size=3)
    assert loader.steps_per_epoch == 3
    assert all_same(list(loader.batches(1))[first_step:], loader.batches(1, first_step))


def test_batches_are_the_samplers_rows_in_order_without_the_partial_batch(folder):
    loader = train_loader(files(folder), batch_size=4)
    batches = list(loader.batches(2))
    assert (loader.steps_per_epoch, len(batches)) == (2, 2)
    rows = torch.cat([batch.rows for batch in batches])
    assert rows.tolist() == loader.sampler.epoch_rows(2)[:8].tolist()
    assert torch.cat([batch.labels for batch in batches]).tolist() == LABELS[rows].tolist()
    for batch in batches:
        assert batch.images.shape == (4, 3, SIZE, SIZE)
        assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
        assert batch.readable.all()
        assert batch.bad == []


@pytest.mark.parametrize('batch_size', [11, 12, 500])
def test_a_set_smaller_than_a_batch_is_one_batch(folder, batch_size):
    loader = train_loader(files(folder), batch_size=batch_size, weights=instance_balance)
    (batch,) = loader.batches(0)
    assert sorted(batch.rows.tolist()) == list(range(11))
    assert loader.steps_per_epoch == 1


def test_pixels_depend_on_seed_epoch_and_slot_not_on_the_batch(folder):
    images = files(folder)
    one = torch.cat([batch.images for batch in train_loader(images, batch_size=2).batches(1)])
    other = torch.cat([batch.images for batch in train_loader(images, batch_size=5).batches(1)])
    assert torch.equal(one, other)


def test_an_image_drawn_twice_is_cropped_twice(folder):
    reader = reader_of(files(folder))

    def pixels(epoch, slot, seed=3):
        return pixels_of(reader_of(files(folder), seed=seed)[BatchRequest(epoch, slot, np.array([4]))])[0]

    twice = pixels_of(reader[BatchRequest(0, 0, np.array([4, 4]))])
    assert not torch.equal(twice[0], twice[1])
    assert torch.equal(twice[1], pixels(0, 1))
    assert not torch.equal(pixels(0, 0), pixels(1, 0))
    assert not torch.equal(pixels(0, 0), pixels(0, 0, seed=4))


def test_arrays_are_read_like_files(folder):
    array = ArrayImages(np.stack([np.asarray(Image.open(folder / f'{row}.png')) for row in range(len(LABELS))]))
    assert all_same(train_loader(files(folder)).batches(0), train_loader(array).batches(0))


def test_the_replacement_is_another_image_of_the_class_with_the_same_crop(bad_folder):
    reader = reader_of(files(bad_folder))
    rows = np.array([1, 6, 1, 5])
    batch = reader[BatchRequest(2, 40, rows)]
    assert batch.request.rows.tolist() == rows.tolist()
    assert batch.labels.tolist() == [0, 1, 0, 1]
    assert batch.readable.all()
    assert {row for row, _ in batch.bad} - {7} == {1, 6}
    for position, label in enumerate((0, 1, 0)):
        good = [row for row in reader.index.rows_of(label) if row not in BAD]
        candidates = [pixels_of(reader[BatchRequest(2, 40 + position, np.array([row]))])[0] for row in good]
        # The crop depends on the slot, so it equals that of the replacement read at this slot.
        assert any(torch.equal(pixels_of(batch)[position], candidate) for candidate in candidates), position


def test_the_replacement_is_a_pure_function_of_seed_epoch_and_slot(bad_folder):
    images = files(bad_folder)

    def fill(seed, epoch, slot):
        return reader_of(images, seed=seed, transform=ResizeCenterCrop(SIZE, 1.0))[
            BatchRequest(epoch, slot, np.array([1]))
        ]

    assert torch.equal(fill(3, 1, 5).pixels, fill(3, 1, 5).pixels)
    results = {tuple(fill(seed, epoch, slot).pixels.flatten().tolist())
            for seed in range(3) for epoch in range(3) for slot in range(3)}  # fmt: skip
    assert len(results) == 4, 'each of the four good images is selected for some slot'


def test_every_unreadable_candidate_is_reported(bad_folder):
    """Row 5 is the only readable one of its class: for some slots, row 7 is tried before it."""
    reader = reader_of(files(bad_folder))
    reports = [dict(reader[BatchRequest(0, slot, np.array([6]))].bad) for slot in range(20)]
    assert {frozenset(bad) for bad in reports} == {frozenset({6}), frozenset({6, 7})}
    assert all('image' in reason for bad in reports for reason in bad.values())


def test_replacements_are_rows_of_the_index(folder):
    index = ClassIndex(LABELS, 4, rows=np.array([0, 1, 5, 8, 10]))
    (folder / '0.png').write_bytes(b'bad')
    (folder / '1.png').write_bytes(b'bad')
    reader = BatchReader(files(folder), LABELS, CROP, 0, 'replace', index)
    result = reader[BatchRequest(0, 0, np.array([0]))]
    assert isinstance(result, UserError)
    assert 'class 0: none of its 2 training images' in str(result)


def test_a_class_without_readable_images_is_an_error(bad_folder):
    (bad_folder / '10.png').write_bytes(b'bad')  # the only image of class 3
    with pytest.raises(UserError) as caught:
        list(train_loader(files(bad_folder), weights=instance_balance, batch_size=11).batches(0))
    assert str(bad_folder / '10.png') in str(caught.value)
    assert 'class 3: none of its 1 training images can be decoded' in str(caught.value)


def test_raise_names_the_path_and_the_hint(bad_folder):
    loader = train_loader(files(bad_folder), weights=instance_balance, batch_size=11, on_bad='raise', hint='use skip')
    with pytest.raises(UserError) as caught:
        list(loader.batches(0))
    assert any(str(bad_folder / f'{row}.png') in str(caught.value) for row in BAD)
    assert str(caught.value).endswith('; use skip')


@pytest.mark.parametrize('on_bad', ['replace', 'raise'])
def test_a_missing_training_image_is_an_error_not_a_bad_image(folder, on_bad):
    (folder / '4.png').unlink()
    with pytest.raises(UserError, match=r'4\.png: no such file'):
        list(train_loader(files(folder), weights=instance_balance, batch_size=11, on_bad=on_bad).batches(0))


def test_a_training_image_that_cannot_be_read_is_an_error(folder):
    (folder / '4.png').unlink()
    (folder / '4.png').mkdir()
    with pytest.raises(UserError, match=r"4\.png'?: is a folder, not a file"):
        list(train_loader(files(folder), weights=instance_balance, batch_size=11).batches(0))


def test_a_named_pipe_is_no_image(folder):
    (folder / '4.png').unlink()
    os.mkfifo(folder / '4.png')
    with pytest.raises(UserError, match=r"4\.png'?: is a named pipe, not a file"):
        list(train_loader(files(folder), weights=instance_balance, batch_size=11).batches(0))
    bad = dict(pair for batch in eval_loader(files(folder), batch_size=4) for pair in batch.bad)
    assert bad[4] == 'is a named pipe, not a file'


def test_evaluation_marks_unreadable_images(bad_folder):
    (bad_folder / '9.png').unlink()
    batches = list(eval_loader(files(bad_folder), batch_size=4))
    assert [len(batch.rows) for batch in batches] == [4, 4, 3]
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(11))
    assert torch.cat([batch.labels for batch in batches]).tolist() == LABELS.tolist()
    readable = torch.cat([batch.readable for batch in batches])
    assert torch.nonzero(~readable).flatten().tolist() == [1, 6, 7, 9]
    bad = dict(pair for batch in batches for pair in batch.bad)
    assert sorted(bad) == [1, 6, 7, 9]
    assert bad[9] == 'no such file'
    images = torch.cat([batch.images for batch in batches])
    black = Normalize()(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8))
    assert all(torch.equal(images[row : row + 1], black) for row in (1, 6, 7, 9))
    assert torch.isfinite(images).all()


@pytest.mark.parametrize(('batch_size', 'batches'), [(1, 11), (5, 3), (11, 1), (100, 1)])
def test_evaluation_reads_every_row_once_per_pass(folder, batch_size, batches):
    loader = eval_loader(files(folder), batch_size)
    assert len(loader) == len(list(loader)) == batches
    assert torch.cat([batch.rows for batch in loader]).tolist() == list(range(11))
    whole = eval_loader(files(folder), 11)
    assert torch.equal(torch.cat([batch.images for batch in loader]), next(iter(whole)).images)


def test_a_split_without_labels(folder):
    labels = np.full(len(LABELS), -1, np.int32)
    reader = BatchReader(files(folder), labels, ResizeCenterCrop(SIZE, 0.875), 0)
    (batch,) = EvalLoader(reader, len(labels), 11, **pipeline_options())
    assert batch.labels.tolist() == [-1] * 11


@pytest.mark.process
@pytest.mark.parametrize('options', [{'num_threads': 1}, {'num_threads': 3}, {'num_workers': 1}], ids=str)
def test_threads_and_workers_read_the_same_batches(folder, options):
    assert all_same(eval_loader(files(folder)), eval_loader(files(folder), **options))


@pytest.mark.process
@pytest.mark.parametrize('options', [{}, {'num_threads': 2}, {'num_workers': 1}], ids=str)
def test_views_are_one_batch_per_transform(folder, options):
    views = [ResizeCenterCrop(SIZE, 0.875), ResizeWhole(SIZE), ResizeCornerCrop(SIZE + 4, 0.8, right=True)]
    readers = [BatchReader(files(folder), LABELS, view, 0) for view in views]
    alone = [list(EvalLoader(reader, len(LABELS), 4, **pipeline_options())) for reader in readers]
    together = EvalLoader(
        replace(readers[0], extra_transforms=tuple(views[1:])), len(LABELS), 4, **{**pipeline_options(), **options}
    )
    slices = together.batch_slices()
    batches_by_view = list(zip(*together.views(slices), strict=True))
    assert len(batches_by_view) == len(views)
    for expected, batches in zip(alone, batches_by_view, strict=True):
        assert all_same(expected, batches)
    # Some of the batches only, as after an interruption.
    (last,) = together.views(slices[-1:])
    assert all_same([batches[-1] for batches in alone], last)


def test_an_image_is_decoded_once_for_all_views(tmp_path, monkeypatch):
    names = [f'{number}.jpg' for number in range(3)]
    for name in names:
        (tmp_path / name).write_bytes(jpeg(160, 120))
    decode, reductions = simplejpeg.decode_jpeg, []

    def counted(data, color_space, *, min_width, min_height):
        reductions.append(160 // min_width)
        return decode(data, color_space, min_width=min_width, min_height=min_height)

    monkeypatch.setattr(simplejpeg, 'decode_jpeg', counted)
    corners = [ResizeCornerCrop(24, 0.8, right, bottom) for right in (False, True) for bottom in (False, True)]
    views = [ResizeCenterCrop(24, 0.8), *corners, ResizeCenterCrop(80, 0.8)]
    reader = BatchReader(FileImages(names, str(tmp_path)), np.zeros(3, np.int32), views[0], 0)
    loader = EvalLoader(replace(reader, extra_transforms=tuple(views[1:])), 3, 2, **pipeline_options())
    batches = list(loader.views(loader.batch_slices()))
    assert reductions == [4, 1] * 3  # the larger view needs more pixels; those of the others do not change
    for number, view in enumerate(views):
        alone = EvalLoader(replace(reader, transform=view), 3, 2, **pipeline_options())
        assert all_same(list(alone), [batch[number] for batch in batches])


class DeadlyImages(ArrayImages):
    """Images that kill the process that opens one, as the system does when memory is exhausted."""

    def open(self, row: int) -> LazyImage:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='this system has no SIGKILL')
def test_a_killed_worker_raises_the_error_that_cli_main_handles():
    images = DeadlyImages(np.zeros((len(LABELS), 24, 20, 3), np.uint8))
    with pytest.raises(RuntimeError, match=r'^DataLoader worker'):
        list(eval_loader(images, num_workers=1))


def jpeg(width=40, height=30) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, 'JPEG')
    return buffer.getvalue()


# Files that are named like photos in the folders of shops.
NO_PHOTOS = {
    'empty': b'',
    'truncated': jpeg()[:-200],
    'header alone': jpeg()[:300],
    'lying header': jpeg().replace(b'\0\x1e\0\x28', b'\x01\x1e\0\x28', 1),
    'bomb': jpeg().replace(b'\0\x1e\0\x28', b'\xff\xff\xff\xff', 1),
    'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n',
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    'html': b'<html>404 not found</html>',
}


@pytest.mark.parametrize('name', NO_PHOTOS)
def test_files_that_are_not_photos_are_reported_and_skipped(folder, name):
    (folder / '1.png').write_bytes(NO_PHOTOS[name])
    request = BatchRequest(0, 0, np.array([0, 1, 2]))
    marked = reader_of(files(folder), 'mark')[request]
    assert marked.readable.tolist() == [True, False, True]
    assert not marked.pixels[1].any()
    ((row, reason),) = marked.bad
    assert row == 1
    assert reason
    replaced = reader_of(files(folder), 'replace')[request]
    assert replaced.readable.all()
    assert replaced.pixels[1].any()
    assert replaced.bad == marked.bad
    error = reader_of(files(folder), 'raise')[request]
    assert str(folder / '1.png') in str(error)


def test_an_image_of_one_pixel(folder):
    Image.new('RGB', (1, 1), (9, 200, 30)).save(folder / '1.png')
    for transform in (CROP, ResizeCenterCrop(SIZE), PadCrop(SIZE, 0)):
        pixels = reader_of(files(folder), transform=transform)[BatchRequest(0, 0, np.array([1]))].pixels
        assert (pixels == torch.tensor([9, 200, 30], dtype=torch.uint8)).all()


@pytest.mark.process
def test_reused_buffers_hold_no_earlier_pixels(folder):
    """Read more batches than buffers, with unreadable images and padding; all batches are stored until the end."""
    for row in BAD:
        (folder / f'{row}.png').write_bytes(b'no image at all')
    rows = np.arange(len(LABELS)).repeat(6)

    class RandomRows:
        def epoch_rows(self, epoch):
            return np.random.default_rng(epoch).permutation(rows)

    def batches(num_workers, epoch):
        reader = reader_of(files(folder), 'mark', transform=PadCrop(SIZE, 3))
        return list(TrainLoader(reader, RandomRows(), len(rows), 3, **pipeline_options(num_workers)).batches(epoch))

    assert all_same(batches(0, 1), batches(2, 1))


def test_too_little_shared_memory_is_reported_before_workers_start(folder, monkeypatch):
    monkeypatch.setattr(pipeline, 'free_shared_bytes', lambda: 100)
    with pytest.raises(SharedMemoryFull, match=r'^5 batches of 4 images of 16 px take .* of shared memory'):
        train_loader(files(folder), num_workers=2)
    train_loader(files(folder), num_workers=0)
