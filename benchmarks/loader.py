"""Speed of the training loader compared with the original entry's, torchvision's decoder and NVIDIA DALI on the CPU.

REAL_PHOTOS=FOLDER python benchmarks/loader.py [--json FILE]     (pip install -r benchmarks/requirements-bench.txt)

RandomResizedCrop to 112 px and flip, batch 64, two workers (threads for DALI) per side, normalized float32 batches in
the main process, epochs of about equal time. Photos: the real ones (348 px), and the same upscaled to 800 px, JPEG
quality 90. Packed: those of 800 px at 160 px, quality 90, in tar shards as written by tools/pack.py; packed_raw: the
same as pixels (--PACK_IMAGES raw), from the page cache.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from benchmarks.harness import alternate, finish, parse_arguments, real_photos, require
from benchmarks.original import OriginalPhotos, default_loader
from benchmarks.peers import TorchvisionPhotos, dali_epoch
from lib.commands.cli import cli_main
from lib.dataset.images import FileImages, Images
from lib.dataset.index import ClassIndex
from lib.dataset.loader import TrainLoader
from lib.dataset.normalize import Normalize
from lib.dataset.reader import BatchReader
from lib.dataset.transforms import RandomResizedCrop
from lib.shards.encode import Encoding, Raw, Reencode
from lib.shards.images import ShardImages
from lib.shards.index import INDEX
from lib.shards.pack import SplitJob, images_per_shard, pack_split

SIZE, BATCH_SIZE, WORKERS = 112, 64, 2
LARGE, PACKED, QUALITY = 800, 160, 90


@dataclass(frozen=True)
class Repeated:
    """A sampler that yields every row `times` times: epochs take as long as the peers', and so does their start-up."""

    num_images: int
    times: int

    def epoch_rows(self, epoch: int) -> np.ndarray:
        rows = np.arange(self.num_images).repeat(self.times)
        return np.random.default_rng(epoch).permutation(rows)


def ours(images: Images, times: int = 1) -> Callable[[], int]:
    """Return a function that iterates over an epoch of our loader, with each image `times` times."""
    labels = np.zeros(len(images), np.int32)
    index = ClassIndex(labels, 1)
    reader = BatchReader(images, labels, RandomResizedCrop(SIZE), 0, 'replace', index)
    plan = Repeated(len(images), times)
    device = torch.device('cpu')
    loader = TrainLoader(
        reader, plan, len(images) * times, BATCH_SIZE, device=device, normalize=Normalize(), num_workers=WORKERS
    )
    return lambda: sum(len(batch.images) for batch in loader.batches(0))


def counted(batches: Callable[[], Iterable]) -> Callable[[], int]:
    """Return a function that iterates over an epoch of a peer's loader and counts its images."""
    return lambda: sum(len(batch[0] if isinstance(batch, list) else batch) for batch in batches())


def enlarge(paths: list[Path], folder: Path) -> list[Path]:
    """Write the photos with a shorter side of LARGE pixels; return their paths."""

    def write(number: int) -> Path:
        photo = Image.open(paths[number]).convert('RGB')
        scale = LARGE / min(photo.size)
        path = folder / f'{number:05d}.jpg'
        photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC).save(
            path, quality=QUALITY
        )
        return path

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(write, range(len(paths))))


def pack(paths: list[Path], folder: Path, encoding: Encoding) -> Images:
    """Write the photos to shards; return the packed images."""
    names = pa.array([str(path) for path in paths], pa.large_string())
    job = SplitJob(
        folder=folder,
        images=FileImages(names),
        labels=np.zeros(len(paths), np.int32),
        names=names,
        num_classes=1,
        digest='',
        classes=None,
        encoding=encoding,
        images_per_shard=images_per_shard(len(paths)),
        max_bad_fraction=0.0,
    )
    pack_split(job, num_workers=WORKERS)
    return ShardImages(folder / INDEX)


def compare(large: list[Path], small: list[Path], packed: Images, raw: Images, rounds: int) -> dict[str, float]:
    """Return all rates and speedups."""
    original800 = default_loader(OriginalPhotos(large, SIZE), BATCH_SIZE, WORKERS)
    original348 = default_loader(OriginalPhotos(small, SIZE), BATCH_SIZE, WORKERS)
    torchvision800 = default_loader(TorchvisionPhotos(large, SIZE), BATCH_SIZE, WORKERS)
    first = alternate(
        {
            'raw800': ours(FileImages([str(path) for path in large]), times=3),
            'original800': counted(lambda: original800),
            'torchvision800': counted(lambda: torchvision800),
            'dali800': counted(dali_epoch(large, SIZE, BATCH_SIZE, WORKERS)),
            'packed': ours(packed, times=10),
            'packed_raw': ours(raw, times=20),
        },
        rounds,
    )
    sides = {
        'raw348': ours(FileImages([str(path) for path in small]), times=3),
        'original348': counted(lambda: original348),
    }
    second = alternate(sides, rounds)
    return {
        **{f'{name}_images_per_second': rate for name, rate in (first | second).items()},
        'raw800_speedup': first['raw800'] / first['original800'],
        'raw348_speedup': second['raw348'] / second['original348'],
        'packed_speedup': first['packed'] / first['original800'],
        'packed_raw_speedup': first['packed_raw'] / first['original800'],
        'raw800_torchvision_speedup': first['raw800'] / first['torchvision800'],
        'raw800_dali_speedup': first['raw800'] / first['dali800'],
    }


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], rounds=(5, 'epochs of each side'), photos=(1280, 'photos'))
    require('cv2', 'nvidia.dali')
    paths = sorted((real_photos() / 'train').rglob('*.jpg'))[: arguments.photos]
    with tempfile.TemporaryDirectory() as folder:
        large = enlarge(paths, Path(folder))
        packed = pack(large, Path(folder, 'packed'), Reencode(PACKED, QUALITY))
        raw = pack(large, Path(folder, 'raw'), Raw(PACKED))
        finish(compare(large, paths, packed, raw, arguments.rounds), arguments.json)


if __name__ == '__main__':
    cli_main(main)
