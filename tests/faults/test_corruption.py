"""Every cache and artifact that a command reads again, truncated, with flipped bits, or with a zeroed page.

What counts, by kind of artifact:

cache: the result is the one without the damage (it is computed again), and so is that of the next reading.
checked: the result is the one without the damage, or an error of one line.
text: a user may edit it, so its JSON values count: the result is that of a new file with the same values; what is no
    JSON is an error of one line. Only a line of metrics.jsonl that a kill left without its end is dropped.
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from lib.backbone.weights_file import WeightsFileError, read_weights_file
from lib.builders.features import filled_store
from lib.commands.report import _read_tau
from lib.dataset import annotations
from lib.dataset.annotations import read_annotations, read_classes
from lib.dataset.corrections import Decision, quarantined_rows, read_decisions, write_decisions
from lib.dataset.decode import DecodeError
from lib.distributed.process_group import SINGLE_PROCESS
from lib.errors import UserError
from lib.runtime.checksums import with_checksums
from lib.runtime.column_files import StoreDamaged
from lib.runtime.column_store import ColumnStore, open_or_create
from lib.runtime.precision import StepFormat, StepTimes, read_times, write_times
from lib.shards.encode import Raw
from lib.shards.images import ShardImages
from lib.shards.index import INDEX as SHARD_INDEX
from lib.shards.index import PackedIndex
from lib.shards.pack import SETTINGS, FolderConflict, _Run, check_folder
from lib.shards.write import PARTS, read_part
from lib.trainer.checkpointing.io import read_checkpoint, safetensors_metadata, write_checkpoint
from lib.trainer.checkpointing.latest import latest_checkpoint
from lib.trainer.checkpointing.sharded import INDEX, ClassifierShard, shard_file_name, write_shard_and_index
from lib.trainer.checkpointing.state import TrainingSet, read_history
from tests.builders.test_features import BAD, MeanColor
from tests.dataset.loading import LABELS, eval_loader, files, write_images
from tests.shards.packing import job_of, make_photos, pack
from tests.trainer.small import save, small_checkpoint

PAGE = 4096
REFUSED = 'refused'
ERRORS = (UserError, DecodeError, WeightsFileError, StoreDamaged, FolderConflict)


class Artifact(NamedTuple):
    """A kind (see above), a function that writes a file and others, the file, and a function that reads it."""

    kind: str
    make: Callable[[Path], Any]
    file: str
    read: Callable[[Path], Any]


# --- cached features, and the parts of a prediction


def features(folder: Path) -> Any:
    def loader():
        photos = folder / 'photos'
        if not photos.exists():
            photos.mkdir()
            write_images(photos, BAD)
        return eval_loader(files([str(path) for path in sorted(photos.iterdir(), key=lambda path: int(path.stem))]))

    store, _ = filled_store(
        folder / 'cache' / 'train', len(LABELS), {'key': 1}, MeanColor(), loader, label='train', group=SINGLE_PROCESS
    )
    return {name: np.array(column) for name, column in store.columns.items()}, store.errors()


PREDICTIONS = {'best': (np.int32, (5,)), 'losses': (np.float32, ())}


def make_part(folder: Path) -> None:
    store, draws = open_or_create(folder / 'part', 40, PREDICTIONS, {'rows': [0, 40]}), np.random.default_rng(0)
    for start in range(0, 40, 8):
        values = {'best': draws.integers(0, 99, (8, 5)), 'losses': draws.random(8)}
        store.write(slice(start, start + 8), values, [(start, 'truncated')])
    store.flush()


def read_store(folder: Path) -> Any:
    store = ColumnStore(folder / 'part')
    if not store.is_complete:
        return REFUSED
    return {name: np.array(column) for name, column in store.columns.items()}, store.errors()


# --- annotations and other JSON files


def make_annotations(folder: Path) -> None:
    entries = [{'fpath': f'träin/{row}.jpg', 'category_id': row % 4} for row in range(300)]
    (folder / 'converted_train.json').write_text(json.dumps({'annotations': entries, 'num_classes': 4}))
    (folder / 'classes.json').write_text(json.dumps({'names': ['a', 'b', 'c', 'd'], 'parents': [['x'], ['y'], [], []]}))


def make_annotation_cache(folder: Path) -> None:
    make_annotations(folder)
    annotation_columns(folder)


def annotation_columns(folder: Path, *, use_cache: bool = True) -> Any:
    found = read_annotations(folder / 'converted_train.json', use_cache=use_cache)
    by_class = None if found.by_class is None else np.array(found.by_class)
    return found.paths.to_pylist(), np.array(found.labels), found.num_classes, found.warnings, by_class


TIMES = StepTimes(8, {StepFormat('float32', 'channels_last'): 0.0625, StepFormat('bfloat16', 'channels_last'): 0.071})
NAMES = pa.array([f'{row}.jpg' for row in range(20)], pa.large_string())


def make_quarantine(folder: Path) -> None:
    images = [{'fpath': f'{row}.jpg', 'split': 'train', 'reason': 'blank'} for row in (3, 5, 8)]
    (folder / 'quarantine.json').write_text(json.dumps({'images': images}, indent=1))


def make_decisions(folder: Path) -> None:
    decisions = [
        Decision('3.jpg', 'relabel', 'a', to='b', by='review'),
        Decision('5.jpg', 'drop', 'b'),
        Decision('8.jpg', 'weight', 'a', weight=0.25),
    ]
    write_decisions(folder / 'decisions.json', decisions)


def make_metrics(folder: Path) -> None:
    lines = [
        {'epoch': epoch, 'split': split, 'loss': 1 / epoch, 'top1': epoch / 40, 'lr': 0.1}
        for epoch in range(1, 31)
        for split in ('train', 'valid')
    ]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def make_tau(folder: Path) -> None:
    errors = {'top1': 0.5, 'mean_class_error': 0.4}
    curve = {'tau': [0.25, 0.75], 'value': [0.5, 0.4, 0.45]}
    tau = {'metric': 'top1', 'chosen': 0.5, 'optimum': 0.5, 'before': errors, 'after': errors, 'curve': curve}
    (folder / 'tau.json').write_text(json.dumps(tau, indent=1))


# --- packed images


def make_packed(folder: Path) -> None:
    pack(make_photos(folder), folder / 'packed')


def packed_images(folder: Path) -> Any:
    images = ShardImages(folder / 'packed' / SHARD_INDEX)
    return [attempt(lambda row=row: images.read(row)) for row in range(len(images))]


def make_raw(folder: Path) -> None:
    pack(make_photos(folder), folder / 'packed', encoding=Raw(20))


def raw_images(folder: Path) -> Any:
    images = ShardImages(folder / 'packed' / SHARD_INDEX)
    return [attempt(lambda row=row: images.open(row).pixels(1.0)[0].tobytes()) for row in range(len(images))]


def packed_index(folder: Path) -> Any:
    index = PackedIndex(folder / 'packed' / SHARD_INDEX)
    index.check()
    return {name: index.table[name].to_pylist() for name in index.table.schema.names}, index.contents


def make_parts(folder: Path) -> None:
    job = job_of(make_photos(folder), folder / 'packed')
    (job.folder / PARTS).mkdir(parents=True)
    _Run(job, 0, SINGLE_PROCESS).write_shards()


def packed_part(folder: Path) -> Any:
    part = read_part(folder / 'packed', 1)
    return REFUSED if part is None else (part[0].to_pylist(), part[1])


def pack_settings(folder: Path) -> Any:
    return check_folder(job_of(None, folder / 'packed'))


# --- checkpoints and weights


def make_checkpoints(folder: Path) -> None:
    save(folder / 'epoch_4.pth', epoch=4)
    save(folder / 'last.pth', epoch=5, step=3)


def latest(folder: Path) -> Any:
    checkpoint, errors = latest_checkpoint(folder)
    assert checkpoint is not None
    if checkpoint.path.name == 'last.pth':
        return vars(checkpoint)
    assert checkpoint.path.name == 'epoch_4.pth'
    assert len(errors) == 1
    raise UserError(errors[0])


def make_sharded(folder: Path) -> None:
    names = [f'class {label}' for label in range(600)]
    whole = replace(small_checkpoint(epoch=5), training_set=TrainingSet('d', np.arange(1, 601), names, []))
    state = {name: value for name, value in whole.state_dict.items() if not name.startswith('classifier')}
    optimizer = {'state': {}, 'param_groups': [{'lr': 0.1, 'params': [0]}], 'rows': {'classifier.weight': 0}}
    rows = {
        'classifier.weight': torch.randn(600, 2),
        'optimizer.classifier.weight.momentum_buffer': torch.randn(600, 2),
    }
    for rank, classes in ((1, range(300, 600)), (0, range(300))):
        part = {name: value[classes.start : classes.stop] for name, value in rows.items()}
        shard = ClassifierShard(part, classes, 600, rank, 2)
        write_shard_and_index(folder / 'head-5-0', shard)
    saved = replace(whole, state_dict=state, optimizer=optimizer, classifier_shard=shard)
    write_checkpoint(folder / 'last.pth', saved)


def whole_checkpoint(name: str) -> Callable[[Path], Any]:
    return lambda folder: vars(read_checkpoint(folder / name))


def make_exported(folder: Path) -> None:
    checkpoint = small_checkpoint()
    header = with_checksums({'classes': '["a"]', **safetensors_metadata(checkpoint)}, checkpoint.state_dict)
    save_file(checkpoint.state_dict, folder / 'model.safetensors', metadata=header)


def make_torch_weights(folder: Path) -> None:
    torch.save({'conv.weight': torch.randn(400, 3), 'bn.bias': torch.randn(4)}, folder / 'weights.pth')


def weights(name: str) -> Callable[[Path], Any]:
    return lambda folder: {key: value.load() for key, value in read_weights_file(folder / name).tensors.items()}


ARTIFACTS = {
    'features': Artifact('cache', features, 'cache/train/features.npy', features),
    'which images are readable': Artifact('cache', features, 'cache/train/readable.npy', features),
    'description of features': Artifact('cache', features, 'cache/train/about.json', features),
    'journal of features': Artifact('cache', features, 'cache/train/rows0.jsonl', features),
    'predictions of a part': Artifact('checked', make_part, 'part/best.npy', read_store),
    'losses of a part': Artifact('checked', make_part, 'part/losses.npy', read_store),
    'description of a part': Artifact('checked', make_part, 'part/about.json', read_store),
    'journal of a part': Artifact('checked', make_part, 'part/rows0.jsonl', read_store),
    'annotation cache': Artifact('cache', make_annotation_cache, '.converted_train.json.arrow', annotation_columns),
    'measured step times': Artifact(
        'checked',
        lambda folder: write_times(folder / 'timings.json', 'model', TIMES),
        'timings.json',
        lambda folder: read_times(folder / 'timings.json', 'model') or REFUSED,
    ),
    'shard of packed images': Artifact('checked', make_packed, 'packed/000001.tar', packed_images),
    'shard of raw images': Artifact('checked', make_raw, 'packed/000001.tar', raw_images),
    'index of packed images': Artifact('checked', make_packed, f'packed/{SHARD_INDEX}', packed_index),
    'index of an unfinished packing': Artifact('checked', make_parts, f'packed/{PARTS}/000001.arrow', packed_part),
    'settings of packed images': Artifact('checked', make_packed, f'packed/{SETTINGS}', pack_settings),
    'checkpoint': Artifact('checked', make_checkpoints, 'last.pth', whole_checkpoint('last.pth')),
    'latest of two checkpoints': Artifact('checked', make_checkpoints, 'last.pth', latest),
    'checkpoint of a sharded classifier': Artifact('checked', make_sharded, 'last.pth', whole_checkpoint('last.pth')),
    'shard of a classifier and its optimizer state': Artifact(
        'checked', make_sharded, f'head-5-0/{shard_file_name(1, 2)}', whole_checkpoint('last.pth')
    ),
    'index of a sharded classifier': Artifact(
        'checked', make_sharded, f'head-5-0/{INDEX}', whole_checkpoint('last.pth')
    ),
    'exported checkpoint': Artifact(
        'checked', make_exported, 'model.safetensors', whole_checkpoint('model.safetensors')
    ),
    'exported weights': Artifact('checked', make_exported, 'model.safetensors', weights('model.safetensors')),
    'weights of torch.save': Artifact('checked', make_torch_weights, 'weights.pth', weights('weights.pth')),
    'annotations': Artifact(
        'text', make_annotations, 'converted_train.json', lambda folder: annotation_columns(folder, use_cache=False)
    ),
    'class names': Artifact(
        'text', make_annotations, 'classes.json', lambda folder: read_classes(folder / 'classes.json', 4)
    ),
    'quarantined images': Artifact(
        'text',
        make_quarantine,
        'quarantine.json',
        lambda folder: quarantined_rows(NAMES, folder / 'quarantine.json', 'train'),
    ),
    'decisions': Artifact(
        'text', make_decisions, 'decisions.json', lambda folder: read_decisions(folder / 'decisions.json')
    ),
    'tau curve': Artifact('text', make_tau, 'tau.json', lambda folder: _read_tau(folder / 'tau.json') or REFUSED),
    'metrics of a run': Artifact('text', make_metrics, 'metrics.jsonl', read_history),
}


def attempt(read: Callable[[], Any]) -> Any:
    """Return the result, or REFUSED after an error whose message is one line."""
    try:
        return read()
    except ERRORS as error:
        return REFUSED if '\n' not in str(error) else f'an error of several lines: {error}'


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and one == REFUSED:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == 'f')
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return is_same(vars(one), vars(other)) if hasattr(one, '__dict__') else one == other


def damages(data: bytes, draws: random.Random, num_lengths: int, num_bits: int):
    """Yield (name, damaged data)."""
    lengths = {0, 1, len(data) - 1, len(data) // 2}
    while len(lengths) < min(num_lengths, len(data)):
        lengths.add(draws.randrange(len(data)))
    for length in draws.sample(sorted(lengths), min(num_lengths, len(lengths))):
        yield f'truncated to {length} of {len(data)} bytes', data[:length]
    for position in draws.sample(range(8 * len(data)), min(num_bits, 8 * len(data))):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        yield f'bit {position % 8} of byte {position // 8} flipped', bytes(flipped)
    start = PAGE * draws.randrange(max(1, len(data) // PAGE))
    yield f'page at byte {start} zeroed', data[:start] + bytes(len(data[start : start + PAGE])) + data[start + PAGE :]


def check(folder: Path, artifact: Artifact, monkeypatch, num_lengths: int, num_bits: int) -> None:
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    torch.manual_seed(seed)
    monkeypatch.setattr(annotations, 'CACHED_FROM_BYTES', 0)
    artifact.make(folder)
    path = folder / artifact.file
    expected, whole = artifact.read(folder), path.read_bytes()
    assert not (isinstance(expected, str) and expected == REFUSED)
    num_refused = 0
    for name, data in damages(whole, random.Random(seed), num_lengths, num_bits):
        path.write_bytes(data)
        found = attempt(lambda: artifact.read(folder))
        num_refused += found is REFUSED or (isinstance(found, list) and REFUSED in found)
        if artifact.kind == 'text':
            reference = result_of_json(folder, artifact, path, data)
            if reference is REFUSED:  # fields that are not used may have any bytes
                assert is_same(found, expected), f'seed {seed}: {name}'
            else:
                assert found is not REFUSED, f'seed {seed}: {name}'
                assert is_same(found, reference), f'seed {seed}: {name}'
        else:
            assert is_same(found, expected), f'seed {seed}: {name}'
        if artifact.kind == 'cache':
            assert found is not REFUSED, f'seed {seed}: {name}'
            assert is_same(artifact.read(folder), expected), f'seed {seed}: {name}, second reading'
        path.write_bytes(whole)
    assert artifact.kind == 'cache' or num_refused


def result_of_json(folder: Path, artifact: Artifact, path: Path, data: bytes) -> Any:
    """Return the result of reading a new file with the same JSON values."""
    lines = data.split(b'\n') if path.suffix == '.jsonl' else [data]
    values = []
    for number, line in enumerate(lines):
        try:
            if line.strip() or path.suffix == '.json':
                values.append(json.loads(line.decode('utf-8-sig'), strict=False))
        except ValueError:
            is_cut = path.suffix == '.jsonl' and number == len(lines) - 1 and line[:1] == b'{' and b'}' not in line
            if not is_cut:
                return REFUSED
    path.write_text('\n'.join(map(json.dumps, values)) + '\n')
    return attempt(lambda: artifact.read(folder))


@pytest.mark.parametrize('name', ARTIFACTS)
def test_some_damages(tmp_path, monkeypatch, name):
    check(tmp_path, ARTIFACTS[name], monkeypatch, 4, 8)


@pytest.mark.slow
@pytest.mark.parametrize('name', ARTIFACTS)
def test_all_damages(tmp_path, monkeypatch, name):
    check(tmp_path, ARTIFACTS[name], monkeypatch, 20, 200)
