"""tools/export.py as a user runs it, and its files without PyTorch."""

import json
import re
import shutil
import subprocess
import sys
import venv

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from lib.commands import exported_network
from lib.dataset.normalize import IMAGENET_MEAN, IMAGENET_STD
from lib.export.openvino_model import own_signal_stack
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.scripts.in_process import run_in_process
from tests.scripts.running import ON_CPU, REPOSITORY, contents, error_line

BGR, INSIDE = ('--DATASET_COLOR_SPACE', 'BGR'), ('--EXPORT_PREPROCESSING', 'inside')
SUFFIX = {'onnx': '.onnx', 'openvino': '.xml'}
MODEL = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
# Blocks imports of all packages but onnxruntime, numpy and Pillow.
WITHOUT_PYTORCH = """
import sys

class Blocker:
    def find_spec(self, name, *_):
        if name.partition('.')[0] in ('torch', 'torchvision', 'timm', 'lib', 'yacs', 'onnx', 'onnxscript'):
            raise ImportError(f'{name} must not be needed')

sys.meta_path.insert(0, Blocker())
exec(compile(open('example.py').read(), 'example.py', 'exec'))
"""


def example() -> str:
    """Return the example of docs/export.md."""
    (example_code,) = [
        code
        for code in re.findall(r'```python\n(.*?)```', (REPOSITORY / 'docs' / 'export.md').read_text(), re.DOTALL)
        if 'onnxruntime' in code
    ]
    return example_code


@pytest.fixture(scope='module')
def photo(products):
    return products / json.loads((products / 'converted_val.json').read_text())['annotations'][3]['fpath']


def predicted_by_pytorch(scripts, run_folder, photo, *options):
    """Return the three best classes of a photo and their probabilities according to test.py."""
    scripts.run(run_folder, 'test.py', *MODEL, '--TEST_IMAGES', photo, '--TEST_TOP_K', 3, *options)
    lines = (run_folder / 'log' / 'tiny' / f'predictions_{photo.stem}.top3.csv').read_text().splitlines()[1:]
    return [(name, float(probability)) for *_, probability, name in (line.rsplit(',', 4) for line in lines)]


def check_example(folder, command, photo, expected):
    preprocessing = json.loads(
        onnxruntime.InferenceSession(folder / 'best_model.onnx').get_modelmeta().custom_metadata_map['preprocessing']
    )
    assert preprocessing['input']['dtype'] == 'uint8'
    (folder / 'example.py').write_text(example())
    Image.open(photo).save(folder / 'photo.jpg', quality=100, subsampling=0)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [line.rsplit(': ', 1) for line in done.stdout.splitlines()]
    assert len(found) == 3
    best, probability = found[0]
    assert best == expected[0][0]
    assert float(probability.rstrip('%')) / 100 == pytest.approx(expected[0][1], abs=0.05)


@pytest.fixture(scope='module')
def exported(scripts, finished, tmp_path_factory):
    """Return a function: options -> a folder with log/tiny and its best_model.onnx, and the output; read-only."""
    done = {}

    def export(*options):
        if options not in done:
            folder = tmp_path_factory.mktemp('exported')
            shutil.copytree(finished / 'log', folder / 'log')
            done[options] = folder, scripts.run(folder, 'tools/export.py', *MODEL, *options)
        return done[options]

    return export


@pytest.mark.process
@pytest.mark.long
def test_example_of_the_docs_needs_no_pytorch(scripts, exported, run_folder, photo):
    folder, done = exported(*BGR, *INSIDE)
    assert 'checked on images of' in done.stdout
    assert 'batches of 1, 3, 16, 7: within' in done.stdout
    shutil.copy(folder / 'log' / 'tiny' / 'best_model.onnx', run_folder)
    expected = predicted_by_pytorch(scripts, run_folder, photo, *BGR)
    check_example(run_folder, [sys.executable, '-c', WITHOUT_PYTORCH], photo, expected)


