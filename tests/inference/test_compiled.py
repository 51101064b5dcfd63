"""Compiled engines: parts of a batch in threads, one network per size, and real backends against PyTorch."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch

from lib.classifier.linear import LinearClassifier
from lib.inference.compiled import BACKENDS, CompiledEngine, InParts, difference, reproduces
from lib.inference.engine import EagerEngine
from lib.model import Recognizer

NUM_CLASSES = 7


def model(seed=0):
    torch.manual_seed(seed)
    backbone = timm.create_model('test_resnet', num_classes=0)
    for module in backbone.modules():  # statistics that are not those of a new network
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return Recognizer(backbone, LinearClassifier(backbone.num_features, NUM_CLASSES)).eval()


def images(number, size=32, seed=0):
    values = torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('number', [1, 2, 7, 8, 9, 40])
def test_parts_are_joined_in_order(number):
    batch = images(number, size=2, seed=number)
    network = InParts([lambda part: part.sum(dim=(2, 3))] * 3)
    assert torch.equal(network(batch), batch.sum(dim=(2, 3)))


def test_parts_run_at_the_same_time_and_no_worker_twice():
    meet = threading.Barrier(3, timeout=20)

    def worker():
        is_busy = threading.Lock()

        def compute(part):
            assert is_busy.acquire(blocking=False)
            meet.wait()  # fails unless three parts are computed at the same time
            time.sleep(0.001)
            is_busy.release()
            return part[:, 0, 0]

        return compute

    network, batches = InParts([worker() for _ in range(3)]), [images(24, 2, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:  # the engine may be called from several threads
        for batch, found in zip(batches, pool.map(network, batches), strict=True):
            assert torch.equal(found, batch[:, 0, 0])


def test_an_error_in_a_part_reaches_the_caller_and_the_worker_is_free_again():
    def compute(part):
        if part[0, 0, 0, 0] < 0:
            raise RuntimeError('no memory')
        return part[:, 0, 0]

    network, batch = InParts([compute]), images(3, 2).abs()
    with pytest.raises(RuntimeError, match='no memory'):
        network(-batch)
    assert torch.equal(network(batch), batch[:, 0, 0])


def test_a_network_is_opened_once_per_size():
    """The network copies numbers, since the last bits of convolutions depend on how many threads compute them."""
    opened = []

    def open_network(some):
        time.sleep(0.01)
        opened.append(tuple(some.shape[2:]))
        return lambda part: part[:, 0, -1]  # (batch, size)

    engine = CompiledEngine(model(), open_network)
    batches = [images(2, size, seed) for seed in range(4) for size in (32, 64)]
    with engine.inference(), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(engine.features, batches))
        for batch, features in zip(batches, found, strict=True):
            assert torch.equal(features, batch[:, 0, -1])
        assert engine.features(batches[0][:0]).shape == (0, engine.num_features)
    assert sorted(opened) == [(32, 32), (64, 64)]


def test_differences_are_relative_and_ties_may_be_decided_otherwise():
    engine = EagerEngine(model(1))
    weight = engine.model.classifier.weight.data
    features = torch.rand(4, weight.shape[1])
    assert difference(features, features) == 0
    assert difference(10 * features, 10 * features + 0.5) == pytest.approx(0.05 / float(features.max()))
    for other in (features[:2], features * torch.nan, features + torch.inf):
        assert difference(features, other) == torch.inf
        assert not reproduces(engine, features, other)
    assert reproduces(engine, features, features + 5e-5 * features.max())
    assert not reproduces(engine, features, features + 2e-4 * features.max())
    weight.zero_()
    weight[0, 0], weight[1, 1] = 1000.0, 1000.0
    engine.model.classifier.bias.data.zero_()
    pair = torch.zeros(1, weight.shape[1])
    pair[0, :3] = torch.tensor([1.0, 1.0 - 1e-5, 10.0])
    others = pair.clone()
    others[0, :2] = pair[0, [1, 0]]
    assert reproduces(engine, pair, others)  # another class by a tie
    pair[0, 1], others[0, :2] = 1.0 - 5e-4, torch.tensor([1.0 - 5e-4, 1.0])
    assert difference(pair, others) < 1e-4
    assert not reproduces(engine, pair, others)  # features that are equal enough, but another class


@pytest.mark.long
@pytest.mark.parametrize('name', ['openvino', pytest.param('onnxruntime', marks=pytest.mark.slow)])
def test_a_backend_reproduces_torch_for_any_batch_also_from_its_files(tmp_path, name):
    backend = BACKENDS[name]
    for package in backend.packages:
        pytest.importorskip(package)
    recognizer = model(2)
    graph = backend.convert(recognizer.backbone, images(2).contiguous())
    backend.save(graph, tmp_path)
    files = {file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).numpy()
             for file in tmp_path.iterdir()}  # fmt: skip
    for network in (backend.compile(graph, 'float32'), backend.compile(backend.load(files), 'float32')):
        for number in (1, 2, 5, 20):
            batch = images(number, seed=number)
            with torch.inference_mode():
                expected = recognizer.features(batch)
                for given in (batch, batch.contiguous()):
                    assert difference(expected, network(given)) < 1e-5
    batch = images(16, seed=9)
    with ThreadPoolExecutor(4) as pool:
        alone = [network(part) for part in batch.split(4)]
        assert torch.equal(torch.cat(list(pool.map(network, batch.split(4)))), torch.cat(alone))
