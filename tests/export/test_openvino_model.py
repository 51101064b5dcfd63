"""Conversion, compilation and quantization with OpenVINO, against PyTorch; nothing is sent, stored or printed."""

import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn

from lib.export.openvino_model import (
    compile_openvino,
    convert_openvino,
    import_openvino,
    is_transformer,
    quantize_openvino,
)
from tests.scripts.running import REPOSITORY

SIZE = 16
# As text, for another process too.
NETWORK = 'nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())'


def tiny_network():
    return eval(NETWORK, {'nn': nn}).eval()


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return tiny_network()


@pytest.fixture(scope='module')
def converted(network):
    return convert_openvino(network, torch.randn(2, 3, SIZE, SIZE), ['features'])


def images_of(batch, seed=0):
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_features_are_those_of_pytorch_at_any_batch_size(network, converted):
    compiled = compile_openvino(converted, streams=1)
    assert [output.get_any_name() for output in compiled.outputs] == ['features']
    for batch in (1, 2, 5):
        expected = network(images_of(batch)).numpy()
        np.testing.assert_allclose(compiled(images_of(batch).numpy())[0], expected, rtol=1e-4, atol=1e-5)


def test_channels_last_input_and_number_of_streams_change_nothing(converted):
    images = images_of(3)
    expected = compile_openvino(converted, streams=1)(images.numpy())[0]
    pixels = images.to(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    assert pixels.is_contiguous()
    np.testing.assert_array_equal(compile_openvino(converted, streams=2)(images.numpy())[0], expected)
    found = compile_openvino(converted, streams=2, nhwc=True)(pixels.numpy())[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_int8_is_close_and_repeatable(network, converted):
    openvino = import_openvino()
    batches = [images_of(16, seed) for seed in range(2)]
    first, second = (quantize_openvino(converted, batches) for _ in range(2))
    kinds = [node.get_type_name() for node in first.get_ops()]
    assert kinds.count('FakeQuantize') >= 2  # the inputs of the convolutions; int8 weights are constants
    assert 'FakeQuantize' not in [node.get_type_name() for node in converted.get_ops()]  # the argument is unchanged
    images = images_of(8, 7)
    results = [compile_openvino(one, 'int8', 1)(images.numpy())[0] for one in (first, second)]
    np.testing.assert_array_equal(*results)
    with torch.inference_mode():
        expected = network(images).numpy()
    error = np.linalg.norm(results[0] - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.15
    constants = [
        [node.data for node in one.get_ordered_ops() if isinstance(node, openvino.op.Constant)]
        for one in (first, second)
    ]
    assert all(np.array_equal(*pair) for pair in zip(*constants, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'expected'), [('vit_tiny_patch16_224', True), ('convnext_atto', False), ('resnest14d', False)]
)
def test_attention_is_found(name, expected):
    model = timm.create_model(name, num_classes=0).eval()
    assert is_transformer(convert_openvino(model, torch.zeros(2, 3, 224, 224))) is expected


# Imports, converts and quantizes in an empty home folder.
IN_SILENCE = f"""
import socket, sys
import torch
from torch import nn
from lib.export.openvino_model import compile_openvino, convert_openvino, quantize_openvino

def opened(*arguments, **_):
    raise SystemExit('a socket is opened')

socket.socket.connect = socket.getaddrinfo = opened
model = convert_openvino({NETWORK}.eval(), torch.zeros(2, 3, 16, 16))
compile_openvino(quantize_openvino(model, [torch.zeros(2, 3, 16, 16)]))
"""


@pytest.mark.slow
@pytest.mark.process
def test_nothing_is_sent_stored_or_printed(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', IN_SILENCE],
        cwd=REPOSITORY,
        env={'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.process
def test_a_signal_after_the_networks_are_gone_reaches_its_handler():
    code = """
import gc, signal, threading, torch
from lib.export.openvino_model import compile_openvino, convert_openvino, has_bf16
model = convert_openvino(torch.nn.Conv2d(3, 4, 3).eval(), torch.zeros(2, 3, 8, 8))
networks = [compile_openvino(model), compile_openvino(model)]
has_bf16()
thread = threading.Thread(target=networks.clear)
thread.start()
thread.join()
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print('handled'))
signal.raise_signal(signal.SIGINT)
"""
    command = [sys.executable, '-X', 'faulthandler', '-c', code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, 'handled\n')
