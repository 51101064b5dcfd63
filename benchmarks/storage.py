"""Training on packed images of a bucket compared with the same images on the local disk.

python benchmarks/storage.py [--classes N] [--images N] [--size N] [--workers N] [--rounds N] [--latency MS]
                             [--json FILE]

The server is moto's, on loopback, behind a proxy that delays each request by 20 ms; it runs on the same cores as the
training. Synthetic photos, packed as they are; test_resnet at 64 px, batch 32. First epochs, on both sides, are those
of new runs, which start their workers; in the bucket with an empty cache. Later epochs alternate, too. Results:
first_epoch_ratio and epoch_ratio, time of an epoch on the bucket / time of an epoch on the disk; requests, of a first
epoch; range_first_epoch_ratio and range_requests, the same where the set is larger than half of the cache, so that no
blocks are fetched, but images; memory_ratio, resident memory after all epochs on the bucket / that after the first;
cache_mb, the largest size that a cache with the limit limit_mb, smaller than the shards, had in an epoch.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import alternate, finish, parse_arguments
from benchmarks.training import config_of, epoch_of, options_of, write_photos
from lib.commands.cli import cli_main
from lib.commands.command import Command
from lib.commands.train import TrainingRun, prepare_training
from lib.distributed.process_group import SINGLE_PROCESS
from tests.storage_server import StorageServer, forget, running_server


def packed(folder: Path, num_classes: int, each: int) -> Path:
    """Return a folder of shards of synthetic photos."""
    write_photos(folder / 'photos', num_classes, each, 160)
    command = [sys.executable, 'tools/pack.py', '--config', 'configs/own_photos.yaml', '--MODEL_PRETRAINED', '']
    command += ['--DATASET_ROOT', str(folder / 'photos'), '--PACK_OUT', str(folder / 'shards')]
    subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[1], stdout=subprocess.DEVNULL)
    return folder / 'shards'


@contextmanager
def training_on(shards: str, args: argparse.Namespace, *more: object) -> Iterator[TrainingRun]:
    """Prepare a run on shards of the disk or of a bucket."""
    changes = {'MODEL_BACKBONE': 'test_resnet', 'INPUT_SIZE': args.size, 'TRAIN_BATCH_SIZE': 32}
    changes |= {'RUN_NUM_WORKERS': args.workers, 'RUN_DEVICE': 'cpu', 'RUN_PRECISION': 'float32'}
    with tempfile.TemporaryDirectory() as folder:
        options = [*options_of(**changes), '--DATASET_SHARDS', shards, '--LOG_ROOT', folder, *map(str, more)]
        with prepare_training(Command(config_of(options), None), SINGLE_PROCESS) as run:
            yield run


def seconds_of(run: TrainingRun) -> float:
    """Train one epoch; return its time."""
    epoch, started = epoch_of(run), time.perf_counter()
    epoch()
    return time.perf_counter() - started


def resident_mb() -> float:
    """Return the resident memory of this process."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def size_mb(folder: Path) -> float:
    """Return the space that the files of a folder take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob('*') if path.is_file()) / 1e6


def first_epochs(
    server: StorageServer, url: str, shards: Path, args: argparse.Namespace, *more: object
) -> tuple[float, int]:
    """Alternate first epochs on both sides; return the ratio of their medians, and the requests for images."""
    remote, disk, requests = [], [], 0
    for _ in range(args.rounds):
        with training_on(str(shards), args) as run:
            disk.append(seconds_of(run))
        with tempfile.TemporaryDirectory() as cache:
            forget()
            with training_on(url, args, '--STORAGE_CACHE', cache, *more) as run:
                server.requests()
                remote.append(seconds_of(run))
                requests = sum('.tar' in line for line in server.requests())
    return statistics.median(remote) / statistics.median(disk), requests


def largest_cache(url: str, limit_mb: float, args: argparse.Namespace) -> float:
    """Train an epoch with a small cache; return its largest size in MB."""
    with tempfile.TemporaryDirectory() as cache:
        forget()
        more = ('--STORAGE_CACHE', cache, '--STORAGE_CACHE_GB', limit_mb / 1e3)
        sizes, is_done = [0.0], threading.Event()

        def watch() -> None:
            while not is_done.wait(0.05):
                sizes.append(size_mb(Path(cache)))

        with training_on(url, args, *more) as run:
            thread = threading.Thread(target=watch)
            thread.start()
            try:
                seconds_of(run)
            finally:
                is_done.set()
                thread.join()
    return max(sizes)


def main() -> None:
    """Print and write the results."""
    args = parse_arguments(
        (__doc__ or '').partition('\n')[0],
        classes=(50, 'number of classes'),
        images=(80, 'images per class'),
        size=(64, 'image size in pixels'),
        workers=(2, 'worker processes'),
        rounds=(5, 'epochs of each side'),
        latency=(20, 'milliseconds that are added to each request'),
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shards = packed(folder, args.classes, args.images)
        server = stack.enter_context(running_server())
        os.environ.update(server.environment())
        name = server.new_bucket()
        server.put_folder(name, 'shards', shards)
        stack.enter_context(server.faults(delay=args.latency / 1e3))
        url, shards_mb = f's3://{name}/shards', size_mb(shards)
        results: dict[str, float] = {}
        results['first_epoch_ratio'], results['requests'] = first_epochs(server, url, shards, args)
        ranges = first_epochs(server, url, shards, args, '--STORAGE_CACHE_GB', 1.9 * shards_mb / 1e3)
        results['range_first_epoch_ratio'], results['range_requests'] = ranges
        local = stack.enter_context(training_on(str(shards), args))
        forget()
        with training_on(url, args, '--STORAGE_CACHE', folder / 'cache') as remote:
            seconds_of(remote)
            before = resident_mb()
            rates = alternate({'bucket': epoch_of(remote), 'disk': epoch_of(local)}, args.rounds)
            memory = resident_mb() / before
        limit_mb = max(10.0, shards_mb / 2)
        results |= {
            'epoch_ratio': rates['disk'] / rates['bucket'],
            'disk_images_per_second': rates['disk'],
            'memory_ratio': memory,
            'shards_mb': shards_mb,
            'limit_mb': limit_mb,
            'cache_mb': largest_cache(url, limit_mb, args),
        }
    finish(results, args.json)


if __name__ == '__main__':
    cli_main(main)
