"""RUN.ENGINE: when an engine is tried, which one is chosen, what is cached, and what happens if one cannot be used."""

import logging

import pytest
import timm
import torch

from lib.builders import engine as module
from lib.builders.engine import ENGINES, build_engine
from lib.classifier.linear import LinearClassifier
from lib.config.yaml_text import as_node
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.inference.compiled import BACKENDS, Backend, InParts, difference
from lib.inference.engine import EagerEngine
from lib.model import Recognizer
from lib.runtime.device import Device
from lib.runtime.files import write_bytes
from lib.runtime.log import LOGGER
from tests.defaults import DEFAULTS

CPU, CUDA = (Device(torch.device(kind), (), None, None) for kind in ('cpu', 'cuda'))
MANY = 10_000


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda: [record.getMessage() for record in caplog.records]


def config(folder, **options):
    options = {f'RUN.{name}': value for name, value in options.items()}
    return as_node(DEFAULTS | {'MODEL.BACKBONE': 'test_resnet', 'LOG_ROOT': str(folder)} | options)


def model(seed=0):
    torch.manual_seed(seed)
    backbone = timm.create_model('test_resnet', num_classes=0)
    return Recognizer(backbone, LinearClassifier(backbone.num_features, 5)).eval()


def images(number=4, size=32):
    values = torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(number))
    return values.contiguous(memory_format=torch.channels_last)


class Fake:
    """Backends that compute with torch, count their conversions, and may fail or differ."""

    def __init__(self, monkeypatch, names=('openvino', 'onnxruntime')):
        self.converted, self.error, self.factor, self.precisions = [], None, 1.0, []
        for name in BACKENDS:
            packages = ('torch',) if name in names else ('a_package_that_is_not_installed',)
            backend = Backend(packages, self.convert, self.compile, self.save, lambda files: self.graph)
            monkeypatch.setitem(module.BACKENDS, name, backend)

    def convert(self, backbone, batch):
        self.converted.append(tuple(batch.shape))
        if self.error is not None:
            raise self.error
        self.graph = backbone
        return backbone

    def compile(self, graph, precision):
        self.precisions.append(precision)
        return InParts([lambda part: graph(part) * self.factor])

    def save(self, graph, folder):
        write_bytes(folder / 'graph', b'graph')


@pytest.fixture
def fake(monkeypatch):
    return Fake(monkeypatch)


def build(folder, recognizer, number=MANY, *, device=CPU, group=SINGLE_PROCESS, precision='float32', training=False,
          **options):  # fmt: skip
    return build_engine(
        config(folder, **options), recognizer, device, group, num_images=number, folder=folder / 'run',
        precision=precision, is_training=training, calibration=lambda size: [images(8, size)],
    )  # fmt: skip


def features_of(engine, batch):
    with engine.inference():
        return engine.features(batch)


def set_times(monkeypatch, **seconds):
    measured = []

    def measure(networks, batch):
        measured.append(list(networks))
        return {name: seconds[name] for name in networks}

    monkeypatch.setattr(module, '_measured', measure)
    return measured


def test_passes_over_few_images_have_the_bits_of_torch_and_write_nothing(tmp_path, fake, lines):
    recognizer, batch = model(), images()
    number = module.MIN_PIXELS['openvino'] // 32**2
    for few in (1, number - 1):
        found = features_of(build(tmp_path, recognizer, few), batch)
        assert torch.equal(found, features_of(EagerEngine(recognizer), batch))
    assert (fake.converted, lines(), list(tmp_path.iterdir())) == ([], [], [])
    features_of(build(tmp_path, recognizer, number + 1), batch)
    assert fake.converted


