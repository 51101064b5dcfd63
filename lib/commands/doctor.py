"""tools/doctor.py: audit all splits of the data, write doctor.json, doctor.html and quarantine.json."""

import math
import shlex
import sys
from pathlib import Path

from lib.audit.report import AuditSplit, audit_splits
from lib.builders.data import open_test_split, open_training_data
from lib.builders.loader import num_workers, train_sizes
from lib.builders.split import DatasetSplit
from lib.builders.training_data import TrainingData
from lib.config.defaults import Config
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.report.audit_page import write_audit_page
from lib.report.describe import describe_audit
from lib.runtime.files import replace_together, write_json
from lib.runtime.log import LOGGER, progress_bar


def doctor_folder(cfg: Config) -> Path:
    """Return the folder of the results: DOCTOR.OUT, or LOG_ROOT/NAME_doctor."""
    return Path(cfg.DOCTOR.OUT or Path(cfg.LOG_ROOT, f'{cfg.NAME}_doctor'))


def audit_dataset(cfg: Config, group: ProcessGroup = SINGLE_PROCESS) -> list[str]:
    """Decode every image, write doctor.json, doctor.html and quarantine.json, and return the lines to print.

    The files are written after the last image, and replace older ones together. Ranks share the images; the main rank
    compares them and writes.

    Raises:
        UserError: the splits cannot be opened, or DOCTOR.OUT cannot be written.
    """
    folder = doctor_folder(cfg)
    with group.main_first():
        data = open_training_data(cfg, quarantine=False)
        splits = _splits(cfg, data)
    total = sum(len(split.labels) for split in splits)
    with progress_bar((), total=total, label='checking', unit='image') as bar:
        report = audit_splits(
            splits,
            min_side=cfg.DOCTOR.MIN_SIDE,
            near_distance=cfg.DOCTOR.NEAR_DISTANCE,
            few=cfg.DOCTOR.FEW,
            num_workers=num_workers(cfg.RUN.NUM_WORKERS),
            progress=bar.update,
            group=group,
        )
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


def _splits(cfg: Config, data: TrainingData) -> list[AuditSplit]:
    size = cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE
    resized = math.ceil(size / cfg.INPUT.CROP_RATIO)
    splits = [_split('train', data.train, max(train_sizes(cfg).values()))]
    if data.valid is not None:
        splits.append(_split('valid', data.valid, resized))
    test = _test_split(cfg, data)
    if test is not None:
        splits.append(_split('test', test, resized))
    return splits


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
