"""Real files of each kind, and the parser that reads them."""

import csv
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from lib.backbone.pretrained import load_pretrained
from lib.commands.predict_inputs import _read_list, listed_paths
from lib.commands.report import _read_tau
from lib.config.load import load_config
from lib.config.yaml_text import read_config_file
from lib.dataset import annotations
from lib.dataset.annotations import read_annotations, read_classes, read_test_images
from lib.dataset.corrections import (
    Decision,
    apply_decisions,
    quarantined_rows,
    read_decisions,
    write_decisions,
)
from lib.dataset.decode import decode
from lib.dataset.images import read_bytes
from lib.dataset.lazy_image import open_lazy_image
from lib.distributed.rank_info import read_rank_info
from lib.experiments.records import read_measured
from lib.formats.aliproducts import convert_aliproducts
from lib.formats.inat import convert_inat
from lib.formats.text_lists import convert_csv, convert_image_list
from lib.formats.unpack import unpack, unpack_once
from lib.formats.write import append_converted
from lib.optim.optimizer import register_load_hooks
from lib.report.charts import curve_panels
from lib.runtime import column_store
from lib.runtime.files import read_json
from lib.shards.images import ShardImages
from lib.shards.pack import FolderConflict, check_folder, pack_split
from lib.trainer.checkpointing.io import read_checkpoint, safetensors_metadata, write_checkpoint
from lib.trainer.checkpointing.latest import latest_checkpoint
from lib.trainer.checkpointing.sharded import ClassifierShard, read_rows, write_shard_and_index
from lib.trainer.checkpointing.state import read_history
from lib.trainer.run_folder import read_bad_images
from tests.faults.mutations import mutated_bytes, mutated_checkpoint, mutated_json, mutated_json_lines, mutated_values
from tests.shards.packing import job_of, make_photos
from tests.trainer.small import small_checkpoint

CLASSES = ['apple', 'bread', 'kiwi', 'milk']
NAMES = pa.array(['a/1.jpg', 'a/2.jpg', 'b/3.jpg'], pa.large_string())
CSV_TEXT = 'path,label,split,name\na/1.jpg,0042,train,Cola\n"a, b/2.jpg",7,train,Tea\nc.jpg,7,val,\nd.jpg,,test,\n'
FORMATS = {
    'jpeg': {'quality': 90}, 'png': {}, 'webp': {}, 'gif': {}, 'tiff': {'compression': 'tiff_lzw'}, 'bmp': {},
    'avif': {}, 'jpeg2000': {},
}  # fmt: skip


class Parser(NamedTuple):
    """A parser of a kind of files.

    Attributes:
        file: that is mutated.
        run: reads it, given its path, and uses what it has read.
        mutated: its content -> strategy of other contents.
    """

    file: str
    run: Callable[[Path], object]
    mutated: Callable[[bytes], st.SearchStrategy[bytes]] = mutated_json


def make_real_files(folder: Path) -> None:
    """Write a file of each kind."""
    for make in (_make_annotations, _make_sources, _make_checkpoints, _make_records, _make_images, _make_caches):
        make(folder)


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _make_annotations(folder: Path) -> None:
    entries = [{'fpath': f'é/{row}.jpg', 'category_id': row % 4} for row in range(12)]
    _json(folder / 'data/converted_train.json', {'annotations': entries, 'num_classes': 4})
    _json(folder / 'data/images.json', {'images': [{'image_id': f'{row}.jpg'} for row in range(3)]})
    _json(folder / 'data/classes.json', {'names': CLASSES, 'parents': [['Fruit'], [], ['Fruit'], []]})
    quarantine = [{'fpath': 'a/1.jpg', 'split': 'train', 'reason': 'x'}, {'fpath': 'b', 'split': 'val'}]
    _json(folder / 'data/quarantine.json', {'images': quarantine})
    weighted = [{**entry, 'weight': 0.5} for entry in entries[:3]]
    _json(folder / 'data/weighted.json', {'annotations': [*entries, *weighted], 'num_classes': 4})
    decisions = [
        Decision('a/1.jpg', 'relabel', CLASSES[0], to=CLASSES[1], by='review'),
        *(Decision(name, 'drop', CLASSES[1]) for name in NAMES[1:3].to_pylist()),
        Decision('c.jpg', 'weight', CLASSES[2], weight=0.25),
    ]
    write_decisions(folder / 'data/decisions.json', decisions)
    shutil.copytree(folder / 'data', folder / 'append')
    (folder / 'list.txt').write_text('a/1.jpg\né/2.jpg\r\n\nc d.jpg')


