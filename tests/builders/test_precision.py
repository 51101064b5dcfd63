"""Measured precision and memory format: when they are measured, what they change, and what a resumed run does."""

import copy
import itertools
import json
import logging
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lib.builders import precision as module
from lib.builders.model import new_model
from lib.builders.precision import choose_precision, measure_steps, step_format
from lib.commands.command import Command
from lib.commands.train import prepare_training
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.runtime import precision as formats_module
from lib.runtime.device import DTYPES, MEMORY_FORMATS, Device, pick_device
from lib.runtime.log import LOGGER
from lib.runtime.precision import StepFormat, StepTimes
from lib.runtime.timings import time_steps
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.checkpointing.state import Checkpoint
from tests.defaults import DEFAULTS
from tests.ranks import run_ranks
from tests.scripts.in_process import fresh_logger

CPU, CUDA = torch.device('cpu'), torch.device('cuda', 0)
DEVICE = Device(CPU, (), torch.bfloat16, None)
FLOAT32, BFLOAT16 = StepFormat('float32', 'channels_last'), StepFormat('bfloat16', 'channels_last')
ALL = [StepFormat(*pair) for pair in itertools.product(('float32', 'bfloat16'), MEMORY_FORMATS)]
MANY = module.MIN_IMAGES


def config(**changes):
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    small = {'MODEL.BACKBONE': 'test_resnet', 'INPUT.SIZE': 32, 'TRAIN.BATCH_SIZE': 4, 'RUN.DEVICE': 'cpu'}
    return as_node(DEFAULTS | small | {'NAME': 'x', 'RUN.NUM_WORKERS': 0, 'TRAIN.MAX_EPOCH': 1} | changes)


@pytest.fixture
def fake_times(monkeypatch):
    """Return a function that sets the times of both precisions; it returns the list of measured image sizes."""
    monkeypatch.setattr(formats_module, 'has_bfloat16', lambda: True)

    def simulate(float32=1.0, bfloat16=1.0):
        calls = []

        def measure(model, device, formats, *, image_size, max_images):
            calls.append(image_size)
            return StepTimes(max_images, {FLOAT32: float32, BFLOAT16: bfloat16})

        monkeypatch.setattr(module, 'measure_steps', measure)
        return calls

    return simulate


def choose(cfg, num_images=MANY, checkpoint=None, device=DEVICE, group=SINGLE_PROCESS):
    model = new_model(cfg, 3, device)
    chosen, line = choose_precision(cfg, model, device, num_images, checkpoint, group)
    assert model.train_dtype == chosen.train_dtype
    assert (chosen.main, chosen.eval_dtype) == (device.main, device.eval_dtype)
    return StepFormat.of(chosen), line


@pytest.mark.parametrize(
    ('float32', 'bfloat16', 'expected', 'line'),
    [
        (0.2, 0.1, BFLOAT16, 'precision: bfloat16 (100 ms for 4 images; float32 200 ms), measured'),
        (0.1, 0.2, FLOAT32, 'precision: float32 (100 ms for 4 images; bfloat16 200 ms), measured'),
    ],
)
def test_the_faster_one_is_chosen_and_cached(tmp_path, fake_times, float32, bfloat16, expected, line):
    cfg = config(LOG_ROOT=str(tmp_path))
    calls = fake_times(float32, bfloat16)
    assert choose(cfg) == (expected, line)
    assert choose(cfg) == (expected, line.replace('measured', 'cached in timings.json'))
    assert calls == [32]
    for other in (
        config(LOG_ROOT=str(tmp_path), INPUT__SIZE_SCHEDULE=(1, 48)),
        config(LOG_ROOT=str(tmp_path), MODEL__BACKBONE='test_vit'),
        config(LOG_ROOT=str(tmp_path), MODEL__FREEZE_BACKBONE=True, MODEL__TUNE='head'),
        config(LOG_ROOT=str(tmp_path), TRAIN__BATCH_SIZE=6),
    ):
        assert choose(other)[0] == expected
    assert calls == [32, 48, 32, 32, 32]
    (tmp_path / 'timings.json').write_text('{')
    assert choose(cfg) == (expected, line)
    assert len(calls) == 6


