"""Benchmarks of training: all sides do the same work, and each part runs with a small size."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import cached_features, epoch, gpu, precision, step
from benchmarks.original import OriginalTraining, original_model
from benchmarks.peers_timm import Recipe, TimmLoop, script_command, script_rates, script_run
from benchmarks.training import ReadyBatches, converted_photos, epoch_of, options_of, training, write_photos
from lib.errors import UserError
from lib.formats.imagefolder import convert_image_folder

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = Recipe('resnet10t', 32, 4, 3, 0, None)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp('photos'), num_classes=3, each=4, size=40)


@pytest.fixture
def run(photos):
    options = options_of(
        MODEL_BACKBONE='resnet10t', INPUT_SIZE=32, TRAIN_BATCH_SIZE=4, RUN_DEVICE='cpu', RUN_NUM_WORKERS=0,
        RUN_PRECISION='float32',
    )  # fmt: skip
    with training(converted_photos(photos), options) as run:
        yield run


def ready(steps=3):
    return ReadyBatches(torch.device('cpu'), batch_size=4, size=32, num_classes=3, steps=steps)


@pytest.mark.long
def test_all_three_loops_take_the_same_steps(run):
    """From the same weights, all loops reach the same weights, so none does less work."""
    batches = ready()
    run.trainer.loader = batches
    run.trainer.step.schedule = lambda step: 0.01
    peer = TimmLoop(SMALL)
    peer.schedule.step_update = lambda **_: None
    model = run.trainer.state.model
    original = OriginalTraining(nn.Sequential(*_copies(model)), lr=0.01)
    for source, target in zip(model.state_dict().values(), peer.model.state_dict().values(), strict=True):
        target.copy_(source)
    before = next(iter(model.parameters())).clone()
    assert [epoch_of(run)(), original.epoch(batches.plain()), peer.epoch(batches.plain())] == [12, 12, 12]
    ours = list(model.parameters())
    assert not torch.equal(before, ours[0])
    for others in (original.model.parameters(), peer.model.parameters()):
        for our_weight, peer_weight in zip(ours, others, strict=True):
            torch.testing.assert_close(our_weight, peer_weight, rtol=1e-3, atol=1e-4)


def _copies(model):
    return copy.deepcopy(model.backbone).to(memory_format=torch.contiguous_format), copy.deepcopy(model.classifier)


def test_an_epoch_uses_the_loader(run):
    assert epoch_of(run)() == 12


@pytest.mark.parametrize(('name', 'size'), [('resnet18', 64), ('resnest50', 64), ('res32_cifar', 32)])
def test_original_networks_compute_logits(name, size):
    logits = original_model(name, 5).eval()(torch.zeros(2, 3, size, size))
    assert logits.shape == (2, 5)
    assert logits.is_contiguous()


def test_timms_loader_reads_the_same_photos(photos):
    peer = TimmLoop(SMALL)
    batches = list(peer.loader(photos))
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 32, 32)] * 3
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted([0, 1, 2] * 4)
    assert all(images.dtype == torch.float32 and images.min() < 0 < images.max() for images, _ in batches)


LOG = """\
Train: 0 [   0/2 (  0%)]  Loss: 1.10 (1.10)  Time: 9.000s,    0.44/s  (9.000s,    0.44/s)  LR: 1.000e-02  Data: 0.1
Train: 1 [   0/2 (  0%)]  Loss: 1.10 (1.10)  Time: 2.000s,    2.00/s  (2.000s,    2.00/s)  LR: 1.000e-02  Data: 0.1
Train: 1 [   1/2 (100%)]  Loss: 1.10 (1.10)  Time: 0.010s,  400.00/s  (0.020s,  200.50/s)  LR: 1.000e-02  Data: 0.1
Test: [   0/0]  Time: 0.051 (0.051)  Loss:   1.100 ( 1.100)  Acc@1:   0.000 (  0.000)  Acc@5:   0.000 (  0.000)
Train: 2 [   1/2 (100%)]  Loss: 1.10 (1.10)  Time: 0.010s,  400.00/s  (0.020s, 1300.00/s)  LR: 1.000e-02  Data: 0.1
"""


def test_rates_are_the_final_averages_of_all_epochs_but_the_first():
    assert script_rates(LOG) == [200.5, 1300.0]
    with pytest.raises(UserError, match='no rate of a second epoch'):
        script_rates(LOG[:130])


@pytest.mark.process
def test_train_py_runs_in_its_folder_and_failures_are_reported(tmp_path):
    with pytest.raises(UserError, match=r'no train\.py in this folder'):
        script_run(tmp_path, tmp_path, tmp_path, SMALL)
    (tmp_path / 'train.py').write_text(f'import sys\nprint({LOG!r}, file=sys.stderr)\n')
    assert script_run(tmp_path, tmp_path, tmp_path / 'out', SMALL)() == [200.5, 1300.0]
    (tmp_path / 'train.py').write_text('raise SystemExit("no such model")\n')
    with pytest.raises(UserError, match='no such model'):
        script_run(tmp_path, tmp_path, tmp_path / 'out', SMALL)()


def test_command_of_train_py_has_the_precision():
    assert '--amp' not in script_command(Path('train.py'), Path('p'), Path('o'), SMALL, 3)
    half = Recipe('resnet18', 112, 32, 10, 2, torch.bfloat16)
    command = script_command(Path('train.py'), Path('p'), Path('o'), half, 3)
    assert command[command.index('--amp-dtype') + 1] == 'bfloat16'


def test_steps_compared_with_the_original(monkeypatch):
    monkeypatch.setitem(step.NETWORKS, 'tiny', ('res32_cifar', 32, 4, 3, 1))
    results = step.against_original('tiny', rounds=1)
    assert set(results) == {'tiny_images_per_second', 'tiny_original_images_per_second', 'tiny_speedup'}
    assert all(value > 0 for value in results.values())


@pytest.mark.slow
def test_runs_compared_with_the_parts_of_timm(monkeypatch):
    monkeypatch.setattr(step, 'WORKERS', 0)
    results = step.against_timm(rounds=1, checkout=None, num_photos=64)
    assert all(value > 0 for value in results.values())


@pytest.mark.slow
@pytest.mark.process
def test_runs_compared_with_train_py(monkeypatch, tmp_path):
    (tmp_path / 'train.py').write_text(f'print({LOG!r})\n')
    monkeypatch.setattr(step, 'EPOCHS', 2)
    results = step.against_timm(rounds=1, checkout=tmp_path, num_photos=64)
    assert results['timm_epoch_images_per_second'] == np.median([200.5, 1300.0])
    assert results['ours_epoch_images_per_second'] > 0


@pytest.mark.long
def test_the_choice_of_the_precision_is_compared_with_training(monkeypatch, capsys):
    monkeypatch.setitem(precision.NETWORKS, 'resnet18', ('test_resnet', 32, 4, 4))
    monkeypatch.setattr('lib.runtime.precision.has_bfloat16', lambda: True)
    results = precision.compare('resnet18', 'cpu', 1)
    assert capsys.readouterr().out.startswith('test_resnet: precision: ')
    bfloat16 = results['resnet18_bfloat16_speedup']
    assert results['resnet18_chosen_speedup'] in (pytest.approx(bfloat16), pytest.approx(1 / bfloat16))
    monkeypatch.setattr('lib.runtime.precision.has_bfloat16', lambda: False)
    with pytest.raises(UserError, match='nothing to choose'):
        precision.compare('resnet18', 'cpu', 1)


@pytest.mark.parametrize('loss', gpu.LOSSES)
def test_chunked_error_is_small(loss):
    error = gpu.chunked_error(loss, device='cpu', num_classes=50, num_images=70)
    assert 0 < error < 1e-5


@pytest.mark.long
def test_memory_of_each_kind(photos):
    for kind in ('plain', 'chunked'):
        assert np.isnan(gpu.memory(20, kind, photos, device='cpu', batch_size=2))


@pytest.mark.slow
@pytest.mark.process
def test_rates_of_a_network(photos, monkeypatch):
    monkeypatch.setattr(gpu, 'WORKERS', 0)
    results = gpu.rates('resnet50', 32, photos, device='cpu', batch_size=4, rounds=1, checkout=None)
    assert len(results) == 4
    assert all(value > 0 for value in results.values())


@pytest.mark.slow
@pytest.mark.process
def test_decoding(photos, monkeypatch):
    monkeypatch.setattr(gpu, 'FEW_WORKERS', 0)
    results = gpu.decoding(photos, device='cpu', batch_size=2, rounds=1)
    assert len(results) == 3
    assert all(value > 0 for value in results.values())


def test_without_a_gpu_one_line_describes_the_benchmark(monkeypatch, capsys):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr(sys, 'argv', ['gpu.py'])
    gpu.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert 'no GPU' in line


@pytest.mark.slow
@pytest.mark.process
def test_without_a_gpu_its_process_prints_nothing_else():
    done = subprocess.run(
        [sys.executable, 'benchmarks/gpu.py'], cwd=REPOSITORY, capture_output=True, text=True, check=True,
        env={'CUDA_VISIBLE_DEVICES': '', 'PATH': ''},
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1
    assert 'no GPU' in done.stdout


@pytest.mark.slow
@pytest.mark.skipif('REAL_PHOTOS' not in os.environ, reason='REAL_PHOTOS is not set')
def test_epochs_on_real_photos():
    pytest.importorskip('cv2')
    photos = epoch.training_photos(70)
    assert len(photos.splits['train']) == 70
    assert len(set(photos.splits['train'].labels.tolist())) > 20, 'at equal distances in the list'
    results = epoch.compare(photos, rounds=1)
    assert len(results) == 5
    assert all(value > 0 for value in results.values())


@pytest.mark.long
@pytest.mark.process
def test_cached_features(photos):
    dataset = convert_image_folder(photos)
    rates = cached_features.head_speeds(dataset, size=32, rounds=1)
    assert list(rates) == ['features_images_per_second', 'images_images_per_second', 'extract_images_per_second']
    assert all(rate > 0 for rate in rates.values())


@pytest.mark.slow
def test_linear_probe(photos):
    found = cached_features.probe(convert_image_folder(photos), size=32)
    assert found['probe_valid_top1'] in (0, 1)  # there is one validation photo
