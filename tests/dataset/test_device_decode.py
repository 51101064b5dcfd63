"""Decoding on the device: the batches are those of the CPU up to rounding. The tests named cuda need a GPU."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from lib.dataset import device_decode
from lib.dataset.device_decode import EncodedImages, decoder_fault
from lib.dataset.images import FileImages
from lib.dataset.index import ClassIndex
from lib.dataset.lazy_image import open_lazy_image
from lib.dataset.loader import EvalLoader, TrainLoader
from lib.dataset.normalize import Normalize
from lib.dataset.reader import BatchReader
from lib.dataset.sampler import Sampler, class_balance
from lib.dataset.transforms import CropParams, PadCrop, RandomResizedCrop, ResizeCenterCrop, ResizeWhole
from lib.errors import UserError
from tests.dataset.cropping import crop

SIZE, CPU = 32, torch.device('cpu')
CROP = RandomResizedCrop(SIZE, (0.3, 1.0), (0.75, 4 / 3), 0.5)
LEVEL = 1 / (255 * 0.224)  # of a pixel, after normalization
ON_DEVICE = {'decodes_on_device': True}


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / 11 + y / 17 + phase) for phase in (0, 1, 2)]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


def jpeg(width=60, height=44, mode='RGB', orientation=0, **options) -> bytes:
    if orientation:
        options['exif'] = Image.Exif()
        options['exif'][0x0112] = orientation
    buffer = io.BytesIO()
    smooth(width, height).convert(mode).save(buffer, 'JPEG', **options)
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    smooth(50, 40).save(buffer, 'PNG')
    return buffer.getvalue()


def without_tables(data: bytes) -> bytes:
    """Return a file with an intact header and end that no decoder can decode: its quantization tables are missing."""
    while (start := data.find(b'\xff\xdb')) >= 0:
        data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], 'big') :]
    return data


FILES = {
    'usual': jpeg(),
    'gray': jpeg(mode='L'),
    '4:4:4': jpeg(53, 47, subsampling=0),
    '4:2:2': jpeg(41, 57, subsampling=1),
    'rotated': jpeg(orientation=6),
    'progressive': jpeg(progressive=True),
    'png': png(),
    'cut off': jpeg()[:-30],
    'without tables': without_tables(jpeg(50, 50)),
    'no image': b'no image at all',
    'fine': jpeg(56, 62, quality=95),
}
LABELS = np.arange(len(FILES), dtype=np.int32) // 4
BAD = [7, 8, 9]  # rows


@pytest.fixture
def images(tmp_path: Path) -> FileImages:
    for row, data in enumerate(FILES.values()):
        (tmp_path / str(row)).write_bytes(data)
    return FileImages(list(map(str, range(len(FILES)))), str(tmp_path))


def train_loader(images, *, device='cpu', workers=0, on_bad='replace', sizes=None, transform=CROP, **options):
    index = ClassIndex(LABELS, 3)
    reader = BatchReader(images, LABELS, transform, 3, on_bad, index)
    common = {'device': torch.device(device), 'normalize': Normalize(), 'num_workers': workers}
    return TrainLoader(
        reader, Sampler(class_balance, index, 3, max_epoch=3), len(LABELS), 5, sizes=sizes, **common, **options
    )  # fmt: skip


def eval_loader(images, *views, device='cpu', workers=0, **options) -> EvalLoader:
    reader = BatchReader(images, LABELS, views[0], 0, extra_transforms=views[1:])
    common = {'device': torch.device(device), 'normalize': Normalize(), 'num_workers': workers}
    return EvalLoader(reader, len(LABELS), 4, **common, **options)


def assert_close(ours, cpu, levels=2.01, mean_levels=1.0) -> None:
    """Compare batches whose pixels may differ by a number of levels of 255, at most and on average."""
    assert len(ours) == len(cpu) > 0
    for one, other in zip(ours, cpu, strict=True):
        for name in ('labels', 'readable', 'rows'):
            assert torch.equal(getattr(one, name).cpu(), getattr(other, name)), name
        assert sorted(one.bad) == sorted(other.bad)
        difference = (one.images.cpu() - other.images).abs()
        assert difference.max() <= levels * LEVEL
        assert difference.mean() <= mean_levels * LEVEL


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Return a list of the numbers of files that are decoded together."""
    decode, sizes = device_decode._decode, []

    def counted(files, device):
        sizes.append(len(files))
        return decode(files, device)

    monkeypatch.setattr(device_decode, '_decode', counted)
    return sizes


