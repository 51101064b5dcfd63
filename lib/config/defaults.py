"""Every option there is: default, meaning, unit, choices. `build` holds the constructors behind the choices."""

from lib.config.key import Key
from lib.config.keys.data import DATASET, INPUT, SAMPLER
from lib.config.keys.loss import LOSS
from lib.config.keys.method import MIX, MODEL, OPTIMIZER, SCHEDULE
from lib.config.keys.run import (
    DOCTOR,
    ENROLL,
    EXPORT,
    PACK,
    PLAN,
    POSTHOC,
    REPORT,
    RUN,
    SEARCH,
    TAU_NORM,
    TEST,
    TOP,
    TRAIN,
)

TREE: dict[str, dict[str, Key]] = {
    '': TOP,
    'DATASET': DATASET,
    'INPUT': INPUT,
    'SAMPLER': SAMPLER,
    'MODEL': MODEL,
    'LOSS': LOSS,
    'MIX': MIX,
    'OPTIMIZER': OPTIMIZER,
    'SCHEDULE': SCHEDULE,
    'TRAIN': TRAIN,
    'TEST': TEST,
    'TAU_NORM': TAU_NORM,
    'REPORT': REPORT,
    'POSTHOC': POSTHOC,
    'EXPORT': EXPORT,
    'DOCTOR': DOCTOR,
    'PACK': PACK,
    'PLAN': PLAN,
    'SEARCH': SEARCH,
    'ENROLL': ENROLL,
    'RUN': RUN,
}

KEYS: dict[str, Key] = {
    f'{section}.{name}' if section else name: key for section, keys in TREE.items() for name, key in keys.items()
}
