"""Weights from files: formats, reports and errors."""

import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from lib.backbone.create import create_backbone
from lib.backbone.pretrained import load_pretrained
from lib.errors import UserError


@pytest.fixture(scope='module')
def weights():
    """Return the state of a small network with random tensors, so that swapped tensors are detected."""
    torch.manual_seed(3)
    state = create_backbone('res32_cifar', image_size=32).state_dict()
    return {key: torch.rand(value.shape).to(value.dtype) for key, value in state.items()}


def small():
    return create_backbone('res32_cifar', image_size=32)


def equal(backbone, weights) -> bool:
    return all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'encoder.', 'module.backbone.', 'module.encoder.'])
@pytest.mark.parametrize('nested', [None, 'state_dict', 'model'])
def test_nesting_and_prefixes(tmp_path, weights, prefix, nested):
    state = prefixed(weights, prefix)
    torch.save({nested: state, 'epoch': 3} if nested else state, tmp_path / 'w.pth')
    backbone = small()
    report = load_pretrained(backbone, tmp_path / 'w.pth')
    assert report.complete
    assert len(report.matched) == len(weights)
    assert equal(backbone, weights)


def test_safetensors(tmp_path, weights):
    safetensors.torch.save_file(weights, tmp_path / 'w.safetensors')
    backbone = small()
    assert load_pretrained(backbone, tmp_path / 'w.safetensors').complete
    assert equal(backbone, weights)


def test_every_key_is_reported(tmp_path, weights):
    state = prefixed(weights, 'module.backbone.')
    del state['module.backbone.bn1.weight']
    del state['module.backbone.bn1.num_batches_tracked']
    state['module.backbone.conv1.weight'] = torch.zeros(16, 1, 3, 3)
    state['module.backbone.layer9.weight'] = torch.zeros(1)
    state['module.classifier.weight'] = torch.zeros(10, 64)
    torch.save({'state_dict': state}, tmp_path / 'w.pth')
    report = load_pretrained(small(), tmp_path / 'w.pth')
    assert report.missing == ('bn1.weight',)
    assert report.mismatched == ('conv1.weight',)
    assert report.unexpected == ('module.backbone.layer9.weight',)
    assert report.classifier == ('module.classifier.weight',)
    assert len(report.matched) == len(weights) - 3
    assert not report.complete
    assert '1 missing (bn1.weight)' in report.summary()


@pytest.mark.long
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'old format'])
def test_torchvision_resnet50_loads(tmp_path, zipped):
    """resnet50-19c8e357.pth has the old format of torch and no batch counters."""
    torch.manual_seed(4)
    original = torchvision.models.resnet50().eval()
    state = {k: v for k, v in original.state_dict().items() if not k.endswith('num_batches_tracked')}
    torch.save(state, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    backbone = create_backbone('res50', image_size=64).eval()
    report = load_pretrained(backbone, tmp_path / 'w.pth')
    assert report.complete
    assert report.classifier == ('fc.weight', 'fc.bias')
    original.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), original(images))


def test_no_match_names_keys_of_file_and_backbone(tmp_path):
    torch.save({'stem.kernel': torch.zeros(2, 3)}, tmp_path / 'w.pth')
    with pytest.raises(UserError, match=r'stem\.kernel \(2, 3\).*conv1\.weight \(16, 3, 3, 3\)'):
        load_pretrained(small(), tmp_path / 'w.pth')


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def write_malicious(folder, path):
    torch.save({'state_dict': Malicious(folder / 'executed')}, path)


def write_malicious_pickle(folder, path):
    path.write_bytes(pickle.dumps(Malicious(folder / 'executed')))


@pytest.mark.parametrize(
    'write',
    [
        write_malicious,
        write_malicious_pickle,
        lambda _, path: path.write_bytes(b''),
        lambda _, path: path.write_bytes(b'<html>not found</html>'),
        lambda _, path: path.write_bytes(b'PK\x03\x04 cut short'),
        lambda _, path: torch.save([1, 2], path),
        lambda _, path: torch.save({'epoch': 1}, path),
        lambda _, path: path.mkdir(),
        lambda _, path: None,
    ],
    ids=['code', 'bare pickle', 'empty', 'html', 'cut zip', 'list', 'no tensors', 'folder', 'missing'],
)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_bad_file_is_one_error_line_and_not_executed(tmp_path, write, suffix):
    path = tmp_path / f'weights{suffix}'
    write(tmp_path, path)
    with pytest.raises(UserError, match=r'MODEL.PRETRAINED') as caught:
        load_pretrained(small(), path)
    assert '\n' not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'old format'])
def test_damaged_file_is_read_or_raises_user_error(tmp_path, zipped, seed):
    """After random changes of bytes, every exception of torch becomes a UserError."""
    random = np.random.default_rng(seed)
    path = tmp_path / 'w.pth'
    torch.save({'state_dict': {'x.weight': torch.zeros(2)}}, path, _use_new_zipfile_serialization=zipped)
    backbone = small()
    good = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    for _ in range(60):
        bad = good.copy()
        bad[random.integers(min(len(bad), 400), size=2)] = random.integers(256, size=2)
        path.write_bytes(bad.tobytes())
        with pytest.raises(UserError):  # even if it is readable, no key fits
            load_pretrained(backbone, path)
