"""Training speed, memory of large classifiers, accuracy of the chunked classifier, and decoding on a GPU.

python benchmarks/gpu.py [--json FILE] [--only rates memory correctness decoding] [--timm FOLDER] [--photos N]
    [--rounds N]
torchrun --nproc-per-node N benchmarks/gpu.py --only memory       (also measures the sharded classifier)

Each result is printed as soon as it is measured, and all of them at the end.

rates: ResNet-50 and ResNeSt-50 at 112 and 224 px, batch 256, on synthetic batches and on packed photos; timm on the
same synthetic batches and on the same photos as a folder of JPEGs (its parts, or its train.py with --timm).
NETWORK_SIZE_ready_speedup and NETWORK_SIZE_packed_speedup.
memory: peak memory in GB of two steps of ResNet-50 at 112 px, batch 256, with 50,030 and a million classes, per kind of
classifier. correctness: largest error of the chunked loss and its gradients (float32) compared with the plain ones
(float64, CPU), relative to the largest value. decoding: speed of the loader alone at 224 px with two workers that read
photos of 500 px, decoded on the GPU (RUN.DECODE_DEVICE cuda) and by the workers: decode_cuda_speedup. Not yet run.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn

from benchmarks.harness import alternate, finish, new_parser
from benchmarks.peers_timm import Recipe, TimmLoop, script_run
from benchmarks.training import (
    ReadyBatches,
    config_of,
    converted_photos,
    epoch_of,
    options_of,
    training,
    write_photos,
)
from lib.builders.loss import build_loss
from lib.classifier.linear import LinearClassifier
from lib.commands.cli import cli_main
from lib.commands.pack import pack
from lib.config.options import local_path
from lib.dataset.loader import TrainLoader
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup, join_process_group
from lib.formats.converted import ConvertedDataset
from lib.formats.write import write_converted
from lib.loss.targets import Targets
from lib.model import Recognizer
from lib.runtime.device import pick_device
from lib.runtime.precision import StepFormat
from lib.trainer.chunked_head import ChunkedHead
from lib.trainer.forward import LossScale, ModelOutput

NETWORKS = {'resnet50': 'resnet50', 'resnest50': 'resnest50d'}  # ours: timm's name
SIZES, NUM_CLASSES = (112, 224), (50_030, 1_000_000)
BATCH_SIZE, WORKERS, PHOTO, CHUNK_IMAGES = 256, 8, 348, 32
DECODED_PHOTO, DECODED_SIZE, FEW_WORKERS = 500, 224, 2
LOSSES = ('cross_entropy', 'balanced_softmax', 'ldam')
PARTS = ('rates', 'memory', 'correctness', 'decoding')


def rates(
    name: str, size: int, photos: Path, *, device: str, batch_size: int, rounds: int, checkout: Path | None
) -> dict[str, float]:
    """Return our rates and speedups over timm for one network and image size."""
    converted = converted_photos(photos)
    num_classes = len(converted.names)
    by_rule = pick_device(device)
    recipe = Recipe(NETWORKS[name], size, batch_size, num_classes, WORKERS, by_rule.train_dtype, device)
    options = options_of(
        MODEL_BACKBONE=name, INPUT_SIZE=size, TRAIN_BATCH_SIZE=batch_size, RUN_DEVICE=device, RUN_NUM_WORKERS=WORKERS,
        RUN_PRECISION=StepFormat.of(by_rule).precision,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_converted(converted, Path(folder, 'data'))
        packing = ['--DATASET_ROOT', f'{folder}/data', '--PACK_OUT', f'{folder}/packed', '--INPUT_SIZE', str(size)]
        pack(config_of(packing))
        with training(converted, [*options, '--DATASET_SHARDS', f'{folder}/packed']) as run:
            peer, packed = TimmLoop(recipe), run.trainer.loader
            run.trainer.loader = ready = ReadyBatches(
                torch.device(device), batch_size=batch_size, size=size, num_classes=num_classes, steps=20
            )
            steps = alternate({'ours': epoch_of(run), 'timm': lambda: peer.epoch(ready.plain())}, rounds)
            run.trainer.loader = packed
            sides = {'ours': epoch_of(run)}
            if checkout is None:
                batches = peer.loader(photos)
                sides['timm'] = lambda: peer.epoch(batches)
            epochs = alternate(sides, rounds)
        if checkout is not None:
            epochs['timm'] = statistics.median(script_run(checkout, photos, Path(folder, 'timm'), recipe)())
    return {
        f'{name}_{size}_ready_images_per_second': steps['ours'],
        f'{name}_{size}_ready_speedup': steps['ours'] / steps['timm'],
        f'{name}_{size}_packed_images_per_second': epochs['ours'],
        f'{name}_{size}_packed_speedup': epochs['ours'] / epochs['timm'],
    }


def memory(
    num_classes: int,
    kind: str,
    photos: Path,
    *,
    device: str,
    batch_size: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> float:
    """Return the peak GPU memory (GB, of this rank) of two steps with a 'plain', 'chunked' or 'sharded' classifier."""
    dataset = converted_photos(photos)
    names = [str(label) for label in range(num_classes)]  # most classes have no photo
    changes = {'chunked': {'LOSS_CHUNK_IMAGES': CHUNK_IMAGES}, 'sharded': {'MODEL_CLASSIFIER_SHARDED': True}}
    options = options_of(
        MODEL_BACKBONE='resnet50', INPUT_SIZE=112, TRAIN_BATCH_SIZE=batch_size, RUN_DEVICE=device, RUN_NUM_WORKERS=0,
        **changes.get(kind, {}),
    )  # fmt: skip
    on_gpu = device != 'cpu'
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with training(ConvertedDataset(dataset.splits, names, None, dataset.root), options, group) as run:
        shard = group.shard(batch_size)
        run.trainer.loader = ReadyBatches(
            run.device.main, batch_size=shard.stop - shard.start, size=112, num_classes=len(dataset.names), steps=2
        )
        run.trainer.loader.batch_size = batch_size
        epoch_of(run)()
    return torch.cuda.max_memory_allocated() / 1e9 if on_gpu else float('nan')


def chunked_error(loss_name: str, *, device: str, num_classes: int = 50_030, num_images: int = 128) -> float:
    """Return the largest error of the loss and of the gradients of features and weights, relative to their largest."""
    torch.manual_seed(0)
    loss = build_loss(config_of(['--LOSS_TYPE', loss_name]), np.arange(1, num_classes + 1))
    features = torch.randn(num_images, 256, dtype=torch.float64)
    labels = torch.randint(num_classes, (num_images,))
    classifier = LinearClassifier(256, num_classes).double()
    exact = _gradients(classifier, features, lambda x: loss(classifier(x), Targets(labels), x))
    classifier, loss = classifier.float().to(device), loss.to(device)
    head = ChunkedHead(Recognizer(nn.Identity(), classifier), loss, chunk_images=CHUNK_IMAGES)
    targets = Targets(labels.to(device))
    scale = LossScale(loss.normalizer(targets), 1.0, 0, (num_images,))
    chunked = _gradients(
        classifier, features.float().to(device), lambda x: head(ModelOutput(None, x, None), targets, scale).loss
    )
    return max(
        ((ours.cpu().double() - theirs).abs().max() / theirs.abs().max()).item()
        for ours, theirs in zip(chunked, exact, strict=True)
    )


def _gradients(classifier: nn.Module, features: torch.Tensor, loss_of) -> list[torch.Tensor]:
    features = features.clone().requires_grad_()
    classifier.zero_grad()
    loss = loss_of(features)
    loss.backward()
    return [loss.detach(), features.grad, *(parameter.grad.clone() for parameter in classifier.parameters())]


def decoding(photos: Path, *, device: str, batch_size: int, rounds: int) -> dict[str, float]:
    """Return the speed of the loader alone, with images that `device` decodes and that its workers decode."""
    converted, sides = converted_photos(photos), {}
    with ExitStack() as stack:
        for name, decoder in (('cuda', device), ('cpu', 'cpu')):
            options = options_of(
                MODEL_BACKBONE='resnet18', INPUT_SIZE=DECODED_SIZE, TRAIN_BATCH_SIZE=batch_size, RUN_DEVICE=device,
                RUN_NUM_WORKERS=FEW_WORKERS, RUN_DECODE_DEVICE=decoder,
            )  # fmt: skip
            run = stack.enter_context(training(converted, options))
            sides[name] = partial(_read_epoch, run.trainer.loader)
        rates = alternate(sides, rounds)
    return {
        'decode_cuda_images_per_second': rates['cuda'],
        'decode_cpu_images_per_second': rates['cpu'],
        'decode_cuda_speedup': rates['cuda'] / rates['cpu'],
    }


def _read_epoch(loader: TrainLoader) -> int:
    num_images = sum(len(batch.rows) for batch in loader.batches(0))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return num_images


def measure(arguments: argparse.Namespace, group: ProcessGroup) -> dict[str, float]:
    """Return the results of the selected parts; with several ranks, only those of the memory."""
    results: dict[str, float] = {}

    def add(new: dict[str, float]) -> None:
        results.update(new)
        if group.is_main:
            print(*(f'{name} {value:.4g}' for name, value in new.items()), sep='\n', flush=True)

    kinds = ('plain', 'chunked') if group.world_size == 1 else ('plain', 'chunked', 'sharded')
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder, 'photos'), 1000, max(1, arguments.photos // 1000), PHOTO)
        common = {'device': 'cuda', 'batch_size': BATCH_SIZE}
        if 'rates' in arguments.only and group.world_size == 1:
            for name in NETWORKS:
                for size in SIZES:
                    add(rates(name, size, photos, rounds=arguments.rounds, checkout=arguments.timm, **common))
        if 'memory' in arguments.only:
            for number in NUM_CLASSES:
                for kind in kinds:
                    add({f'{kind}_{number}_gb': memory(number, kind, photos, group=group, **common)})
        if 'correctness' in arguments.only and group.world_size == 1:
            add({f'chunked_{name}_error': chunked_error(name, device='cuda') for name in LOSSES})
        if 'decoding' in arguments.only and group.world_size == 1:
            large = write_photos(Path(folder, 'large'), 100, max(1, arguments.photos // 100), DECODED_PHOTO)
            add(decoding(large, rounds=arguments.rounds, **common))
    return results


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS, help='parts to run (default: all)')
    parser.add_argument(
        '--timm', type=local_path, metavar='FOLDER', help="checkout of timm's repository, with train.py"
    )
    parser.add_argument('--photos', type=int, default=20_000, metavar='N', help='photos per epoch (default: 20000)')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='measurements per side (default: 5)')
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if not torch.cuda.is_available():
        print(
            'no GPU: this benchmark measures the speed of ResNet-50 and ResNeSt-50 at 112 and 224 px compared with '
            'timm, memory for 50,030 and 1,000,000 classes, errors of the chunked classifier, and decoding on the GPU'
        )
        return
    with join_process_group() as group:
        results = measure(arguments, group)
        if group.is_main:
            finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