@pytest.mark.process
@pytest.mark.parametrize('options', [{}, {'workers': 2}, {'num_threads': 2}], ids=str)
def test_training_batches_are_those_of_the_cpu(images, decoded, options):
    """Crops, flips, replaced images, and larger images from the second epoch on."""
    cpu, ours = train_loader(images, sizes={1: 40}), train_loader(images, sizes={1: 40}, **ON_DEVICE, **options)
    for epoch in (0, 1):
        assert_close(list(ours.batches(epoch)), list(cpu.batches(epoch)))
    assert max(decoded) > 1


@pytest.mark.parametrize(
    'transform', [PadCrop(SIZE, 4), ResizeCenterCrop(SIZE, 0.875, interpolation='bicubic')], ids=str
)
def test_transforms(images, transform):
    cpu, ours = train_loader(images, transform=transform), train_loader(images, transform=transform, **ON_DEVICE)
    assert_close(list(ours.batches(0)), list(cpu.batches(0)), levels=4.01)


@pytest.mark.process
@pytest.mark.parametrize('workers', [0, 1])
def test_views_and_marked_images(images, decoded, workers):
    """An image is decoded once for all views; the last batch is smaller."""
    views = ResizeCenterCrop(SIZE, 0.875), ResizeWhole(SIZE), ResizeCenterCrop(SIZE + 8, 1.0)
    cpu, ours = eval_loader(images, *views), eval_loader(images, *views, workers=workers, **ON_DEVICE)
    batches = [list(loader.views(loader.batch_slices())) for loader in (ours, cpu)]
    for one, other in zip(*batches, strict=True):
        assert_close(one, other)
    assert torch.nonzero(~torch.cat([one[0].readable for one in batches[0]])).flatten().tolist() == BAD
    assert decoded == [4, 1, 2, 1, 1]  # rows 0 to 3, 4, 8 and 10; 8 is refused, so each alone
    assert_close(list(ours), list(cpu))


def test_a_damaged_image_is_an_error_with_raise(images):
    reader = BatchReader(FileImages(['0', '8'], images.root), LABELS[:2], CROP, 0, 'raise', hint='use skip')
    loader = EvalLoader(reader, 2, 2, device=CPU, normalize=Normalize(), num_workers=0, **ON_DEVICE)
    with pytest.raises(UserError, match=r'8: .*; use skip$'):
        list(loader)


@pytest.mark.parametrize(
    ('data', 'expected'),
    [(data, name in ('usual', 'gray', '4:4:4', '4:2:2', 'rotated', 'without tables', 'fine'))
     for name, data in FILES.items() if name != 'no image']
    + [
        (simplejpeg.encode_jpeg(np.asarray(smooth(64, 64)), colorsubsampling='411'), False),
        (jpeg() + b'\0', False),  # padding after the end
        (jpeg()[:-2] + bytes(512) + b'\xff\xd9', False),  # a hole
        (jpeg(mode='CMYK'), False),
        (jpeg().replace(b'\xff\xdb', b'\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\0\xff\xdb', 1), False),  # RGB
        (jpeg().replace(b'\xff\xdb', b'\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\1\xff\xdb', 1), True),  # YCbCr
    ],
)  # fmt: skip
def test_files_that_are_left_to_the_device(data, expected):
    image = open_lazy_image(data)
    crop_of = ResizeCenterCrop(SIZE).crop_params(image.width, image.height)
    assert EncodedImages(['bilinear']).add(0, image, [crop_of]) is expected


