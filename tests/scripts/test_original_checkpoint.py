"""Checkpoints of the original entry: ResNeSt-50 at 112 px, BGR images with RGB statistics, percent, `module.`."""

import csv
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import v2

from lib.builders.data import open_test_split
from lib.commands.cli import read_command
from lib.commands.loaded_model import load_model
from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import ON_CPU, error_line

NUM_CLASSES = 6
NOTE = 'contains no config: configs/AiProducts_original.yaml is used (BGR images, cosine scale 1)'


@pytest.fixture(scope='module')
def network():
    """A ResNeSt-50 whose BatchNorm statistics differ from those of a new one."""
    torch.manual_seed(3)
    network = timm.create_model('resnest50d', num_classes=NUM_CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    # Large enough for the classes to differ, so that 1e-4 is a tolerance.
    torch.nn.init.normal_(network.fc.weight, std=0.2)
    torch.nn.init.normal_(network.fc.bias, std=0.2)
    return network.eval()


def original_state(network, *, bias=True):
    state = {f'module.backbone.{key}': value for key, value in network.state_dict().items() if key[:3] != 'fc.'}
    state['module.classifier.weight'] = network.fc.weight.detach()
    if bias:
        state['module.classifier.bias'] = network.fc.bias.detach()
    return state


def save_original(path, network, *, bias=True):
    """Write a checkpoint in the format of the original entry, with optimizer and scheduler."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], 0.5, momentum=0.9, weight_decay=1e-4)
    parameter.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20, 30])
    content = {
        'state_dict': original_state(network, bias=bias),
        'epoch': 57,
        'scheduler': scheduler.state_dict(),
        'optimizer': optimizer.state_dict(),
        'best_result': np.float64(90.05),
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def checkpoint(network, tmp_path_factory):
    return save_original(tmp_path_factory.mktemp('original') / 'original.pth', network)


def original_input(path):
    """Return one image (3, 112, 112): BGR, normalized with RGB statistics, without using lib."""
    image = Image.open(path).convert('RGB')
    image = v2.CenterCrop(112)(v2.Resize(128)(image))
    bgr = torch.from_numpy(np.asarray(image)[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (bgr - mean[:, None, None]) / std[:, None, None]


@torch.no_grad()
def expected_features(network, products, names):
    """Return the features of timm's model (num_images, 2048)."""
    images = torch.stack([original_input(products / name) for name in names])
    return network.forward_head(network.forward_features(images), pre_logits=True)


@torch.no_grad()
def expected_logits(network, features):
    """Return the logits of timm's model (num_images, num_classes)."""
    return network.get_classifier()(features)


def logits_of(options):
    """Return names and logits of the test split, as the library computes them."""
    logits = []
    trained = load_model(read_command([*map(str, options), *ON_CPU], program='test.py'))
    split = open_test_split(trained.cfg, trained.class_names)
    trained.evaluate(split, label='test', sinks=[lambda batch, output: logits.append(output.logits)])
    return split.names.to_pylist(), torch.cat(logits)


@pytest.mark.long
def test_logits_are_those_of_timm(network, checkpoint, products):
    names, logits = logits_of(['--RESUME_MODEL', checkpoint, '--DATASET_ROOT', products])
    expected = expected_logits(network, expected_features(network, products, names))
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('kind', [np.float64, np.float32, np.int64])
def test_a_numpy_scalar_as_best_result(network, tmp_path, kind):
    state = {key: value for key, value in original_state(network).items() if 'classifier' in key}
    torch.save({'state_dict': state, 'epoch': 57, 'best_result': kind(90)}, tmp_path / 'original.pth')
    found = read_checkpoint(tmp_path / 'original.pth')
    assert (found.num_classes, found.config, found.progress) == (NUM_CLASSES, '', None)


def test_predict_and_rebalance(scripts, network, checkpoint, products, tmp_path):
    options = ('--RESUME_MODEL', checkpoint, '--DATASET_ROOT', products, '--NAME', 'old', *ON_CPU)
    done = scripts.run(tmp_path, 'test.py', *options, '--TEST_EMBEDDINGS', True)
    assert NOTE in done.stdout
    features = np.load(tmp_path / 'log' / 'old' / 'original_predictions_test.features.npy')
    with open(tmp_path / 'log' / 'old' / 'original_predictions_test.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    names = [row['id'] for row in rows]
    expected = expected_features(network, products, names)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    assert [int(row['predicted']) for row in rows] == expected_logits(network, expected).argmax(1).tolist()

    done = scripts.run(tmp_path, 'tau_norm.py', *options)
    assert NOTE in done.stdout
    tau = json.loads((tmp_path / 'log_tau' / 'old' / 'tau.json').read_text())
    # Without training counts there are no many, medium and few.
    assert tau['before'].keys() >= {'top1', 'mean_class_error'}
    assert not tau['before'].keys() & {'many', 'medium', 'few'}
    saved = tmp_path / 'log_tau' / 'old' / 'best_model.pth'
    scripts.run(tmp_path, 'test.py', '--RESUME_MODEL', saved, '--DATASET_ROOT', products, *ON_CPU)
    assert (tmp_path / 'log_tau' / 'old' / 'predictions_test.csv').exists()


def test_cosine(scripts, network, products, tmp_path):
    path = save_original(tmp_path / 'cosine.pth', network, bias=False)
    options = ('--RESUME_MODEL', path, '--DATASET_ROOT', products)
    names, logits = logits_of([*options, '--MODEL_CLASSIFIER', 'FCNorm'])
    features = expected_features(network, products, names)
    weight = network.fc.weight.detach()
    expected = torch.nn.functional.cosine_similarity(features[:, None], weight[None], dim=2)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    line = error_line(scripts.run(tmp_path, 'test.py', *options, *ON_CPU, code=2))
    assert 'its classifier has no bias' in line
    assert '--MODEL_CLASSIFIER FCNorm' in line


@pytest.mark.slow
def test_fc_read_as_cosine(scripts, checkpoint, products, tmp_path):
    options = ('--RESUME_MODEL', checkpoint, '--DATASET_ROOT', products, '--MODEL_CLASSIFIER', 'FCNorm')
    line = error_line(scripts.run(tmp_path, 'test.py', *options, *ON_CPU, code=2))
    assert 'classifier.bias' in line
    assert 'MODEL.CLASSIFIER' in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_resuming_is_fine_tuning(scripts, network, products, tmp_path):
    """The original's files lack the number of finished epochs: main.py uses only their weights."""
    path = save_original(tmp_path / 'original.pth', network)
    options = ('--RESUME_MODEL', path, '--DATASET_ROOT', products, '--NAME', 'tuned')
    options += ('--TRAIN_MAX_EPOCH', 1, '--TRAIN_BATCH_SIZE', 8, '--DATASET_HEAD_CAP', 1, '--INPUT_SIZE', 32)
    line = error_line(scripts.run(tmp_path, 'main.py', *options, '--RESUME_MODE', 'continue', *ON_CPU, code=2))
    assert 'the checkpoint holds weights only' in line
    done = scripts.run(tmp_path, 'main.py', *options, *ON_CPU)
    assert NOTE in done.stdout
    assert 'fine-tuning from' in done.stdout
    assert (tmp_path / 'log' / 'tuned' / 'best_model.pth').exists()