CACHED = {'MODEL__FREEZE_BACKBONE': True, 'MODEL__TUNE': 'head', 'TRAIN__FEATURES': 'cached'}


@pytest.mark.parametrize(
    ('changes', 'num_images', 'expected'),
    [
        ({}, MANY - 1, 'bfloat16'),
        ({'TRAIN__MAX_EPOCH': 10}, (MANY - 1) // 10, 'bfloat16'),
        ({'TRAIN__MAX_EPOCH': 0}, MANY, 'bfloat16'),
        ({'RUN__PRECISION': 'bfloat16'}, MANY, 'bfloat16'),
        (CACHED, MANY, 'float32'),
        (CACHED | {'RUN__PRECISION': 'bfloat16'}, MANY, 'bfloat16'),
    ],
)
def test_runs_that_gain_nothing_are_not_measured(tmp_path, fake_times, changes, num_images, expected):
    calls = fake_times(float32=0.1)
    chosen = BFLOAT16._replace(precision=expected)
    assert choose(config(LOG_ROOT=str(tmp_path), **changes), num_images) == (chosen, '')
    assert calls == []
    assert not list(tmp_path.iterdir())


def test_every_precision_and_memory_format_is_an_option():
    assert KEYS['RUN.PRECISION'].choices == ('auto', *DTYPES)
    assert KEYS['RUN.MEMORY_FORMAT'].choices == ('auto', *MEMORY_FORMATS)


def test_a_partial_measurement_is_not_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(formats_module, 'has_bfloat16', lambda: True)
    monkeypatch.setattr(module, 'measure_steps', lambda *_, **__: StepTimes(2, {BFLOAT16: 3.0}))
    cfg = config(LOG_ROOT=str(tmp_path))
    line = 'precision: bfloat16 (3.00 s for 2 images; float32 not measured), measured'
    assert choose(cfg) == (BFLOAT16, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('stored', 'changes', 'expected'),
    [
        (('cpu', 'float32', 'channels_last'), {}, FLOAT32),
        (('cpu', 'bfloat16', 'channels_last'), {}, BFLOAT16),
        (('cpu', 'float32', 'contiguous'), {}, StepFormat('float32', 'contiguous')),
        (('cpu', 'float32', 'contiguous'), {'RUN__MEMORY_FORMAT': 'channels_last'}, FLOAT32),
        (('cpu', 'float32', 'contiguous'), {'RUN__PRECISION': 'bfloat16'}, StepFormat('bfloat16', 'contiguous')),
        (('cpu', 'float16', 'channels_last'), {}, BFLOAT16),  # this CPU would emulate it
        (('cuda', 'float32', 'contiguous'), {}, BFLOAT16),
        (None, {}, BFLOAT16),  # an earlier version had the default
    ],
)
def test_a_resumed_run_has_the_format_of_its_checkpoint(tmp_path, fake_times, stored, changes, expected):
    calls = fake_times(float32=9.0)
    names = ('device', 'precision', 'memory_format')
    checkpoint = Checkpoint({}, step_format=stored and dict(zip(names, stored, strict=True)))
    cfg = config(LOG_ROOT=str(tmp_path), **changes)
    device = pick_device('cpu', 'bfloat16', cfg.RUN.MEMORY_FORMAT)
    assert choose(cfg, checkpoint=checkpoint, device=device) == (expected, '')
    assert calls == []


def test_bfloat16_of_another_machine_is_not_emulated(monkeypatch):
    monkeypatch.setattr(formats_module, 'has_bfloat16', lambda: False)
    checkpoint = Checkpoint({}, step_format=step_format(DEVICE))
    assert choose(config(), checkpoint=checkpoint, device=Device(CPU, (), None, None)) == (FLOAT32, '')


def test_other_ranks_have_the_choice_of_the_main_rank(tmp_path, fake_times, monkeypatch):
    calls = fake_times(float32=0.1)
    main = (FLOAT32, 'precision: float32')
    monkeypatch.setattr(ProcessGroup, 'broadcast_object', lambda self, value: main)
    assert choose(config(LOG_ROOT=str(tmp_path)), group=ProcessGroup(1, 2)) == main
    assert calls == []


def on_rank(rank, count, folder):
    formats_module.has_bfloat16 = lambda: True
    module.measure_steps = lambda *_, **__: StepTimes(4, {FLOAT32: 0.1, BFLOAT16: 0.2})
    cfg = config(LOG_ROOT=f'{folder}/{rank}')
    group = ProcessGroup(rank, count)
    device = [DEVICE, Device(CPU, (), None, None)][rank]  # another processor
    return [str(name) for name in choose(cfg, count * MANY, device=device, group=group)[0]]


@pytest.mark.process
@pytest.mark.long
def test_ranks_agree(tmp_path):
    first, second = run_ranks(on_rank, 2, tmp_path, str(tmp_path))
    assert first == second == list(FLOAT32)
    assert (tmp_path / '0' / 'timings.json').exists()
    assert not (tmp_path / '1').exists()


def test_synchronized_batchnorm_is_not_measured(monkeypatch, fake_times):
    """Its ranks wait for each other in every step."""
    calls = fake_times()
    cfg, device = config(MODEL__SYNC_BATCHNORM=True), Device(CUDA, (0,), torch.bfloat16, None)
    chosen, line = module._measured(cfg, torch.nn.Linear(1, 1), device, 2 * MANY, ProcessGroup(0, 2))
    assert (chosen, line, calls) == (BFLOAT16, '', [])


def state_of(model):
    tensors = {**model.state_dict(keep_vars=True)}
    memory = {name: (tensor.data_ptr(), tensor.stride(), tensor.requires_grad) for name, tensor in tensors.items()}
    modes = {name: module.training for name, module in model.named_modules()}
    gradients = {name: copy.copy(parameter.grad) for name, parameter in model.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}, (memory, modes), gradients


@pytest.mark.long
@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('backbone', ['test_resnet', 'test_vit', 'test_efficientnet'])
def test_a_measurement_changes_nothing(backbone, frozen):
    """Two tiny models are measured in all formats."""
    cfg = config(MODEL__BACKBONE=backbone, MODEL__FREEZE_BACKBONE=frozen, MODEL__TUNE='head' if frozen else 'full')
    model = new_model(cfg, 3, DEVICE)
    model.backbone.add_module('noise', torch.nn.Dropout(0.5))
    model.backbone.noise.eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number) if number % 2 else None
    before, random_state = state_of(model), torch.get_rng_state()
    times = measure_steps(model, DEVICE, ALL, image_size=32, max_images=6, seconds=1e6)
    assert times.num_images == 6
    assert list(times.seconds) == ALL
    assert all(0 < seconds < 60 for seconds in times.seconds.values())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.train_dtype == torch.bfloat16
    after = state_of(model)
    assert after[1] == before[1]
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    for name, gradient in before[2].items():
        assert (gradient is None) == (after[2][name] is None)
        assert gradient is None or torch.equal(gradient, after[2][name])


