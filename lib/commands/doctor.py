"""tools/doctor.py: audit all splits of the data, write doctor.json, doctor.html and quarantine.json."""

import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from lib.audit.report import AuditReport, AuditSplit, audit_splits
from lib.audit.scan import ROWS_PER_TASK, scan_columns
from lib.builders.cache_key import split_key
from lib.builders.data import open_test_split, open_training_data
from lib.builders.loader import num_workers, train_sizes
from lib.builders.recipe import resolve_recipe
from lib.builders.split import DatasetSplit
from lib.builders.training_data import TrainingData
from lib.config.defaults import Config
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.report.audit_page import write_audit_page
from lib.report.describe import describe_audit
from lib.runtime.column_store import ColumnStore, open_or_create
from lib.runtime.files import read_json, remove, replace_together, write_json
from lib.runtime.locks import removed_lock
from lib.runtime.log import LOGGER, progress_bar

# Folder of the statistics of images, as long as not all of them are decoded.
_SCAN = 'scan.partial'
_LOCK_SECONDS = 60.0  # for another call to end


def doctor_folder(cfg: Config) -> Path:
    """Return the folder of the results: DOCTOR.OUT, or LOG_ROOT/NAME_doctor."""
    return Path(cfg.DOCTOR.OUT or Path(cfg.LOG_ROOT, f'{cfg.NAME}_doctor'))


def contradictory_rows(cfg: Config, train: DatasetSplit, labels: np.ndarray) -> list[int]:
    """Return the training rows whose image, or nearly the same one, has another label, too; none without doctor.json.

    Args:
        labels: (num_images,) at present: corrections may have changed them since the audit; -1: the image is not used.
    """
    path, found = doctor_folder(cfg) / 'doctor.json', set[int]()
    try:
        doctor: Any = read_json(path)
        for group in [*doctor['exact_duplicates'], *doctor['near_duplicates']]:
            images = [image for image in group['images'] if image['split'] == 'train']
            rows = {image['row'] for image in images if train.names[image['row']].as_py() == image['fpath']}
            rows = {row for row in rows if labels[row] >= 0}
            if len(set(labels[sorted(rows)].tolist())) > 1:
                found |= rows
    except (TypeError, KeyError, IndexError):  # there is none, or it is damaged or of other data
        return []
    return sorted(found)


def audit_dataset(cfg: Config, group: ProcessGroup = SINGLE_PROCESS) -> list[str]:
    """Decode every image, write doctor.json, doctor.html and quarantine.json, and return the lines to print.

    The files are written after the last image, and replace older ones together. A call that was stopped is resumed.
    Ranks share the images; the main rank compares them and writes.

    Raises:
        UserError: the splits cannot be opened, or DOCTOR.OUT cannot be written.
    """
    folder = doctor_folder(cfg)
    with group.main_first():
        data = open_training_data(cfg, quarantine=False)
        splits = _splits(cfg, data)
    cfg = resolve_recipe(cfg, len(data.index()))
    with _scan_store(folder, splits) if group.is_main else nullcontext() as store:
        report = _audit(cfg, splits, store, group)
        if report is None:
            return []
        quarantine = report.quarantine()
        with replace_together(folder):
            write_json(folder / 'doctor.json', report.as_json())
            write_json(folder / 'quarantine.json', quarantine)
            write_audit_page(
                folder / 'doctor.html',
                report,
                title=f'{cfg.NAME}: the data',
                command=shlex.join(['python', *sys.argv]),
                class_names=data.classes.names if data.classes else [f'class {name}' for name in data.class_names],
            )
    return describe_audit(report, folder, len(quarantine['images']))


@contextmanager
def _scan_store(folder: Path, splits: dict[str, DatasetSplit]) -> Iterator[ColumnStore]:
    """Yield the statistics of the images that an earlier call has computed, to be completed; then remove them."""
    folder.mkdir(parents=True, exist_ok=True)
    key = {
        'rows_per_task': ROWS_PER_TASK,
        **{name: split_key(split, with_labels=False) for name, split in splits.items()},
    }
    with removed_lock(folder / f'.{_SCAN}.lock', _LOCK_SECONDS):
        store = open_or_create(folder / _SCAN, sum(map(len, splits.values())), scan_columns(), key)
        if number := int(store.done.sum()):
            LOGGER.info('%s: resuming after %d of %d images', folder, number, len(store.done))
        yield store
        remove(store.folder)


def _audit(
    cfg: Config, splits: dict[str, DatasetSplit], store: ColumnStore | None, group: ProcessGroup
) -> AuditReport | None:
    size = cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE
    resized = math.ceil(size / cfg.INPUT.CROP_RATIO)
    given = [
        _split(name, split, max(train_sizes(cfg).values()) if name == 'train' else resized)
        for name, split in splits.items()
    ]
    with progress_bar((), total=sum(map(len, splits.values())), label='checking', unit='image') as bar:
        return audit_splits(
            given,
            min_side=cfg.DOCTOR.MIN_SIDE,
            near_distance=cfg.DOCTOR.NEAR_DISTANCE,
            few=cfg.DOCTOR.FEW,
            num_workers=num_workers(cfg.RUN.NUM_WORKERS),
            progress=bar.update,
            group=group,
            store=store,
        )


def _splits(cfg: Config, data: TrainingData) -> dict[str, DatasetSplit]:
    splits = {'train': data.train, 'valid': data.valid, 'test': _test_split(cfg, data)}
    return {name: split for name, split in splits.items() if split is not None}


def _split(name: str, split: DatasetSplit, enlarged_below: int) -> AuditSplit:
    return AuditSplit(name, split.source, split.images, split.names, split.labels, split.num_classes, enlarged_below)


def _test_split(cfg: Config, data: TrainingData) -> DatasetSplit | None:
    if cfg.DATASET.NAME.startswith('cifar'):
        return None  # its test images are the valid split
    try:
        return open_test_split(cfg, data.class_names)
    except UserError as error:
        if cfg.DATASET.TEST_JSON or cfg.DATASET.TEST_ROOT:
            raise
        LOGGER.info('the test split is left out: %s', error)
        return None