def _make_sources(folder: Path) -> None:
    categories = [
        {'id': 7, 'name': 'Felis catus', 'supercategory': 'Mammals'},
        {'id': 3, 'name': 'Canis lupus', 'kingdom': 'Animalia', 'genus': 'Canis'},
    ]
    images = [{'id': row, 'file_name': f'train/{row}.jpg'} for row in range(4)]
    labels = [{'image_id': row, 'category_id': 7 - 4 * (row % 2)} for row in range(4)]
    _json(folder / 'inat/train2018.json', {'images': images, 'annotations': labels, 'categories': categories})
    goods = [{'image_id': f'{row}.jpg', 'class_id': ['7', '00012'][row % 2]} for row in range(4)]
    _json(folder / 'goods/train.json', {'images': goods})
    _json(folder / 'goods/product_tree.json', {'food': {'drinks': [7], 'bread': {'rye': 12}}})
    for name in ('7', '00012'):
        (folder / 'goods/train' / name).mkdir(parents=True)
    for name, text in (('table/train.csv', CSV_TEXT), ('listed/train.txt', 'a b/1.jpg 0\nc.jpg\t1\nd.jpg,3\n')):
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    for name in ('a/1.jpg', 'a, b/2.jpg', 'c.jpg', 'd.jpg'):
        (folder / 'table' / name).parent.mkdir(exist_ok=True)
        (folder / 'table' / name).write_bytes(b'')
    content = {'a/x.txt': b'text' * 100, 'b.json': b'{}'}
    (folder / 'archives').mkdir()
    for name in ('x.tar', 'x.tar.gz', 'x.tar.bz2', 'x.tar.xz'):
        with tarfile.open(folder / 'archives' / name, f'w:{name[6:]}') as tar:
            for member, data in content.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    with zipfile.ZipFile(folder / 'archives/x.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for member, data in content.items():
            archive.writestr(member, data)
    _json(folder / 'unpacked/.unpacked.json', {'x.zip': [1, 2]})


def _make_checkpoints(folder: Path) -> None:
    run = folder / 'run'
    checkpoint = small_checkpoint(epoch=2, step=1)
    checkpoint.history = [{'epoch': 1, 'split': 'valid', 'top1': 0.5}]
    checkpoint.bad_images = {'train': {'a.jpg': 'truncated'}}
    checkpoint.training_state = checkpoint.state_dict
    checkpoint.scaler = {'scale': 65536.0, 'growth_factor': 2.0, 'growth_interval': 2000, '_growth_tracker': 3}
    write_checkpoint(run / 'last.pth', checkpoint)
    save_file(checkpoint.state_dict, run / 'model.safetensors', safetensors_metadata(checkpoint))
    rows = {'classifier.weight': torch.ones(2, 3), 'optimizer.classifier.weight.momentum_buffer': torch.ones(2, 3)}
    for rank in (1, 0):
        write_shard_and_index(run / 'head-2-1', ClassifierShard(rows, range(2 * rank, 2 * rank + 2), 4, rank, 2))
    state = backbone().state_dict()
    weights = folder / 'weights'
    weights.mkdir()
    torch.save({'state_dict': state, 'epoch': 3}, weights / 'zip.pth')
    torch.save({'state_dict': state, 'epoch': 3}, weights / 'legacy.pth', _use_new_zipfile_serialization=False)
    save_file(state, weights / 'x.safetensors')
    text = 'NAME: run\nMODEL: {BACKBONE: res32_cifar}\nTRAIN:\n  BATCH_SIZE: 8\nTEST:\n  SCALES: [1.0, 1.25]\n'
    (run / 'config.yaml').write_text(text)


def _make_records(folder: Path) -> None:
    run = folder / 'run'
    entries = [
        {'epoch': epoch, 'split': split, 'lr': 0.1, 'loss': 2.5, 'top1': 0.5, 'mean_class_error': 0.25}
        for epoch in (1, 2, 3)
        for split in ('train', 'valid')
    ]
    (run / 'metrics.jsonl').write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    metrics = {'mean_class_error': 0.25, 'top1': 0.75}
    curve = {'tau': [0.1, 0.5], 'value': [0.3, 0.2, 0.25]}
    tau = {'metric': 'top1', 'curve': curve, 'before': metrics, 'after': metrics, 'chosen': 0.3, 'stretch': [0.1, 0.5]}
    _json(run / 'tau.json', tau)
    with open(run / 'bad_images.csv', 'w', newline='') as file:
        csv.writer(file).writerows([('split', 'image', 'reason'), ('train', 'a, b.jpg', 'truncated')])
    _json(folder / 'measured.json', [{'method': 'ce', 'base': 'tiny', 'imbalance': 100, 'options': {}}])
    _json(folder / 'variables.json', {'RANK': '1', 'WORLD_SIZE': '4', 'LOCAL_RANK': '0'})
    options = {'TRAIN_BATCH_SIZE': 8, 'PLAN_DEVICES': 4, 'INPUT_SIZE': 64, 'NAME': 'x', 'PLAN_TFLOPS': 1.5}
    _json(folder / 'options.json', [word for name, value in options.items() for word in (f'--{name}', str(value))])


def _make_images(folder: Path) -> None:
    (folder / 'images').mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    for kind, options in FORMATS.items():
        Image.fromarray(noise).save(folder / f'images/x.{kind}', kind, **options)
    Image.fromarray(noise).save(folder / 'images/progressive.jpeg', 'jpeg', progressive=True)


def _make_caches(folder: Path) -> None:
    (folder / 'packed').mkdir()
    pack_split(job_of(make_photos(folder / 'packed'), folder / 'packed/train'), num_workers=0)
    with _caching_all():
        read_annotations(folder / 'data/converted_train.json')
    store = column_store.open_or_create(folder / 'store', 6, STORE, {'key': 1})
    store.write(slice(0, 6), {'x': np.ones((6, 3), np.float32)})
    store.flush()


def backbone() -> torch.nn.Module:
    """Return a network of a few weights."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))


class _caching_all:
    """Cache also small annotation files."""

    def __enter__(self) -> None:
        self.earlier, annotations.CACHED_FROM_BYTES = annotations.CACHED_FROM_BYTES, 0

    def __exit__(self, *_: object) -> None:
        annotations.CACHED_FROM_BYTES = self.earlier


STORE = {'x': (np.float32, (3,))}


def _read_cached(path: Path) -> None:
    source = path.with_name('converted_train.json')
    with _caching_all():
        read = read_annotations(source)
    expected = read_annotations(source, use_cache=False)
    assert list(read.paths) == list(expected.paths)
    assert read.labels.tolist() == expected.labels.tolist()


def _resume(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    checkpoint.for_prediction()
    safetensors_metadata(checkpoint)
    write_checkpoint(path.with_name('again.pth'), checkpoint)
    latest_checkpoint(path.parent)
    if checkpoint.optimizer is not None:
        _step_from(checkpoint.optimizer)


def _step_from(state: dict) -> None:
    """Load the state of an optimizer as TrainState.restore does, and take a step."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    register_load_hooks(optimizer)
    with suppress(KeyError, ValueError, TypeError, AttributeError):
        optimizer.load_state_dict(state)
        parameter.grad = torch.ones(2)
    optimizer.step()


def _copy(path: Path) -> Path:
    """Return a copy of the folder of a file, which may be a pipe."""
    folder = path.parent.with_name(f'{path.parent.name} copy')
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(path.parent, folder, ignore=lambda *_: [path.name])
    if path.is_dir():
        (folder / path.name).mkdir()
    else:
        os.link(path, folder / path.name, follow_symlinks=False)
    return folder


def _open_store(path: Path) -> None:
    """A store that is damaged is made again."""
    store = column_store.open_or_create(_copy(path), 6, STORE, {'key': 1})
    assert store.columns['x'].shape == (6, 3)
    assert (store.columns['x'][store.done] == 1).all()


def _read_shards(path: Path) -> None:
    images = ShardImages(path.parent / 'index.arrow')
    images.index.check()
    for row in range(len(images)):
        images.read(row)


def _check_pack(path: Path) -> None:
    with suppress(FolderConflict):
        check_folder(job_of(None, path.parent))


def _variables(path: Path) -> None:
    values = json.loads(path.read_bytes())
    earlier = dict(os.environ)
    try:
        for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
            value = str(values.get(name, '')) if isinstance(values, dict) else ''
            os.environ[name] = value.replace('\0', '').encode('utf-8', 'replace').decode()
        read_rank_info()
    finally:
        os.environ.clear()
        os.environ.update(earlier)


def _options(path: Path) -> None:
    words = json.loads(path.read_bytes())
    argv = [str(word) for word in (words if isinstance(words, list) else [words])]
    argv = [word for word in argv if not word.startswith(('--h', '-h'))]  # help is printed
    load_config(argv, program='x', description='', find_checkpoint_config=lambda *_: None)


def _unpack(path: Path) -> None:
    target = path.with_name('target')
    shutil.rmtree(target, ignore_errors=True)
    unpack(path, target)


def _append(path: Path) -> None:
    append_converted(convert_csv(path.parents[1] / 'table'), _copy(path))


def _unpack_once(path: Path) -> None:
    unpack_once(path.parents[1] / 'archives/x.zip', path.parent)


def _pretrained(path: Path) -> None:
    load_pretrained(backbone(), path)


def _rows(path: Path) -> None:
    read_rows(path.parent)


def _curves(path: Path) -> None:
    curve_panels(read_history(path.parent))


def _image(path: Path) -> None:
    data = read_bytes(path)
    open_lazy_image(data).pixels(1.0)
    decode(data)


def _apply_decisions(path: Path) -> None:
    labels = np.arange(len(NAMES), dtype=np.int32) % len(CLASSES)
    apply_decisions(read_decisions(path), NAMES, labels, CLASSES, path)


INDEX, SHARD = 'run/head-2-1/classifier.safetensors.index.json', 'run/head-2-1/classifier-00001-of-00002.safetensors'
PARSERS = {
    'annotations': Parser('data/converted_train.json', lambda path: read_annotations(path, use_cache=False)),
    'test images': Parser('data/images.json', lambda path: read_test_images(path, 4)),
    'classes': Parser('data/classes.json', lambda path: read_classes(path, 4)),
    'weighted annotations': Parser('data/weighted.json', lambda path: read_annotations(path, use_cache=False)),
    'decisions': Parser('data/decisions.json', _apply_decisions),
    'quarantine': Parser('data/quarantine.json', lambda path: quarantined_rows(NAMES, path, 'train')),
    'annotation cache': Parser('data/.converted_train.json.arrow', _read_cached, mutated_bytes),
    'classes to append to': Parser('append/classes.json', _append),
    'annotations to append to': Parser('append/converted_train.json', _append),
    'iNaturalist': Parser('inat/train2018.json', lambda path: convert_inat(path.parent)),
    'AliProducts': Parser('goods/train.json', lambda path: convert_aliproducts(path.parent)),
    'product tree': Parser('goods/product_tree.json', lambda path: convert_aliproducts(path.parent)),
    'CSV': Parser('table/train.csv', lambda path: convert_csv(path.parent), mutated_bytes),
    'text list': Parser('listed/train.txt', lambda path: convert_image_list(path.parent), mutated_bytes),
    'list of images': Parser('list.txt', lambda path: listed_paths(_read_list(str(path))), mutated_bytes),
    'tar': Parser('archives/x.tar', _unpack, mutated_bytes),
    'tar.gz': Parser('archives/x.tar.gz', _unpack, mutated_bytes),
    'tar.bz2': Parser('archives/x.tar.bz2', _unpack, mutated_bytes),
    'tar.xz': Parser('archives/x.tar.xz', _unpack, mutated_bytes),
    'zip': Parser('archives/x.zip', _unpack, mutated_bytes),
    'record of archives': Parser('unpacked/.unpacked.json', _unpack_once),
    'config': Parser('run/config.yaml', lambda path: read_config_file(str(path)), mutated_bytes),
    'options': Parser('options.json', _options, mutated_values),
    'variables of torchrun': Parser('variables.json', _variables, mutated_values),
    'checkpoint': Parser('run/last.pth', _resume, mutated_checkpoint),
    'exported checkpoint': Parser('run/model.safetensors', read_checkpoint, mutated_bytes),
    'index of a classifier': Parser(INDEX, _rows),
    'rows of a classifier': Parser(SHARD, _rows, mutated_bytes),
    'weights': Parser('weights/zip.pth', _pretrained, mutated_checkpoint),
    'weights before torch 1.6': Parser('weights/legacy.pth', _pretrained, mutated_bytes),
    'weights in safetensors': Parser('weights/x.safetensors', _pretrained, mutated_bytes),
    'history': Parser('run/metrics.jsonl', _curves, mutated_json_lines),
    'tau': Parser('run/tau.json', _read_tau),
    'bad images': Parser('run/bad_images.csv', lambda path: read_bad_images(path.parent), mutated_bytes),
    'measured results': Parser('measured.json', read_measured),
    'record of a command': Parser('run/tau.json', read_json),
    'description of features': Parser('store/about.json', _open_store),
    'features': Parser('store/x.npy', _open_store, mutated_bytes),
    'rows of features': Parser('store/rows0.jsonl', _open_store, mutated_bytes),
    'index of shards': Parser('packed/train/index.arrow', _read_shards, mutated_bytes),
    'shard': Parser('packed/train/000000.tar', _read_shards, mutated_bytes),
    'settings of shards': Parser('packed/train/pack.json', _check_pack),
    **{f'{kind} image': Parser(f'images/x.{kind}', _image, mutated_bytes) for kind in FORMATS},
    'progressive image': Parser('images/progressive.jpeg', _image, mutated_bytes),
}