def test_the_fastest_is_chosen_stored_and_cached(tmp_path, fake, lines, monkeypatch):
    measured = set_times(monkeypatch, torch=0.0069, openvino=0.0041, onnxruntime=0.005)
    monkeypatch.setitem(module.MIN_PIXELS, 'onnxruntime', 0)
    recognizer, batch = model(), images()
    engine = build(tmp_path, recognizer)
    assert torch.allclose(features_of(engine, batch), features_of(EagerEngine(recognizer), batch))
    assert measured == [['torch', 'openvino', 'onnxruntime']]
    text = 'engine: openvino at 32 px (4.1 ms per image; torch 6.9 ms; onnxruntime 5 ms), '
    assert lines() == [text + 'measured']
    assert fake.converted == [(2, 3, 32, 32)] * 2
    features_of(build(tmp_path, recognizer), batch)  # the next command
    assert len(measured) == 1
    assert len(fake.converted) == 2
    assert lines()[1] == 'engine: openvino at 32 px (4.1 ms per image; torch 6.9 ms), cached in timings.json'
    features_of(build(tmp_path, model(1)), batch)  # other weights: the times hold, the graph does not
    assert (len(measured), len(fake.converted)) == (1, 3)
    assert len(list((tmp_path / 'run' / ENGINES).iterdir())) == 3


def test_each_size_has_its_network(tmp_path, fake, monkeypatch):
    set_times(monkeypatch, torch=2.0, openvino=1.0)
    engine = build(tmp_path, model())
    with engine.inference():
        for size in (32, 64, 32):
            engine.features(images(3, size))
    assert fake.converted == [(2, 3, 32, 32), (2, 3, 64, 64)]


def test_torch_is_chosen_where_it_is_as_fast(tmp_path, fake, lines, monkeypatch):
    set_times(monkeypatch, torch=1.03, openvino=1.0)
    recognizer, batch = model(), images()
    fake.factor = 1 + 1e-6
    expected = features_of(EagerEngine(recognizer), batch)
    for _ in range(2):
        assert torch.equal(features_of(build(tmp_path, recognizer), batch), expected)
    assert [line.split(' at ')[0] for line in lines()] == ['engine: torch', 'engine: torch']
    assert len(fake.converted) == 1


def test_an_engine_that_differs_is_not_used(tmp_path, fake, lines, monkeypatch):
    measured = set_times(monkeypatch, torch=2.0, openvino=1.0)
    fake.factor = 1 + 3e-4
    recognizer, batch = model(), images()
    expected = features_of(EagerEngine(recognizer), batch)
    assert torch.equal(features_of(build(tmp_path, recognizer), batch), expected)
    assert lines()[0] == 'engine: openvino differs from torch by 3.0e-04, allowed are 1e-04'
    assert not (tmp_path / 'run').exists()
    with pytest.raises(UserError, match=r'RUN.ENGINE openvino differs from torch by 3.0e-04.*: --RUN_ENGINE torch'):
        features_of(build(tmp_path, recognizer, 1, ENGINE='openvino'), batch)
    fake.factor = 1.0  # other weights may not differ, so this is not stored
    features_of(build(tmp_path, recognizer), batch)
    assert measured == [['torch'], ['torch', 'openvino']]


@pytest.mark.parametrize('training', [False, True])
def test_a_failed_conversion_falls_back_to_torch_with_a_line(tmp_path, fake, lines, monkeypatch, training):
    set_times(monkeypatch, torch=2.0, openvino=1.0)
    fake.error = RuntimeError('operator is unknown')
    recognizer, batch = model(), images()
    expected = features_of(EagerEngine(recognizer), batch)
    for name in ('auto', 'openvino'):
        assert torch.equal(features_of(build(tmp_path, recognizer, training=training, ENGINE=name), batch), expected)
    text = 'openvino cannot compute test_resnet (RuntimeError: operator is unknown)'
    assert sum(text in line for line in lines()) == 2
    with pytest.raises(UserError, match='operator is unknown'):
        features_of(build(tmp_path, recognizer, precision='int8'), batch)


