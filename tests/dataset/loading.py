"""Eleven images of four classes and loaders of them, for tests of batches."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lib.dataset.images import FileImages, Images
from lib.dataset.index import ClassIndex
from lib.dataset.loader import Batch, EvalLoader, TrainLoader
from lib.dataset.normalize import Normalize
from lib.dataset.reader import BatchReader
from lib.dataset.sampler import Sampler, class_balance
from lib.dataset.transforms import RandomResizedCrop, ResizeCenterCrop

SIZE = 16
CPU = torch.device('cpu')
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3], np.int32)
BAD = (1, 6, 7)  # rows of unreadable files
CROP = RandomResizedCrop(SIZE, (0.3, 1.0), (0.75, 4 / 3), 0.5)


def write_images(folder: Path, bad: tuple[int, ...] = ()) -> Path:
    """Write one image per row into a folder and return it; the files of `bad` rows are unreadable."""
    for row in range(len(LABELS)):
        (folder / f'{row}.png').write_bytes(b'no image at all' if row in bad else png(row))
    return folder


def png(row: int) -> bytes:
    """Return a noise image that depends on the row."""
    pixels = np.random.default_rng(row).integers(0, 256, (24, 20, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


def files(folder: Path) -> FileImages:
    """Return the images of a folder."""
    return FileImages([f'{row}.png' for row in range(len(LABELS))], str(folder))


def reader_of(images: Images, on_bad: str = 'replace', seed: int = 3, transform=CROP, hint: str = '') -> BatchReader:
    """Return a reader of training images."""
    return BatchReader(images, LABELS, transform, seed, on_bad, ClassIndex(LABELS, 4), hint=hint)


def pipeline_options(num_workers: int = 0) -> dict:
    """Return the options of BatchPipeline."""
    return {'device': CPU, 'normalize': Normalize(), 'num_workers': num_workers}


def train_loader(
    images: Images, batch_size=4, num_workers=0, weights=class_balance, seed=3, on_bad='replace', hint='', **options
) -> TrainLoader:
    """Return a loader of training images."""
    sampler = Sampler(weights, ClassIndex(LABELS, 4), seed, max_epoch=5)
    reader = reader_of(images, on_bad, seed, hint=hint)
    return TrainLoader(reader, sampler, len(LABELS), batch_size, **pipeline_options(num_workers), **options)


def eval_loader(images: Images, batch_size=4, num_workers=0, **options) -> EvalLoader:
    """Return a loader for evaluation."""
    reader = BatchReader(images, LABELS, ResizeCenterCrop(SIZE, 0.875), 0)
    return EvalLoader(reader, len(LABELS), batch_size, **pipeline_options(num_workers), **options)


def same(one: Batch, other: Batch) -> bool:
    """Return True if two batches are bit-identical."""
    tensors = ('images', 'labels', 'readable', 'rows')
    return one.bad == other.bad and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)


def all_same(one, other) -> bool:
    """Return True if two epochs have the same batches."""
    one, other = list(one), list(other)
    return len(one) == len(other) and all(map(same, one, other))
