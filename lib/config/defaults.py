"""The config tree: all options with default, meaning, type and choices."""

from typing import Any

from lib.config.key import Key, Section
from lib.config.keys.data import DatasetKeys, DoctorKeys, InputKeys, PackKeys, PseudoKeys, SamplerKeys
from lib.config.keys.loss import LossKeys
from lib.config.keys.method import MixKeys, ModelKeys, OptimizerKeys, ScheduleKeys
from lib.config.keys.run import LogKeys, RunKeys, StorageKeys, TauNormKeys, TestKeys, TopKeys, TrainKeys
from lib.config.keys.tools import (
    CleanKeys,
    EnrollKeys,
    ExportKeys,
    IndexKeys,
    PlanKeys,
    PosthocKeys,
    ReportKeys,
    SearchKeys,
    ServeKeys,
)


class Config(TopKeys, title='all options'):
    """The resolved config: cfg.NAME, cfg.TRAIN.BATCH_SIZE. Frozen; made by as_node in lib/config/yaml_text.py."""

    DATASET: DatasetKeys
    INPUT: InputKeys
    SAMPLER: SamplerKeys
    MODEL: ModelKeys
    LOSS: LossKeys
    MIX: MixKeys
    OPTIMIZER: OptimizerKeys
    SCHEDULE: ScheduleKeys
    TRAIN: TrainKeys
    LOG: LogKeys
    TEST: TestKeys
    TAU_NORM: TauNormKeys
    POSTHOC: PosthocKeys
    EXPORT: ExportKeys
    SERVE: ServeKeys
    REPORT: ReportKeys
    DOCTOR: DoctorKeys
    CLEAN: CleanKeys
    PSEUDO: PseudoKeys
    PACK: PackKeys
    PLAN: PlanKeys
    SEARCH: SearchKeys
    INDEX: IndexKeys
    ENROLL: EnrollKeys
    RUN: RunKeys
    STORAGE: StorageKeys


# Name ('' for the top-level keys) -> class.
SECTIONS: dict[str, type[Section]] = {'': TopKeys, **Config.__annotations__}

TREE: dict[str, dict[str, Key[Any]]] = {name: section.keys_by_name for name, section in SECTIONS.items()}

KEYS: dict[str, Key[Any]] = {
    f'{section}.{name}' if section else name: key for section, keys in TREE.items() for name, key in keys.items()
}

# The largest sensible values of numbers that determine how much memory is allocated.
LARGEST: dict[str, int] = {
    'INPUT.SIZE': 16_384, 'INPUT.TEST_SIZE': 16_384, 'INPUT.SIZE_SCHEDULE': 100_000, 'INPUT.PADDING': 4096,
    'SAMPLER.IMAGES_PER_CLASS': 500_000, 'MODEL.TUNE_RANK': 65_536, 'LOSS.CONTRAST_WIDTH': 65_536,
    'TRAIN.BATCH_SIZE': 500_000, 'TRAIN.DEVICE_BATCH_SIZE': 500_000, 'TRAIN.MAX_EPOCH': 100_000,
    'TEST.BATCH_SIZE': 500_000, 'TEST.TOP_K': 100_000, 'POSTHOC.FOLDS': 500_000, 'SEARCH.K': 100_000,
    'SEARCH.EFFORT': 100_000, 'INDEX.DIMENSIONS': 1_000_000,
    'CLEAN.FOLDS': 1000, 'CLEAN.CANDIDATES': 1000, 'CLEAN.ROUNDS': 1000, 'SERVE.QUEUE': 1_000_000,
    'DOCTOR.MIN_SIDE': 65_536, 'PACK.SHORT_SIDE': 65_536, 'PLAN.NUM_CLASSES': 100_000_000, 'PLAN.DEVICES': 500_000,
    'SERVE.BATCH_SIZE': 65_536,
}  # fmt: skip