def test_training_and_ranks_take_openvino_without_measuring(tmp_path, fake, lines, monkeypatch):
    measured = set_times(monkeypatch)
    for options in ({'training': True}, {'group': ProcessGroup(1, 2)}):
        features_of(build(tmp_path, model(), **options), images())
    assert measured == []
    assert lines() == ['engine: openvino at 32 px'] * 2
    assert not (tmp_path / 'timings.json').exists()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'ENGINE': 'openvino', 'device': CUDA}, 'computes on the CPU, but RUN.DEVICE is cuda: --RUN_DEVICE cpu'),
        ({'ENGINE': 'torch', 'precision': 'int8'}, 'int8 is computed by OpenVINO on the CPU, but RUN.ENGINE is torch'),
        ({'precision': 'int8', 'device': CUDA}, 'RUN.DEVICE cuda: --RUN_ENGINE openvino --RUN_DEVICE cpu'),
        ({'ENGINE': 'onnxruntime', 'precision': 'bf16'}, 'bf16 is computed by OpenVINO'),
        (
            {'ENGINE': 'openvino', 'device': Device(torch.device('cpu'), (), None, torch.bfloat16)},
            'RUN.PRECISION auto is for RUN.ENGINE torch; .* --RUN_PRECISION auto',
        ),
    ],
)
def test_engines_that_do_not_fit_are_mistakes(tmp_path, fake, options, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path, model(), **options)


def test_an_engine_that_is_not_installed_is_named_with_the_command(tmp_path, monkeypatch):
    Fake(monkeypatch, names=())
    for options in ({'ENGINE': 'openvino'}, {'precision': 'int8'}):
        with pytest.raises(UserError, match='needs more packages: pip install a_package_that_is_not_installed'):
            build(tmp_path, model(), **options)
    recognizer, batch = model(), images()
    expected = features_of(EagerEngine(recognizer), batch)
    assert torch.equal(features_of(build(tmp_path, recognizer), batch), expected)
    found = features_of(build(tmp_path, recognizer, precision='bf16'), batch)  # torch computes in bf16, too
    assert 1e-4 < difference(expected, found) < 0.05


def test_bf16_compiles_the_checked_graph_of_float32(tmp_path, fake, lines):
    recognizer = model()
    features_of(build(tmp_path, recognizer, 1, ENGINE='openvino'), images())
    features_of(build(tmp_path, recognizer, 1, precision='bf16'), images())
    assert fake.precisions == ['float32', 'bf16']
    assert len(fake.converted) == 1
    assert lines() == ['engine: openvino at 32 px', 'engine: openvino at 32 px, bf16']
    features_of(build(tmp_path / 'other', recognizer, 1, precision='bf16'), images())
    assert fake.precisions[2:] == ['float32', 'bf16']


def test_adapters_are_merged(tmp_path, fake, monkeypatch):
    set_times(monkeypatch, torch=2.0, openvino=1.0)
    recognizer = model()
    recognizer.tune_backbone('ssf', rank=2, scale=1.0, seed=0, name='test_resnet')
    recognizer.eval()
    for parameter in recognizer.backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    names = {name for name, _ in recognizer.backbone.named_parameters()}
    found = features_of(build(tmp_path, recognizer), images())
    assert difference(features_of(EagerEngine(recognizer), images()), found) < 1e-5
    assert (
        {name for name, _ in fake.graph.named_parameters()}
        < names
        == {name for name, _ in recognizer.backbone.named_parameters()}
    )


@pytest.mark.slow
def test_the_real_engines_reproduce_torch_and_int8_is_near(tmp_path):
    pytest.importorskip('openvino')
    recognizer, batch = model(3), images(12)
    expected = features_of(EagerEngine(recognizer), batch)
    for precision, largest in (('float32', 1e-5), ('bf16', 0.05), ('int8', 0.3)):
        if precision == 'int8':
            pytest.importorskip('nncf')
        for _ in range(2):  # converted, then cached
            engine = build(tmp_path, recognizer, 1, ENGINE='openvino', precision=precision)
            found = features_of(engine, batch)
            assert difference(expected, found) < largest
            assert difference(expected, found) > 1e-4 or precision == 'float32'
    assert len(list((tmp_path / 'run' / ENGINES).iterdir())) == 2