@pytest.mark.parametrize(
    'params',
    [
        CropParams((0.5, 0, 8, 8), 8, 8),  # an edge within a pixel
        CropParams((0, 0, 8, 8), 3, 8),  # too small for torch's kernels
        CropParams((0, 0, 4000, 8), 100, 8),  # too strong a reduction for those of a GPU
    ],
)
def test_crops_that_are_left_to_the_cpu(params):
    usual = CropParams((0, 0, 8, 8), 8, 8)
    image = open_lazy_image(FILES['usual'])
    assert EncodedImages(['bilinear']).add(0, image, [usual])
    assert not EncodedImages(['bilinear'] * 2).add(0, image, [usual, params])


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientations(orientation):
    image = open_lazy_image(jpeg(orientation=orientation))
    whole = ResizeWhole(SIZE)
    encoded, view = EncodedImages(['bilinear']), torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
    assert encoded.add(0, image, [whole.crop_params(image.width, image.height)])
    assert encoded.decode_into([view]) == []
    assert np.abs(view[0].numpy().astype(int) - crop(whole, image)).max() <= 2


def test_a_reduced_photo():
    """The CPU decodes it at a quarter; the pixels are similar, not equal."""
    image = open_lazy_image(jpeg(640, 480))
    whole, encoded = ResizeWhole(112), EncodedImages(['bilinear'])
    view = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    assert encoded.add(0, image, [whole.crop_params(image.width, image.height)])
    assert encoded.decode_into([view]) == []
    assert np.abs(view[0].numpy().astype(int) - crop(whole, image)).mean() < 1


def test_images_are_decoded_in_groups_of_limited_memory(images, decoded, monkeypatch):
    whole = list(eval_loader(images, CROP, **ON_DEVICE))
    decoded.clear()
    monkeypatch.setattr(device_decode, '_MAX_PIXELS', 2 * 60 * 44)
    assert_close(list(eval_loader(images, CROP, **ON_DEVICE)), whole, levels=0)
    assert decoded[:2] == [2, 2]


def test_an_image_of_another_size_than_its_header_is_read_by_the_cpu(images, monkeypatch):
    decode = device_decode._decode
    monkeypatch.setattr(device_decode, '_decode', lambda files, device: [one[:, 1:] for one in decode(files, device)])
    ours, cpu = eval_loader(images, CROP, **ON_DEVICE), eval_loader(images, CROP)
    assert_close(list(ours), list(cpu), levels=0)


def test_no_warning_of_the_decoder_reaches_the_user(images):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        list(eval_loader(images, CROP, **ON_DEVICE))
    assert not [str(warning.message) for warning in caught if 'TorchVision' in str(warning.message)]


def test_a_missing_decoder_has_a_reason(monkeypatch):
    assert decoder_fault(CPU) == ''

    def fail(files, device):
        raise RuntimeError('decode_jpegs_cuda: torchvision not compiled with nvJPEG support')

    monkeypatch.setattr(device_decode, '_decode', fail)
    assert 'nvJPEG' in decoder_fault(CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('workers', [0, 1])
def test_cuda_batches_are_those_of_the_cpu(images, workers):
    """nvJPEG may repeat chroma that the CPU interpolates: 3 levels on average; a shift by a pixel would be 11."""
    assert decoder_fault(torch.device('cuda')) == ''
    limits = {'levels': 40, 'mean_levels': 5}
    for loader in (train_loader, lambda images, **options: eval_loader(images, ResizeCenterCrop(SIZE), **options)):
        cpu, ours = loader(images), loader(images, device='cuda', workers=workers, **ON_DEVICE)
        if loader is train_loader:
            assert_close(list(ours.batches(0)), list(cpu.batches(0)), **limits)
        else:
            assert_close(list(ours), list(cpu), **limits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda_decoding_does_not_overwrite_memory_in_use(images):
    """Freed blocks that pending work still reads are used by the decoder, so it waits for that work."""
    device, encoded = torch.device('cuda', 0), EncodedImages(['bilinear'])
    image = open_lazy_image(jpeg(1024, 1024))
    encoded.add(0, image, [ResizeWhole(SIZE).crop_params(1024, 1024)])
    view = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8, device=device)
    for _ in range(20):
        before = torch.ones(3 * 2**20, dtype=torch.uint8, device=device)
        torch.cuda._sleep(50_000_000)
        total = before.sum(dtype=torch.int64)
        del before
        encoded.decode_into([view])
        assert total.item() == 3 * 2**20
