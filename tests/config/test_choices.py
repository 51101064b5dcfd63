"""The choices of keys, which --help shows without torch, are the names in the tables of lib/builders."""

from collections.abc import Collection

import pytest

from lib.builders import data, loader, loss, mixing, model, objective, optim, sampler
from lib.config.defaults import KEYS
from lib.optim.optimizer import KINDS
from lib.trainer.tracker_records import RECORDS

TABLES: dict[str, Collection[str]] = {
    'DATASET.NAME': data._SOURCES,
    'INPUT.TRAIN_TRANSFORM': loader.TRAIN_TRANSFORMS,
    'SAMPLER.TYPE': sampler.SAMPLERS,
    'SAMPLER.SWITCH_TYPE': ['', *sampler.SAMPLERS],
    'SAMPLER.PAIR_TYPE': sampler.SAMPLERS,
    'MODEL.CLASSIFIER': model.CLASSIFIERS,
    'MIX.TYPE': ['', *mixing.MIXERS],
    'LOSS.TYPE': loss.LOSSES,
    'LOSS.CLASS_WEIGHTS': loss.CLASS_WEIGHTS,
    'LOSS.AUXILIARY': objective.AUXILIARIES,
    'OPTIMIZER.TYPE': (*KINDS, 'lbfgs'),  # the last one by create_lbfgs
    'SCHEDULE.TYPE': optim.SCHEDULES,
    'LOG.TRACKERS': ('tensorboard', *RECORDS),
}


@pytest.mark.parametrize('name', TABLES)
def test_choices_are_the_tables_names(name):
    assert set(KEYS[name].choices) == set(TABLES[name])
    assert len(set(KEYS[name].choices)) == len(KEYS[name].choices)


def test_every_method_that_is_chosen_by_name_is_compared_here():
    by_table = {name for name, key in KEYS.items() if name.endswith('.TYPE') and key.choices}
    assert by_table <= set(TABLES)
