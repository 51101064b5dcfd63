"""Small networks of all families, tuned ones too, in every format: the results of PyTorch at any batch size."""

import random

import pytest
import timm
import torch
from torch import nn

from lib.backbone.adapters import is_adapter, merge_into_backbone
from lib.backbone.split_attention import use_fast_split_attention
from lib.backbone.tuning import tune_backbone
from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LinearClassifier
from lib.export.formats import (
    TOLERANCE,
    largest_difference,
    run_onnx,
    run_openvino,
    run_torch_export,
    write_onnx,
    write_openvino,
    write_torch_export,
)
from lib.export.int8 import quantize_file
from lib.export.module import ExportedModel, Preprocessing, fuse_linear_norms
from lib.model import Recognizer

FORMATS = {
    'onnx': ('model.onnx', write_onnx, run_onnx),
    'openvino': ('model.xml', write_openvino, run_openvino),
    'torch_export': ('model.pt2', write_torch_export, run_torch_export),
}
# Name, or name and kind of tuning -> options of timm; few layers, but each type of them.
NETWORKS = {
    'resnet18': {'layers': (1, 1, 1, 1), 'channels': (8, 16, 24, 32)},
    'resnest14d': {},
    'test_efficientnet': {},
    'tf_efficientnet_lite0': {},
    'convnext_atto': {'depths': (1, 1, 1, 1)},
    'vit_tiny_patch16_224': {'depth': 2, 'img_size': 64},
    'vit_small_patch14_reg4_dinov2': {'depth': 2, 'embed_dim': 96, 'num_heads': 3, 'img_size': 70},
    'swin_tiny_patch4_window7_224': {'depths': (2, 2), 'embed_dim': 24, 'num_heads': (2, 4), 'img_size': 56},
    'swinv2_tiny_window8_256': {'depths': (2, 2), 'embed_dim': 24, 'num_heads': (2, 4), 'img_size': 64},
    'levit_128s': {'depth': (1, 1, 1), 'img_size': 224},
}
TUNED = [
    (name, kind)
    for name, kinds in {
        'vit_tiny_patch16_224': ('lora', 'ssf', 'adaptformer'),
        'swin_tiny_patch4_window7_224': ('lora', 'ssf', 'adaptformer'),
        'swinv2_tiny_window8_256': ('lora', 'ssf', 'adaptformer'),
        'convnext_atto': ('ssf',),
        'tf_efficientnet_lite0': ('ssf',),
        'resnet18': ('ssf',),
    }.items()
    for kind in kinds
]
DEFAULT = {('vit_tiny_patch16_224', 'openvino')}


def moved(module: nn.Module) -> nn.Module:
    """Move all parameters and statistics, so that scales and positions that start as zeros compute something."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand_like(value) if name.endswith('running_var') else torch.randn_like(value)
                value.add_(0.05 * noise)
    return module


def network(name: str, kind: str = '', *, cosine: bool = False) -> tuple[Recognizer, int]:
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    torch.manual_seed(seed)
    size = NETWORKS[name].get('img_size', 64)
    backbone = timm.create_model(name, num_classes=0, **NETWORKS[name]).eval()
    use_fast_split_attention(backbone)
    if kind:
        tune_backbone(backbone, kind, rank=4)
    moved(backbone)
    with torch.no_grad():
        width = backbone(torch.zeros(1, 3, size, size)).shape[1]
    classifier = CosineClassifier(width, 7, 16.0) if cosine else LinearClassifier(width, 7)
    return Recognizer(backbone, moved(classifier)).eval(), size


def check(recognizer: Recognizer, size: int, file_format: str, folder) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (5, size, size, 3), dtype=torch.uint8, generator=generator)
    preprocessing = Preprocessing(size, 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), bgr=False, inside=True)
    model = ExportedModel(recognizer, preprocessing)
    with torch.inference_mode():
        expected = [part.clone() for part in model(images)]
    merge_into_backbone(model.backbone)
    fuse_linear_norms(model.backbone)
    with torch.inference_mode():
        for before, after in zip(expected, model(images), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    name, write, load = FORMATS[file_format]
    write(folder / name, model, preprocessing, {})
    assert largest_difference(model, load(folder / name), [images[:1], images[:3], images]) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize(
    ('name', 'file_format'),
    [
        pytest.param(name, file_format, marks=() if (name, file_format) in DEFAULT else pytest.mark.slow)
        for name in NETWORKS
        for file_format in FORMATS
    ],
)
def test_families(name, file_format, tmp_path):
    check(*network(name), file_format, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize(('name', 'kind'), [pytest.param(*one, marks=pytest.mark.slow) for one in TUNED])
def test_tuned_networks(name, kind, file_format, tmp_path):
    recognizer, size = network(name, kind)
    assert any(map(is_adapter, recognizer.state_dict()))
    check(recognizer, size, file_format, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('file_format', FORMATS)
def test_cosine_classifier(file_format, tmp_path):
    check(*network('resnet18', cosine=True), file_format, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('file_format', ['onnx', 'openvino'])
@pytest.mark.parametrize('name', NETWORKS)
def test_int8_of_families(name, file_format, tmp_path):
    recognizer, size = network(name)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (24, size, size, 3), dtype=torch.uint8, generator=generator)
    preprocessing = Preprocessing(size, 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), bgr=False, inside=True)
    file, write, load = FORMATS[file_format]
    fuse_linear_norms(recognizer.backbone)
    write(tmp_path / file, ExportedModel(recognizer, preprocessing), preprocessing, {})
    graph = quantize_file(tmp_path / file, images[:16])
    layers = list(graph.layers().values())
    assert layers.count(True) > 0.7 * len(layers) > 3  # nncf leaves squeeze-and-excitation in float32
    graph.save(tmp_path / f'int8_{file}', {})
    for batch in (images[16:17], images[16:]):
        _, expected = load(tmp_path / file)(batch)
        _, features = load(tmp_path / f'int8_{file}')(batch)
        assert float(abs(features - expected).max()) < 0.5 * float(abs(expected).max())