def test_a_step_that_fails_is_not_chosen(monkeypatch):
    model, classify = new_model(config(), 3, DEVICE), type(new_model(config(), 3, DEVICE)).classify

    def without_bfloat16(self, features):
        if self.train_dtype is not None:
            raise RuntimeError("not implemented for 'BFloat16'")
        return classify(self, features)

    monkeypatch.setattr(type(model), 'classify', without_bfloat16)
    times = measure_steps(model, DEVICE, [FLOAT32, BFLOAT16], image_size=32, max_images=2, seconds=60.0)
    assert list(times.seconds) == [FLOAT32]
    times = measure_steps(model, DEVICE, [BFLOAT16], image_size=32, max_images=8, seconds=60.0)
    assert times == StepTimes(2, {})


@pytest.mark.parametrize(
    ('seconds_per_image', 'num_images', 'is_measured'), [(0.001, 16, True), (0.1, 4, True), (9.0, 2, False)]
)
def test_large_models_are_measured_with_few_images(monkeypatch, seconds_per_image, num_images, is_measured):
    now = 0.0

    def timed_step(model, device, number, size):
        def step(name):
            nonlocal now
            now += number * seconds_per_image
            return number * seconds_per_image

        return step

    monkeypatch.setattr(module, '_timed_step', timed_step)
    monkeypatch.setattr(module, 'time', SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(time_steps, '__kwdefaults__', {'clock': lambda: now})
    model = new_model(config(), 3, DEVICE)
    times = measure_steps(model, DEVICE, [FLOAT32, BFLOAT16], image_size=32, max_images=16)
    assert times.num_images == num_images
    assert bool(times.seconds) is is_measured
    assert now <= 2 * 5.0 + 2 * 16 * seconds_per_image


def test_a_step_that_does_not_fit_is_halved(monkeypatch):
    timed_step = module._timed_step

    def limited(model, device, number, size):
        return timed_step(model, device, number, size) if number < 8 else lambda name: math.inf

    monkeypatch.setattr(module, '_timed_step', limited)
    model = new_model(config(), 3, DEVICE)
    times = measure_steps(model, DEVICE, [FLOAT32], image_size=32, max_images=16, seconds=60.0)
    assert times.num_images == 4
    assert list(times.seconds) == [FLOAT32]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for label, number in itertools.product('abc', range(6)):
        path = folder / label / f'{number}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return folder


def trained(photos, folder, **changes):
    """Train a run of two epochs; return its last checkpoint and its log."""
    options = {'DATASET__NAME': 'annotations', 'DATASET__ROOT': str(photos), 'LOG_ROOT': str(folder)}
    cfg = config(**{'TRAIN__MAX_EPOCH': 2, 'SEED': 5, **options, **changes})
    with prepare_training(Command(cfg, None)) as run:
        run.trainer.fit()
    return read_checkpoint(folder / 'x' / 'last.pth'), (folder / 'x' / 'log.txt').read_text()


@pytest.fixture
def measured(monkeypatch):
    """Return a function that lets runs, however short, measure all formats and choose this one."""

    def choose_always(name):
        monkeypatch.setattr(module, 'MIN_IMAGES', 1)
        monkeypatch.setattr(module, 'candidates', lambda *_: ALL)
        monkeypatch.setattr(module, 'measure_steps', partial(measure_steps, seconds=60.0))
        for place in (module, formats_module):
            monkeypatch.setattr(place, 'fastest', lambda *_: name)

    return choose_always


@pytest.fixture(autouse=True)
def log_of_tests():
    """Leave the logger as it was: a run adds its log file."""
    with fresh_logger():
        LOGGER.setLevel(logging.INFO)
        yield


@pytest.mark.long
@pytest.mark.parametrize('backbone', ['test_resnet', pytest.param('test_vit', marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    'name', [ALL[0], ALL[-1], *(pytest.param(one, marks=pytest.mark.slow) for one in ALL[1:-1])], ids=' '.join
)
def test_training_after_a_measurement_equals_training_without(photos, tmp_path, measured, name, backbone):
    forced, _ = trained(
        photos, tmp_path / 'forced', MODEL__BACKBONE=backbone, RUN__PRECISION=name.precision,
        RUN__MEMORY_FORMAT=name.memory_format,
    )  # fmt: skip
    measured(name)
    chosen, log = trained(photos, tmp_path / 'chosen', MODEL__BACKBONE=backbone)
    assert f'precision: {name.precision} (' in log
    assert json.loads((tmp_path / 'chosen' / 'timings.json').read_text())
    assert chosen.step_format == {'device': 'cpu', **name._asdict()}
    torch.testing.assert_close(chosen.state_dict, forced.state_dict, rtol=0, atol=0)
    for key, tensor in chosen.state_dict.items():
        assert tensor.stride() == forced.state_dict[key].stride()


@pytest.mark.long
@pytest.mark.parametrize(
    'name',
    [
        StepFormat('bfloat16', 'channels_last'),
        pytest.param(StepFormat('float32', 'contiguous'), marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(photos, tmp_path, measured, name):
    """It is not measured again, although that would choose another format."""
    measured(name)
    whole, _ = trained(photos, tmp_path / 'whole')
    trained(photos, tmp_path / 'parts', TRAIN__MAX_EPOCH=1)
    measured(next(other for other in ALL if other.precision != name.precision))
    resumed, log = trained(photos, tmp_path / 'parts', RESUME_MODEL='last')
    assert log.count('precision: ') == 1
    assert resumed.step_format == whole.step_format == {'device': 'cpu', **name._asdict()}
    torch.testing.assert_close(resumed.state_dict, whole.state_dict, rtol=0, atol=0)