@pytest.mark.slow
def test_example_in_an_environment_without_pytorch(scripts, run_folder, photo, tmp_path):
    scripts.run(run_folder, 'tools/export.py', *MODEL, '--EXPORT_OUT', 'best_model.onnx')
    expected = predicted_by_pytorch(scripts, run_folder, photo)
    venv.create(tmp_path / 'venv', with_pip=True)
    python = tmp_path / 'venv' / 'bin' / 'python'
    installed = subprocess.run([python, '-m', 'pip', 'install', '-q', 'onnxruntime', 'numpy', 'pillow'], check=False)
    if installed.returncode:
        pytest.skip('packages cannot be installed here')
    check_example(run_folder, [python, 'example.py'], photo, expected)


def read_export(path, images):
    """Return the metadata of an exported file, and its logits and features for images, without this project."""
    if path.suffix == '.onnx':
        session = onnxruntime.InferenceSession(path)
        metadata, results = session.get_modelmeta().custom_metadata_map, session.run(['logits', 'features'], images)
    else:
        import openvino

        model = openvino.Core().read_model(path)
        with own_signal_stack():
            compiled = openvino.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        metadata = {name: entry.value for name, entry in model.get_rt_info()['model_info'].items()}
        results = [compiled(images)[name] for name in ('logits', 'features')]
    return {name: json.loads(text) for name, text in metadata.items()}, *results


