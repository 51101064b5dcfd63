"""int8 files: layers, repeatable results, metadata, ONNX with a second file, and layers that stay in float32."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from lib.classifier.linear import LinearClassifier
from lib.errors import UserError
from lib.export import formats, int8
from lib.export.formats import files_of, run_onnx, run_openvino, write_onnx, write_openvino
from lib.export.int8 import AccuracyTarget, quantize_file
from lib.export.module import ExportedModel, Preprocessing
from lib.model import Recognizer

SIZE, NUM_CLASSES = 16, 4
PREPROCESSING = Preprocessing(SIZE, 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), bgr=False, inside=True)
FORMATS = {'onnx': (write_onnx, run_onnx), 'openvino': (write_openvino, run_openvino)}
SUFFIX = {'onnx': '.onnx', 'openvino': '.xml'}
pytestmark = pytest.mark.long


class Backbone(nn.Module):
    """Three convolutions; with `outlier`, a channel before the second is multiplied by it, and its weights divided."""

    num_features = 16

    def __init__(self, outlier: float = 1.0) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 16, 1)
        with torch.no_grad():
            for layer in (self.first, self.second, self.last):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
            self.first.bias[0] = 3.0  # the channel is never 0
            self.first.weight[0] *= outlier
            self.first.bias[0] *= outlier
            self.second.weight[:, 0] /= outlier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(images).relu()).relu()).mean((2, 3))


def exported(outlier: float = 1.0) -> ExportedModel:
    """Return a model whose mean logits are 0, so that it predicts all classes."""
    torch.manual_seed(0)
    model = ExportedModel(Recognizer(Backbone(outlier), LinearClassifier(16, NUM_CLASSES)), PREPROCESSING)
    with torch.no_grad():
        model.classifier.bias -= model(pixels(256))[0].mean(0)
    return model


def pixels(number: int, seed: int = 0) -> torch.Tensor:
    """Return images (number, SIZE, SIZE, 3) uint8, each of one of 8 colors, with noise."""
    generator = torch.Generator().manual_seed(seed)
    color = 60 + 130 * torch.randint(0, 2, (number, 1, 1, 3), generator=generator)
    noise = torch.randint(-60, 61, (number, SIZE, SIZE, 3), generator=generator)
    return (color + noise).to(torch.uint8)


def bytes_of(path) -> list[bytes]:
    return [file.read_bytes() for file in files_of(path) if file.exists()]


@pytest.mark.parametrize('file_format', [pytest.param('onnx', marks=pytest.mark.slow), 'openvino'])
def test_files_are_close_and_repeatable(file_format, tmp_path):
    write, load = FORMATS[file_format]
    source = tmp_path / f'float32{SUFFIX[file_format]}'
    model = exported()
    write(source, model, PREPROCESSING, {})
    noise = torch.randint(256, (73, SIZE, SIZE, 3), dtype=torch.uint8)  # of one range, so that it isn't clipped
    _, expected = load(source)(noise[:9])
    text = json.dumps(['<b>"é\n\x01\ud7ff', ''], ensure_ascii=False)
    paths = []
    for name in ('first', 'second'):
        graph = quantize_file(source, noise[9:])
        assert list(graph.layers().values()) == [True] * 4
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / f'model{SUFFIX[file_format]}')
        graph.save(paths[-1], {'classes': text})
    # The weights, which are the last file; names of OpenVINO's nodes are counted in a process.
    assert bytes_of(paths[0])[-1] == bytes_of(paths[1])[-1]
    logits, features = load(paths[0])(noise[:9])
    assert logits.shape == (9, NUM_CLASSES)
    assert 1e-4 < np.linalg.norm(features - expected) / np.linalg.norm(expected) < 0.05
    if file_format == 'onnx':
        import onnx

        metadata = {entry.key: entry.value for entry in onnx.load(paths[0]).metadata_props}
    else:
        import openvino

        info = openvino.Core().read_model(paths[0]).get_rt_info()['model_info']
        metadata = {'classes': info['classes'].value}
    assert metadata == {'classes': text}
    assert json.loads(metadata['classes'])[0] == '<b>"é\n\x01\ud7ff'


@pytest.mark.slow
@pytest.mark.parametrize('file_format', [pytest.param('onnx', marks=pytest.mark.slow), 'openvino'])
def test_layers_stay_in_float32_until_the_accuracy_is_reached(file_format, tmp_path):
    write, load = FORMATS[file_format]
    source, path = (tmp_path / f'{name}{SUFFIX[file_format]}' for name in ('float32', 'int8'))
    write(source, exported(outlier=2000.0), PREPROCESSING, {})
    images = pixels(64, 2)
    expected = load(source)(images)[0].argmax(axis=1)
    assert np.bincount(expected).max() < 40

    def accuracy(run) -> float:
        return float((run(images)[0].argmax(axis=1) == expected).mean())

    graph = quantize_file(source, pixels(64))
    graph.save(path, {})
    assert list(graph.layers().values()) == [True] * 4
    assert accuracy(load(path)) < 0.9
    target = AccuracyTarget(images, lambda predicted: float((predicted == expected).mean()), 0.02)
    graph = quantize_file(source, pixels(64), target)
    graph.save(path, {})
    layers = list(graph.layers().values())
    assert not layers[1]  # the second convolution, whose input has the outlier
    assert 1 <= layers.count(True) < 4
    assert accuracy(load(path)) >= 0.98


def test_onnx_with_a_second_file_can_be_read_from_another_folder(tmp_path, monkeypatch):
    import onnx

    whole, split = tmp_path / 'whole.onnx', tmp_path / 'a' / 'model.onnx'
    split.parent.mkdir()
    write_onnx(whole, exported(), PREPROCESSING, {'classes': '["a"]'})
    assert [file.name for file in files_of(whole) if file.exists()] == ['whole.onnx']
    monkeypatch.setattr(formats, 'MAX_ONNX_BYTES', 1000)
    write_onnx(split, exported(), PREPROCESSING, {'classes': '["a"]'})
    assert [file.name for file in split.parent.iterdir() if file.name != split.name] == ['model.onnx.data']
    locations = {
        entry.value
        for tensor in onnx.load(split, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == 'location'
    }
    assert locations == {'model.onnx.data'}
    moved = tmp_path / 'b'
    shutil.move(split.parent, moved)
    for actual, expected in zip(run_onnx(moved / 'model.onnx')(pixels(3)), run_onnx(whole)(pixels(3)), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert {entry.key: entry.value for entry in onnx.load(moved / 'model.onnx').metadata_props}['classes'] == '["a"]'
    monkeypatch.setattr(int8, 'MAX_ONNX_BYTES', 1000)
    with pytest.raises(UserError, match=r'too many for .* at most 2 GB: --EXPORT_FORMAT openvino'):
        quantize_file(moved / 'model.onnx', pixels(3))
