"""The Python interface: answers of test.py, images in every form, threads, and a program that stays as it was."""

import contextlib
import csv
import io
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lib.api import ImageError, Record, load
from lib.errors import UserError
from lib.trainer.checkpointing.io import read_checkpoint
from tests.api_model import BATCH, CLASSES, encoded, turned, with_alpha, write_model, write_photos
from tests.scripts.in_process import run_in_process
from tests.scripts.running import ON_CPU, REPOSITORY

NUM_BAD = 3
TORCH = {'device': 'cpu', 'engine': 'torch'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with log/x/best_model.pth and photos; read-only."""
    made = tmp_path_factory.mktemp('api')
    write_model(made / 'log' / 'x' / 'best_model.pth')
    write_photos(made / 'photos')
    return made


@pytest.fixture(scope='module')
def photos(folder):
    return sorted((folder / 'photos').iterdir())


@pytest.fixture(scope='module')
def model(folder):
    return load(folder / 'log' / 'x' / 'best_model.pth', **TORCH)


@pytest.fixture(scope='module')
def image():
    return Image.open(io.BytesIO(encoded(noise(120, 80), 'PNG')))


def noise(width, height, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height))


def predictions_of(folder, *options):
    """Run test.py; return the rows of its CSV, of the top 5, and the features."""
    command = ('--RESUME_MODEL', 'log/x/best_model.pth', '--TEST_IMAGES', 'photos', *ON_CPU, *options)
    done = run_in_process(folder, 'test.py', *command, '--TEST_TOP_K', 5, '--TEST_EMBEDDINGS', True)
    assert done.returncode == 0, done.stderr
    stem = folder / 'log' / 'x' / 'predictions_photos'
    texts = [Path(f'{stem}{part}.csv').read_text(encoding='utf-8') for part in ('', '.top5')]
    return *(list(csv.reader(io.StringIO(text)))[1:] for text in texts), np.load(f'{stem}.features.npy')


@pytest.mark.long
@pytest.mark.parametrize('engine', ['torch', pytest.param('openvino', marks=pytest.mark.slow)])
def test_answers_are_those_of_test_py(tmp_path, engine):
    """Several batches, the last one partial; features are equal to the last bit, and with them all that follows."""
    pytest.importorskip(engine)
    write_model(tmp_path / 'log' / 'x' / 'best_model.pth')
    photos = write_photos(tmp_path / 'photos')
    assert len(photos) % BATCH
    rows, top, features = predictions_of(tmp_path, '--RUN_ENGINE', engine)
    model = load(tmp_path / 'log' / 'x' / 'best_model.pth', device='cpu', engine=engine)
    records = model.predict(photos, top_k=5)
    for row, record in zip(rows, records, strict=True):
        if record.error is None:
            assert row[2:] == [record.name, f'{record.probability:.6f}']
        else:
            assert row[1:] == ['-1', '', '']
    named = [(row[4], row[3]) for row in top]
    assert named == [(name, f'{value:.6f}') for record in records for name, value in record.classes]
    ours = model.features(photos)
    bad = np.isnan(ours).all(axis=1)
    assert bad.sum() == NUM_BAD
    assert np.array_equal(ours[~bad], features[~bad])
    assert list(model.stream(photos, 5)) == records
    of_features = model.predict_features(ours, 5)
    assert [record.classes for record in of_features] == [record.classes for record in records]
    assert [record.error is None for record in of_features] == [record.error is None for record in records]


def test_all_forms_of_an_image_are_equal(model, tmp_path, image):
    data = encoded(image, 'PNG')
    (tmp_path / 'photo.png').write_bytes(data)
    expected = model.pixels(data)
    array = np.asarray(image)
    for form in (
        tmp_path / 'photo.png', str(tmp_path / 'photo.png'), bytearray(data), memoryview(data), image, array,
        array[::-1].copy()[::-1], np.asfortranarray(array), np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
    ):  # fmt: skip
        assert torch.equal(model.pixels(form), expected)
    assert expected.shape == (32, 32, 3)
    assert expected.dtype == torch.uint8
    record = model.predict(data)
    assert isinstance(record, Record)
    assert model.predict([array, image]) == model.predict([data, data])
    assert model.predict(np.stack([array, array])) == model.predict((data, data))
    assert model.predict(iter([data])) == [record]
    assert model.predict([]) == []
    assert model.features([]).shape == (0, model.num_features)
    assert np.array_equal(model.features(data), model.features([data])[0])
    assert record.name == record.classes[0][0]
    assert len(record.classes) == 3
    assert sum(value for _, value in model.predict(data, top_k=100).classes) == pytest.approx(1)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_are_turned_upright(model, orientation):
    stored = encoded(noise(90, 60), 'PNG', exif=turned(orientation))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(stored))))
    for form in (stored, Image.open(io.BytesIO(stored))):
        assert torch.equal(model.pixels(form), model.pixels(upright))


def test_modes_become_rgb_on_white(model):
    image = noise(90, 60)
    see_through = with_alpha(image)
    pixels, alpha = np.asarray(see_through).astype(float)[..., :3], np.asarray(see_through)[..., 3:] / 255
    composed = (pixels * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    for form in (see_through, encoded(see_through, 'PNG'), np.asarray(see_through)):
        assert (model.pixels(form).int() - model.pixels(composed).int()).abs().max() <= 1
    gray = image.convert('L')
    for form in (gray, encoded(gray, 'PNG'), np.asarray(gray), np.asarray(gray)[..., None]):
        assert torch.equal(model.pixels(form), model.pixels(np.stack([np.asarray(gray)] * 3, axis=2)))
    cmyk = image.convert('CMYK')
    assert torch.equal(model.pixels(cmyk), model.pixels(cmyk.convert('RGB')))


def test_unreadable_images_are_records(model, photos, tmp_path, image):
    whole = encoded(image)
    cut = Image.open(io.BytesIO(whole[: len(whole) // 2]))
    given = {
        'no such file': tmp_path / 'none.jpg',
        'is a folder': tmp_path,
        'only local paths are read': 'https://example.com/x.jpg',
        'the file is empty': b'',
        'no readable image': b'no photo',
        'truncated': cut,
        'has 5 x 0 pixels': np.zeros((0, 5, 3), np.uint8),
        '178,000,000 are allowed': Image.new('1', (20000, 10000)),
    }
    records = model.predict([whole, *given.values(), whole])
    assert records[0] == records[-1]
    assert records[0].error is None
    for reason, form, record in zip(given, given.values(), records[1:-1], strict=True):
        assert reason in record.error
        assert '\n' not in record.error
        assert (record.name, record.probability, record.classes) == (None, 0.0, [])
        assert model.predict(form) == record
        with pytest.raises(ImageError, match=reason):
            model.pixels(form)
        assert np.isnan(model.features(form)).all()
    assert sum(record.error is not None for record in model.stream(photos)) == NUM_BAD


@pytest.mark.parametrize('path', ['', 'a\0b.jpg', '\udcff.jpg', 'x' * 5000, '/dev/zero', '.', Path(), 'photo.jpg/x'])
def test_paths_that_are_no_files(model, path):
    record = model.predict(path)
    assert record.error
    assert '\n' not in record.error


@pytest.mark.long
@pytest.mark.process  # what may take long is decoded in a process
def test_damaged_files_are_records(model):
    """Bytes that are overwritten, removed or repeated at random places: a record, whatever they mean then."""
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    draws = random.Random(seed)
    whole = noise(40, 30)
    files = [encoded(whole, kind) for kind in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF')]
    for number in range(150):
        data = bytearray(files[number % len(files)])
        for _ in range(draws.randrange(1, 4)):
            start = draws.randrange(len(data))
            part = data[start : start + draws.randrange(1, 20)]
            data[start : start + len(part)] = draws.choice([draws.randbytes(len(part)), b'', part * 2])
        record = model.predict(bytes(data))
        assert (record.error is None) == (len(record.classes) == 3)
    assert model.predict(files[0]).error is None


@pytest.mark.parametrize('given', [None, 5, 1.5, {'a': b''}, {b''}, object(), io.BytesIO(b'a\nb')])
def test_what_is_no_image_is_a_type_error(model, given):
    for method in (model.predict, model.features, lambda images: list(model.stream(images))):
        with pytest.raises(TypeError, match='must be a list or another sequence of images'):
            method(given)
    with pytest.raises(TypeError, match=r'image 1 is \w+, but must be a path'):
        model.predict([b'', given])
    with pytest.raises(TypeError, match='but must be a path'):
        model.pixels(given)


@pytest.mark.parametrize('shape', [(4, 4, 2), (4, 4, 5)])
def test_arrays_of_other_forms(model, shape):
    for array in (np.zeros(shape, np.uint8), np.zeros((4, 4, 3), np.float32)):
        for given in (array, [array]):
            with pytest.raises(ValueError, match=r'but must be uint8 \(height, width, 3\)'):
                model.predict(given)


def test_wrong_arguments(model, folder, image):
    path = folder / 'log' / 'x' / 'best_model.pth'
    for error, words, call in (
        (ValueError, 'top_k is 0', lambda: model.predict(image, top_k=0)),
        (ValueError, 'top_k', lambda: model.stream([image], top_k='3')),
        (ValueError, 'pixels are torch.float32', lambda: model.predict_pixels(torch.zeros(1, 32, 32, 3))),
        (ValueError, r'uint8 \(n, 32, 32, 3\)', lambda: model.predict_pixels(np.zeros((32, 32, 3), np.uint8))),
        (ValueError, 'features are', lambda: model.predict_features(np.zeros(5))),
        (TypeError, 'path is of type int', lambda: load(5)),
        (TypeError, 'device', lambda: load(path, device=0)),
        (UserError, 'no such file', lambda: load(folder / 'none.pth')),
        (UserError, 'RUN.ENGINE is .*must be one of auto, torch', lambda: load(path, engine='onnx')),
        (UserError, "must be 'auto', 'cpu'", lambda: load(path, device='tpu')),
        (ValueError, 'threads is 0', lambda: load(path, threads=0)),
        (ValueError, 'batch_size', lambda: load(path, batch_size=2.5)),
        (ValueError, 'threshold is 2', lambda: load(path, threshold=2)),
    ):
        with pytest.raises(error, match=words):
            call()


def test_pixels_and_features_in_steps(model, photos):
    """The parts that a service calls are those of a prediction."""
    good = photos[:BATCH]
    batch = torch.stack([model.pixels(photo) for photo in good])
    expected = model.predict(good)
    assert model.predict_pixels(batch) == expected
    assert model.predict_pixels(batch.numpy()) == expected
    features = model.features_of_pixels(batch)
    assert np.array_equal(features, model.features(good))
    assert model.predict_features(features) == expected
    assert model.predict_pixels(batch[:0]) == []
    assert model.predict_features(features[:0]) == []


def test_a_stream_takes_a_few_batches_ahead(model, image):
    taken = 0

    def images():
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield image

    records = model.stream(images())
    next(records)
    assert taken <= 5 * BATCH
    records.close()
    assert taken <= 5 * BATCH
    assert model.predict(image).error is None  # the threads are free again


def test_an_error_of_the_images_is_raised(model, image):
    def images():
        yield image
        raise KeyError('mine')

    with pytest.raises(KeyError, match='mine'):
        list(model.stream(images()))


def test_many_threads_get_the_same_answers(model, photos):
    """Also while others stream; filters of warnings remain."""
    filters = warnings.filters[:]
    expected, streamed = [model.predict(photo, 5) for photo in photos], model.predict(photos, 5)
    shared = [Image.open(photo) for photo in photos if photo.suffix == '.webp']  # loaded by the threads
    of_shared = [model.predict(Image.open(image.filename)) for image in shared]

    def work(number):
        if number % 4 == 0:
            return list(model.stream(photos, 5)) == streamed
        order = np.random.default_rng(number).permutation(len(photos))
        answers = {row: model.predict(photos[row], 5) for row in order.tolist()}
        same = [model.predict(image) for image in shared] == of_shared
        return same and [answers[row] for row in range(len(photos))] == expected

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(work, range(16)))
    assert warnings.filters == filters


def test_models_end_their_threads(folder):
    before = threading.active_count()
    made = load(folder / 'log' / 'x' / 'best_model.pth', **TORCH, threads=2)
    made.predict([noise(40, 40)] * 9)
    assert threading.active_count() > before
    del made
    for thread in threading.enumerate():
        if thread.name.startswith(('decoder', 'network')) and threading.active_count() > before:
            thread.join(0.2)
    assert threading.active_count() <= before


def test_thresholds(folder, model, tmp_path, image):
    """The one that is given, or that test.py has chosen last for this model."""
    record = model.predict(image)
    assert (model.threshold, record.accepted) == (None, None)
    path = tmp_path / 'best_model.pth'
    path.write_bytes((folder / 'log' / 'x' / 'best_model.pth').read_bytes())
    (tmp_path / 'config.yaml').touch()
    for threshold in (0.0, record.probability, 1.0):
        judged = load(path, **TORCH, threshold=threshold)
        assert judged.predict(image).accepted == (record.probability >= threshold)
        assert judged.predict(b'').accepted is False
    stored = tmp_path / 'predictions_test.risk_coverage.json'
    for content, expected in (
        ({'threshold': 0.25}, None),  # of an older version
        ({'model': 'of another one', 'threshold': 0.25}, None),
        ({'model': model.version, 'threshold': 0.25}, 0.25),
        ({'model': model.version, 'threshold': None}, float('inf')),  # no answer is good enough
    ):
        stored.write_text(json.dumps(content | {'curve': {}}))
        assert load(path, **TORCH).threshold == expected
    assert load(path, **TORCH).predict(image).accepted is False
    assert load(path, **TORCH, threshold=0.5).threshold == 0.5


@pytest.mark.long
def test_test_py_stores_the_threshold(tmp_path):
    write_model(tmp_path / 'log' / 'x' / 'best_model.pth')
    photos = write_photos(tmp_path / 'photos')
    # The most certain half of the answers is right.
    records = load(tmp_path / 'log' / 'x' / 'best_model.pth', **TORCH).predict(photos, 2)
    middle = np.median([record.probability for record in records])
    right = [
        record.classes[int(record.probability < middle)][0] if record.classes else CLASSES[0] for record in records
    ]
    entries = [
        {'fpath': photo.name, 'category_id': CLASSES.index(name)} for photo, name in zip(photos, right, strict=True)
    ]
    (tmp_path / 'photos' / 'converted_val.json').write_text(json.dumps({'annotations': entries, 'num_classes': 6}))
    predictions_of(tmp_path, '--TEST_ABSTAIN_ERROR', 0.4, '--DATASET_ROOT', 'photos')
    (found,) = tmp_path.glob('log/x/*.risk_coverage.json')
    model = load(tmp_path / 'log' / 'x' / 'best_model.pth', **TORCH)
    assert json.loads(found.read_text())['model'] == model.version
    answered = (tmp_path / 'log' / 'x' / 'predictions_photos.answered.csv').read_text(encoding='utf-8')
    accepted = [row[1] != '-1' for row in list(csv.reader(io.StringIO(answered)))[1:]]
    assert [record.accepted for record in model.predict(photos)] == accepted
    assert 0 < sum(accepted) < len(photos) - NUM_BAD


@pytest.mark.long
def test_unknown_products_are_those_of_test_py(tmp_path):
    write_model(tmp_path / 'log' / 'x' / 'best_model.pth')
    photos = write_photos(tmp_path / 'photos')
    labels = {photo: CLASSES.index(CLASSES[row % 6]) for row, photo in enumerate(photos)}
    entries = [{'fpath': photo.name, 'category_id': label} for photo, label in labels.items()]
    for name in ('train', 'val'):
        content = {'annotations': entries, 'num_classes': 6}
        (tmp_path / 'photos' / f'converted_{name}.json').write_text(json.dumps(content))
    for score in ('max_logit', 'prototype'):
        options = ('--TEST_REJECT_UNKNOWN', 0.15, '--TEST_UNKNOWN_SCORE', score, '--DATASET_ROOT', 'photos')
        predictions_of(tmp_path, *options)
        model = load(tmp_path / 'log' / 'x' / 'best_model.pth', **TORCH)
        with open(tmp_path / 'log' / 'x' / 'predictions_photos.open_set.csv', encoding='utf-8') as file:
            names = [row['name'] for row in csv.DictReader(file)]
        unknown = [name == 'unknown' if name else None for name in names]
        assert unknown.count(None) == NUM_BAD
        assert unknown.count(True)
        assert [record.unknown for record in model.predict(photos)] == unknown
    stored = tmp_path / 'log' / 'x' / 'predictions_photos.open_set.safetensors'
    damaged = bytearray(stored.read_bytes())
    damaged[-1] ^= 1
    stored.write_bytes(damaged)
    with pytest.raises(UserError, match=r'open_set\.safetensors: damaged'):
        load(tmp_path / 'log' / 'x' / 'best_model.pth', **TORCH)
    predictions_of(tmp_path, *options, '--TEST_UNKNOWN_SCORE', 'energy')
    assert not stored.exists()


def test_versions(folder, model, tmp_path):
    """Equal for a copy; another one with other weights, names or preprocessing."""
    (tmp_path / 'copy.pth').write_bytes((folder / 'log' / 'x' / 'best_model.pth').read_bytes())
    others = [
        write_model(tmp_path / 'seed.pth', SEED=1),
        write_model(tmp_path / 'names.pth', [*CLASSES[:-1], 'rice']),
        write_model(tmp_path / 'crop.pth', INPUT__CROP_RATIO=0.9),
    ]
    assert load(tmp_path / 'copy.pth', **TORCH).version == model.version
    versions = {model.version, *(load(path, **TORCH).version for path in others)}
    assert len(versions) == 4
    assert all(len(version) == 12 and version.isalnum() for version in versions)


def test_enrolling_and_saving(model, tmp_path):
    """New classes win their own photos; the file has the same answers, and the model is as before."""
    shots = {name: [noise(60, 60, 10 * number + shot) for shot in range(3)] for number, name in enumerate(('x', 'ÿ'))}
    before, old_classes = model.predict(shots['x']), model.classes
    enrolled = model.enroll(shots)
    assert enrolled.classes == (*CLASSES, 'x', 'ÿ')
    assert enrolled.version != model.version
    assert (model.predict(shots['x']), model.classes) == (before, old_classes)
    answers = [enrolled.predict(images, 100) for images in shots.values()]
    assert sum(record.name == name for name, part in zip(shots, answers, strict=True) for record in part) >= 3
    enrolled.save(tmp_path / 'log' / 'y' / 'new.pth')
    again = load(tmp_path / 'log' / 'y' / 'new.pth', **TORCH)
    assert (again.version, again.classes) == (enrolled.version, enrolled.classes)
    assert [again.predict(images, 100) for images in shots.values()] == answers
    counts = read_checkpoint(tmp_path / 'log' / 'y' / 'new.pth').training_set.class_counts
    assert counts.tolist() == [10] * 6 + [3, 3]
    with pytest.raises(UserError, match=r'exists already: .* overwrite=True'):
        model.save(tmp_path / 'log' / 'y' / 'new.pth')
    model.save(tmp_path / 'log' / 'y' / 'new.pth', overwrite=True)
    assert load(tmp_path / 'log' / 'y' / 'new.pth', **TORCH).version == model.version
    with pytest.raises(UserError, match=r'must end with \.pth'):
        model.save(tmp_path / 'model.onnx')


def test_known_and_retired_classes(model):
    photos = [noise(60, 60, shot) for shot in range(3)]
    changed = model.enroll({CLASSES[2]: photos, 'new': photos[:1]}, retire=[CLASSES[0]])
    assert changed.classes == (*CLASSES[1:], 'new')
    assert len(changed.predict(photos, 100)[0].classes) == len(CLASSES)


def test_mistakes_of_enrolling(model):
    image = noise(40, 40)
    for error, words, classes, options in (
        (UserError, "classes names 'é' twice", {'\u00e9': [image], 'e\u0301': [image]}, {}),
        (UserError, "'new' has no images", {'new': []}, {}),
        (UserError, "the class 'b' cannot be decoded: the file is empty", {'a': [image], 'b': [image, b'']}, {}),
        (
            UserError,
            "the class 'other', which the model does not have",
            {'new': [image]},
            {'known': {'other': [image]}},
        ),
        (UserError, "retire: the model has no class 'x'", {'new': [image]}, {'retire': ['x']}),
        (UserError, 'retire names all classes', {'new': [image]}, {'retire': CLASSES}),
        (UserError, 'names must be text', {' ': [image]}, {}),
        (TypeError, 'must be a dictionary', ['new'], {}),
        (TypeError, 'must be a list', {'new': image}, {}),
        (TypeError, 'image 0 is int', {'new': [5]}, {}),
    ):
        with pytest.raises(error, match=words):
            model.enroll(classes, **options)


@pytest.mark.slow
def test_enrolled_rows_are_those_of_the_tool(folder, model, tmp_path):
    """With photos of known classes, which limit the loss, and without."""
    write_model(tmp_path / 'log' / 'x' / 'best_model.pth')
    new, known = {}, {}
    for number, name in enumerate(['n1', 'n2', *CLASSES[:3]]):
        part = new if name.startswith('n') else known
        (tmp_path / 'new' / name if part is new else tmp_path / 'old').mkdir(parents=True, exist_ok=True)
        for shot in range(4):
            path = (tmp_path / 'new' / name if part is new else tmp_path / 'old') / f'{number}_{shot}.png'
            noise(50, 50, 100 * number + shot).save(path)
            part.setdefault(name, []).append(path)
    entries = [
        {'fpath': path.name, 'category_id': CLASSES.index(name)} for name, paths in known.items() for path in paths
    ]
    valid = tmp_path / 'old' / 'valid.json'
    valid.write_text(json.dumps({'annotations': entries, 'num_classes': 6}))
    for options, ours in (
        (('--DATASET_ROOT', 'none', '--ENROLL_MAX_LOSS', 1), model.enroll(new)),
        (
            ('--DATASET_ROOT', 'old', '--DATASET_VALID_JSON', valid, '--ENROLL_MAX_LOSS', 0.3),
            model.enroll(new, known=known, max_loss=0.3),
        ),
    ):
        command = (
            '--RESUME_MODEL',
            'log/x/best_model.pth',
            '--ENROLL_IMAGES',
            'new',
            '--ENROLL_OUT',
            f'out{options[-1]}',
        )
        done = run_in_process(tmp_path, 'tools/enroll.py', *command, *ON_CPU, '--RUN_ENGINE', 'torch', *options)
        assert done.returncode == 0, done.stderr
        theirs = read_checkpoint(tmp_path / f'out{options[-1]}' / 'best_model.pth').state_dict
        ours.save(tmp_path / 'ours.pth', overwrite=True)
        for name, values in read_checkpoint(tmp_path / 'ours.pth').state_dict.items():
            assert torch.allclose(values.float(), theirs[name].float(), rtol=1e-4, atol=1e-5), name


class Payload:
    def __reduce__(self):
        return os.system, ('touch executed',)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': Payload()}, 'hostile.pth')
    Path('raw.pth').write_bytes(pickle.dumps(Payload()))
    for name in ('hostile.pth', 'raw.pth'):
        with pytest.raises(UserError, match=name):
            load(name)
    assert not Path('executed').exists()


PROGRAM = """
import logging, signal, sys, threading, warnings
import lib.api
assert 'torch' not in sys.modules and 'timm' not in sys.modules
import torch
torch.set_num_threads(3)
torch.manual_seed(5)
torch.set_grad_enabled(True)
signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
def state():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start(), thread.join()
    return (
        torch.get_num_threads(), found, torch.get_rng_state().tolist(),
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(),
        signals == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        sys.excepthook is sys.__excepthook__, sys.unraisablehook is sys.__unraisablehook__, sys.argv,
        logging.getLogger().handlers, logging.getLogger('recognizer').handlers, logging.getLogger('recognizer').level,
    )
before = state()
model = lib.api.load(sys.argv[1], engine='torch', device='cpu', threads=1)
model.predict(sys.argv[2:])
model.predict(sys.argv[2])
model.features(sys.argv[2:])
assert state() == before, (state(), before)
"""


@pytest.mark.process
@pytest.mark.long
def test_a_program_stays_as_it_was(folder, photos):
    """Importing is quick; nothing is printed, and no state of the process changes."""
    command = [sys.executable, '-c', PROGRAM, folder / 'log' / 'x' / 'best_model.pth', *photos]
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.long
def test_engines_have_the_same_answers(folder, photos, tmp_path):
    """OpenVINO differs by rounding only; its graph is cached beside the checkpoint, and nothing elsewhere."""
    pytest.importorskip('openvino')
    path = tmp_path / 'models' / 'best_model.pth'
    path.parent.mkdir()
    path.write_bytes((folder / 'log' / 'x' / 'best_model.pth').read_bytes())
    with contextlib.chdir(tmp_path):
        torch_model, model = load('models/best_model.pth', **TORCH), load('models/best_model.pth', engine='openvino')
        expected, features = torch_model.features(photos), model.features(photos)
        assert np.array_equal(np.isnan(features), np.isnan(expected))
        assert np.nanmax(np.abs(features - expected)) <= 1e-4 * np.nanmax(np.abs(expected))
        assert not np.array_equal(features, expected, equal_nan=True)
        with ThreadPoolExecutor(4) as pool:
            records = list(pool.map(model.predict, photos))
        assert [record.name for record in records] == [record.name for record in torch_model.predict(photos)]
        assert {entry.name for entry in tmp_path.iterdir()} == {'models'}
        assert {entry.name for entry in path.parent.iterdir()} >= {'best_model.pth', 'engines'}
        assert model.version == torch_model.version
        assert load('models/best_model.pth', engine='openvino', precision='bf16').version == f'{model.version}-bf16'
        with pytest.raises(UserError, match=r'RUN\.ENGINE'):
            load('models/best_model.pth', engine='torch', precision='int8')