@pytest.mark.parametrize('file_format', ['onnx', 'openvino'])
@pytest.mark.parametrize('preprocessing', ['inside', pytest.param('outside', marks=pytest.mark.slow)])
@pytest.mark.parametrize('color_space', [pytest.param('RGB', marks=pytest.mark.slow), 'BGR'])
def test_networks_equal_test_py(scripts, run_folder, products, preprocessing, color_space, file_format):
    options = ('--DATASET_COLOR_SPACE', color_space, '--EXPORT_PREPROCESSING', preprocessing)
    scripts.run(run_folder, 'tools/export.py', *MODEL, *options, '--EXPORT_FORMAT', file_format)
    # Images of the input size: with a crop ratio of 1 neither side resizes them.
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    (run_folder / 'photos').mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(run_folder / 'photos' / f'{index}.png')
    options = ('--TEST_IMAGES', 'photos', '--TEST_EMBEDDINGS', True, '--INPUT_CROP_RATIO', 1.0)
    scripts.run(run_folder, 'test.py', *MODEL, *options, '--DATASET_COLOR_SPACE', color_space)
    images = pixels
    if preprocessing == 'outside':
        images = pixels[..., ::-1] if color_space == 'BGR' else pixels
        images = ((images / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2).astype(np.float32)
    path = run_folder / 'log' / 'tiny' / f'best_model{SUFFIX[file_format]}'
    metadata, logits, features = read_export(path, {'images': images})
    assert metadata['classes'] == json.loads((products / 'classes.json').read_text())['names']
    info = metadata['preprocessing']
    assert (info['center_crop'], info['mean'], info['std']) == (32, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert info['channel_order'] == ('RGB' if preprocessing == 'inside' else color_space)
    expected = np.load(run_folder / 'log' / 'tiny' / 'predictions_photos.features.npy')
    assert np.abs(features - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    lines = _lines(run_folder / 'log' / 'tiny' / 'predictions_photos.csv')
    predicted = [int(line.split(',')[1]) for line in lines]
    assert logits.argmax(axis=1).tolist() == predicted


@pytest.mark.long
@pytest.mark.parametrize('file_format', [pytest.param('onnx', marks=pytest.mark.slow), 'openvino'])
def test_int8_reports_its_cost(run_folder, products, file_format):
    int8 = (*MODEL, '--EXPORT_FORMAT', file_format, '--EXPORT_PRECISION', 'int8', '--EXPORT_MAX_LOSS', 1)
    done = run_in_process(run_folder, 'tools/export.py', *int8)
    assert done.returncode == 0, done.stderr
    assert re.search(r'int8 in (\d+) of \1 layers, calibrated on 51 images of .*converted_train.json', done.stdout)
    assert 'int8 against float32 on 24 valid images: top-1' in done.stdout
    assert re.search(r'mean class error +\S+ -> +\S+ %: \S+ points, 95 % \[', done.stdout)
    path = run_folder / 'log' / 'tiny' / f'best_model.int8{SUFFIX[file_format]}'
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    metadata, logits, _ = read_export(path, {'images': pixels})
    assert logits.shape == (5, 6)
    report = metadata['int8']
    assert report['layers']['int8'] == report['layers']['total'] > 5
    assert report['calibration']['images'] == 51
    assert report['valid']['groups']['all']['images'] == 24
    assert set(report['valid']['groups']) == {'all', 'few'}
    assert 'exists already: set --OVERWRITE True' in error_line(run_in_process(run_folder, 'tools/export.py', *int8))


def multiply_channels(path, factor=1e4):
    """Multiply a channel of the last two blocks, and divide the weights behind it: int8 loses the other channels."""
    checkpoint = read_checkpoint(path)
    state = checkpoint.state_dict
    for norms, layers in (
        (('layer3.0.bn3', 'layer3.0.downsample.2'), ('backbone.layer4.0.conv1', 'backbone.layer4.0.downsample.1')),
        (('layer4.0.bn2', 'layer4.0.downsample.2'), ('classifier',)),
    ):
        for norm in norms:
            state[f'backbone.{norm}.weight'][0] *= factor
            state[f'backbone.{norm}.bias'][0] = abs(state[f'backbone.{norm}.bias'][0]) * factor + factor
        for layer in layers:
            state[f'{layer}.weight'][:, 0] /= factor
    write_checkpoint(path, checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize('file_format', ['onnx', 'openvino'])
def test_layers_stay_in_float32_or_no_file_is_written(run_folder, monkeypatch, file_format):
    path = run_folder / 'log' / 'tiny' / f'best_model.int8{SUFFIX[file_format]}'
    multiply_channels(run_folder / 'log' / 'tiny' / 'best_model.pth')
    int8 = (*MODEL, '--EXPORT_FORMAT', file_format, '--EXPORT_PRECISION', 'int8', '--EXPORT_MAX_LOSS', 0.05)
    quantize = exported_network.quantize_file
    monkeypatch.setattr(exported_network, 'quantize_file', lambda source, images, target=None: quantize(source, images))
    before = contents(run_folder / 'log' / 'tiny')
    line = error_line(run_in_process(run_folder, 'tools/export.py', *int8))
    assert re.search(r'int8: the mean class error on .* rises by \S+ points with 0 of 16 layers left in float32', line)
    assert 'at most 5 are allowed, so no file is written: --EXPORT_MAX_LOSS 0.' in line
    assert contents(run_folder / 'log' / 'tiny') == before
    monkeypatch.undo()
    done = run_in_process(run_folder, 'tools/export.py', *int8)
    assert done.returncode == 0, done.stderr
    assert 'leaving layers in float32' in done.stdout
    report = read_export(path, {'images': np.zeros((1, 32, 32, 3), np.uint8)})[0]['int8']
    assert 12 <= report['layers']['int8'] < report['layers']['total'] == 16
    assert report['valid']['groups']['all']['difference'] <= 0.05


def test_mistakes_of_int8(run_folder, products):
    folder = run_folder / 'log' / 'tiny'
    before = contents(folder)
    int8 = (*MODEL, '--EXPORT_PRECISION', 'int8')
    for options, text in (
        (('--EXPORT_FORMAT', 'torch_export'), 'EXPORT.PRECISION int8 needs EXPORT.FORMAT onnx or openvino'),
        (('--DATASET_ROOT', 'empty'), 'EXPORT.PRECISION int8 needs labeled images to measure its loss'),
        (('--EXPORT_PRECISION', 'float32', '--EXPORT_MAX_LOSS', 0.5), 'EXPORT.MAX_LOSS'),
    ):
        assert text in error_line(run_in_process(run_folder, 'tools/export.py', *int8, *options))
    (folder / 'best_model.bin').write_text('precious')
    line = error_line(run_in_process(run_folder, 'tools/export.py', *MODEL, '--EXPORT_FORMAT', 'openvino'))
    assert 'best_model.bin exists already' in line
    (folder / 'best_model.bin').unlink()
    assert contents(folder) == before


def _lines(path):
    return path.read_text().splitlines()[1:]


@pytest.mark.slow
def test_torch_export_program_runs_without_the_project(scripts, run_folder):
    scripts.run(run_folder, 'tools/export.py', *MODEL, '--EXPORT_FORMAT', 'torch_export')
    code = (
        'import sys, torch\n'
        'program = torch.export.load("log/tiny/best_model.pt2").module()\n'
        'for batch in (1, 5):\n'
        '    logits, features = program(torch.zeros(batch, 32, 32, 3, dtype=torch.uint8))\n'
        '    print(tuple(logits.shape), not any(name.split(".")[0] == "lib" for name in sys.modules))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=run_folder, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ['(1, 6) True', '(5, 6) True'], done.stderr


def test_safetensors_can_be_used_as_a_checkpoint(scripts, run_folder, products):
    scripts.run(run_folder, 'tools/export.py', *MODEL, '--EXPORT_FORMAT', 'safetensors')
    path = run_folder / 'log' / 'tiny' / 'best_model.safetensors'
    old, new = read_checkpoint(run_folder / 'log' / 'tiny' / 'best_model.pth'), read_checkpoint(path)
    torch.testing.assert_close(new.state_dict, old.state_dict, rtol=0, atol=0)
    assert new.training_set.class_names == old.training_set.class_names
    assert (new.training_set.class_counts == old.training_set.class_counts).all()
    valid = ('--DATASET_TEST_JSON', products / 'converted_val.json')
    scripts.run(run_folder, 'test.py', *MODEL, *valid)
    expected = contents(run_folder / 'log' / 'tiny')
    scripts.run(run_folder, 'test.py', '--RESUME_MODEL', path, *ON_CPU, *valid)
    # Another file with a model of the same name.
    found = contents(run_folder / 'log' / 'tiny')['predictions_converted_val_2.csv']
    assert found == expected['predictions_converted_val.csv']
    another = path.with_name('model.v2.pth')
    another.write_bytes(path.with_name('best_model.pth').read_bytes())
    scripts.run(run_folder, 'tools/export.py', '--RESUME_MODEL', another, *ON_CPU, '--EXPORT_FORMAT', 'safetensors')
    assert path.with_name('model.v2.safetensors').exists()
    path.write_bytes(path.read_bytes()[:100])
    line = error_line(scripts.run(run_folder, 'test.py', '--RESUME_MODEL', path, *ON_CPU, *valid, code=2))
    assert 'cannot be read as a checkpoint' in line


@pytest.mark.parametrize(
    ('classifier', 'export_format'),
    [
        ('FCNorm', 'torch_export'),
        pytest.param('FCNorm', 'onnx', marks=pytest.mark.slow),
        pytest.param('lws', 'onnx', marks=pytest.mark.slow),
    ],
)
def test_other_classifiers(scripts, run_folder, classifier, export_format):
    path = run_folder / 'log' / 'tiny' / 'best_model.pth'
    checkpoint = read_checkpoint(path)
    if classifier == 'FCNorm':
        del checkpoint.state_dict['classifier.bias']
    else:
        checkpoint.state_dict['classifier.scale'] = torch.linspace(0.5, 2, 6)
    write_checkpoint(path, checkpoint)
    options = ('--MODEL_CLASSIFIER', classifier, '--EXPORT_FORMAT', export_format)
    done = scripts.run(run_folder, 'tools/export.py', *MODEL, *options)
    assert 'checked on images' in done.stdout
    if export_format == 'torch_export':
        program = torch.export.load(path.with_suffix('.pt2')).module()
        assert program(torch.zeros(5, 32, 32, 3, dtype=torch.uint8))[0].shape == (5, 6)


def test_mistakes_change_no_file(scripts, run_folder):
    (run_folder / 'mine.onnx').write_text('precious')
    for options, text in (
        (('--EXPORT_OUT', 'mine.onnx'), 'mine.onnx exists already'),
        (('--EXPORT_OUT', 'mine.txt'), 'must end in .onnx'),
        (('--EXPORT_FORMAT', 'tflite'), 'must be one of onnx, openvino, torch_export, safetensors'),
    ):
        assert text in error_line(scripts.run(run_folder, 'tools/export.py', *MODEL, *options, code=2))
    assert (run_folder / 'mine.onnx').read_text() == 'precious'
