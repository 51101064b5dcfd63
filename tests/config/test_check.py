"""Settings that do not work together, and keys that the chosen method does not use."""

import pytest

from lib.config.check import check_values
from lib.config.check_features import check_catalog, check_proposals, check_tracking
from lib.config.defaults import KEYS, LARGEST
from lib.errors import UserError

UNUSED = {
    'DATASET.IMBALANCE_RATIO': (10.0, 'DATASET.NAME'),
    'DATASET.IMBALANCE_TYPE': ('step', 'DATASET.NAME'),
    'INPUT.PADDING': (8, 'INPUT.TRAIN_TRANSFORM'),
    'MODEL.COSINE_SCALE': (8.0, 'MODEL.CLASSIFIER'),
    'LOSS.GAMMA': (1.0, 'LOSS.TYPE'),
    'OPTIMIZER.BETAS': ((0.8, 0.9), 'OPTIMIZER.TYPE'),
    'SCHEDULE.FINAL_LR': (0.1, 'SCHEDULE.TYPE'),
    'SCHEDULE.DIV_FACTOR': (2.0, 'SCHEDULE.TYPE'),
    'SAMPLER.BETA': (0.5, 'SAMPLER.TYPE'),
    'SAMPLER.REPEAT_THRESHOLD': (0.5, 'SAMPLER.TYPE'),
    'SAMPLER.IMAGES_PER_CLASS': (4, 'SAMPLER.TYPE'),
}


def check(values=None, levels=None):
    """Check the defaults with `values`, set by layer 0 unless `levels` names another."""
    values = values or {}
    check_values(
        {**{name: key.default for name, key in KEYS.items()}, 'NAME': 'x', **values},
        {**dict.fromkeys(KEYS, -1), **dict.fromkeys(values, 0), **(levels or {})},
    )


def refused(values, levels=None):
    with pytest.raises(UserError) as caught:
        check(values, levels)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_defaults_pass():
    check()


@pytest.mark.parametrize('name', UNUSED)
def test_a_key_that_the_method_does_not_use(name):
    value, selector = UNUSED[name]
    message = refused({name: value})
    assert message.startswith(f'{name} is {value}, but {selector} {KEYS[selector].default} does not use it')
    # The message names who would use it; with one of those, it passes.
    for user in KEYS[name].used_by[1]:
        assert user in message
        check({selector: user, name: value})


def test_it_is_a_mistake_only_if_the_method_was_chosen_by_the_same_or_a_lower_layer():
    values = {'LOSS.TYPE': 'cross_entropy', 'LOSS.GAMMA': 1.0}
    check(values, {'LOSS.TYPE': 1, 'LOSS.GAMMA': 0})  # the method was changed over a recipe
    refused(values, {'LOSS.TYPE': 0, 'LOSS.GAMMA': 0})
    refused(values, {'LOSS.TYPE': 0, 'LOSS.GAMMA': 1})
    refused(values, {'LOSS.TYPE': -1, 'LOSS.GAMMA': 0})
    check(values, {'LOSS.TYPE': -1, 'LOSS.GAMMA': -1})  # both from a checkpoint
    check(values, {'LOSS.TYPE': -2, 'LOSS.GAMMA': -1})


def test_a_second_selector_uses_a_key_as_well():
    check({'SAMPLER.SWITCH_TYPE': 'effective_number', 'SAMPLER.BETA': 0.5})
    assert 'SAMPLER.BETA is 0.5' in refused({'SAMPLER.SWITCH_TYPE': 'reverse', 'SAMPLER.BETA': 0.5})
    # Chosen by a recipe, switched off on the command line.
    check({'SAMPLER.SWITCH_TYPE': '', 'SAMPLER.BETA': 0.5}, {'SAMPLER.SWITCH_TYPE': 1})


def test_zero_epochs_need_no_schedule():
    check({'TRAIN.MAX_EPOCH': 0, 'SCHEDULE.WARMUP_EPOCHS': 5.0})


def test_an_unused_key_at_its_default_is_no_mistake():
    check({'LOSS.GAMMA': KEYS['LOSS.GAMMA'].default})


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'SCHEDULE.WARMUP_EPOCHS': 121.0}, ['SCHEDULE.WARMUP_EPOCHS is 121', 'TRAIN.MAX_EPOCH is 120']),
        ({'TRAIN.MAX_EPOCH': 2, 'SCHEDULE.WARMUP_EPOCHS': 2.5}, ['SCHEDULE.WARMUP_EPOCHS is 2.5']),
        ({'SCHEDULE.MILESTONE_EPOCHS': (10.0, 5.0)}, ['SCHEDULE.MILESTONE_EPOCHS', 'must increase']),
        ({'SCHEDULE.MILESTONE_EPOCHS': (5.0, 5.0)}, ['SCHEDULE.MILESTONE_EPOCHS', 'must increase']),
        ({'SCHEDULE.DECAY_FACTORS': (0.1, 0.1)}, ['SCHEDULE.DECAY_FACTORS has 2', 'each of the 3']),
        ({'SCHEDULE.DECAY_FACTORS': ()}, ['SCHEDULE.DECAY_FACTORS has 0']),
        ({'OPTIMIZER.NESTEROV': True, 'OPTIMIZER.MOMENTUM': 0.0}, ['OPTIMIZER.NESTEROV', 'OPTIMIZER.MOMENTUM']),
        ({'SAMPLER.SWITCH_EPOCH': 3}, ['SAMPLER.SWITCH_EPOCH is 3', 'SAMPLER.SWITCH_TYPE']),
        ({'SAMPLER.TYPE': 'class_balance', 'SAMPLER.IMAGES_PER_CLASS': 3}, ['must divide TRAIN.BATCH_SIZE 512']),
        ({'INPUT.SCALE': (1.0,)}, ['INPUT.SCALE', 'two numbers']),
        ({'INPUT.SCALE': (1.0, 0.5)}, ['INPUT.SCALE', 'smaller one first']),
        ({'INPUT.RATIO': (1.0, 2.0, 3.0)}, ['INPUT.RATIO', 'two numbers']),
        ({'INPUT.MEAN': (0.5,)}, ['INPUT.MEAN', 'three numbers']),
        ({'INPUT.COLOR_JITTER': (0.4, 0.4)}, ['INPUT.COLOR_JITTER', 'four numbers']),
        ({'INPUT.COLOR_JITTER': (0.4, 0.4, 0.4, 0.6)}, ['INPUT.COLOR_JITTER', 'at most 0.5']),
        ({'INPUT.STD': (0.5, 0.5)}, ['INPUT.STD', 'three numbers']),
        ({'OPTIMIZER.TYPE': 'adam', 'OPTIMIZER.BETAS': (0.9,)}, ['OPTIMIZER.BETAS', 'two numbers']),
        ({'INPUT.SIZE_SCHEDULE': (0, 64, 5)}, ['INPUT.SIZE_SCHEDULE is (0, 64, 5)', 'pairs of epoch and pixels']),
        ({'INPUT.SIZE_SCHEDULE': (0, 64, 5, 96, 5, 128)}, ['INPUT.SIZE_SCHEDULE', 'epochs must increase', '(0, 5, 5)']),
        ({'INPUT.SIZE_SCHEDULE': (5, 64, 0, 96)}, ['INPUT.SIZE_SCHEDULE', 'epochs must increase']),
        ({'INPUT.SIZE_SCHEDULE': (0, 7, 5, 96)}, ['INPUT.SIZE_SCHEDULE', 'at least 8 pixels']),
        ({'NAME': ''}, ["NAME is ''"]),
        ({'NAME': '..'}, ["NAME is '..'"]),
        ({'NAME': 'a/b'}, ["NAME is 'a/b'", 'one folder']),
        ({'NAME': 'a\\b'}, ['NAME is', 'one folder']),
        ({'NAME': 'a\0'}, ['NAME is']),
        ({'NAME': 'x' * 201}, ['NAME is']),
    ],
)
def test_settings_that_do_not_work_together(values, words):
    message = refused(values)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    'values',
    [
        {'SCHEDULE.WARMUP_EPOCHS': 120.0},
        {'SCHEDULE.MILESTONE_EPOCHS': (), 'SCHEDULE.DECAY_FACTORS': (0.1,)},
        {'SCHEDULE.DECAY_FACTORS': (0.1, 0.2, 0.3)},
        {'SCHEDULE.MILESTONE_EPOCHS': (500.0,)},  # beyond the end of a short run
        {'OPTIMIZER.MOMENTUM': 0.0},
        {'OPTIMIZER.NESTEROV': True},
        {'SAMPLER.SWITCH_TYPE': 'reverse', 'SAMPLER.SWITCH_EPOCH': 0},
        {'INPUT.SCALE': (1.0, 1.0)},
        {'INPUT.SIZE_SCHEDULE': (0, 64, 5, 32, 500, 8)},
        {'INPUT.SIZE_SCHEDULE': (7, 64)},
        {'NAME': 'a run, ümläut.1'},
    ],
)
def test_valid_settings(values):
    check(values)


def test_unused_milestones_are_not_checked():
    """A recipe's milestones are not checked under --SCHEDULE_TYPE cosine."""
    values = {'SCHEDULE.TYPE': 'cosine', 'SCHEDULE.MILESTONE_EPOCHS': (9.0, 1.0)}
    check(values, {'SCHEDULE.TYPE': 1})


@pytest.mark.parametrize('name', ['DATASET.TRAIN_JSON', 'DATASET.VALID_JSON'])
@pytest.mark.parametrize(
    ('of_json', 'of_shards', 'is_refused'),
    [
        (1, 1, True),  # both on the command line
        (1, 0, True),  # an option over a file
        (1, -1, True),  # an option over the checkpoint's config
        (0, 1, False),  # shards over a recipe that names annotations
        (-1, -1, False),  # the checkpoint's config passed the checks
    ],
)
def test_annotations_beside_shards(name, of_json, of_shards, is_refused):
    values, levels = {name: 'a.json', 'DATASET.SHARDS': 'p'}, {name: of_json, 'DATASET.SHARDS': of_shards}
    if is_refused:
        assert f'{name} is a.json, but DATASET.SHARDS p' in refused(values, levels)
    else:
        check(values, levels)
    check({name: 'a.json'})


def test_a_frozen_backbone_has_no_layer_decay():
    frozen = {'MODEL.FREEZE_BACKBONE': True, 'RESUME_MODEL': 'x.pth'}
    message = refused({**frozen, 'OPTIMIZER.LAYER_DECAY': 0.7})
    assert message.startswith('OPTIMIZER.LAYER_DECAY is 0.7, but MODEL.FREEZE_BACKBONE True')
    assert '--OPTIMIZER_LAYER_DECAY 1' in message
    check(frozen)
    check({'OPTIMIZER.LAYER_DECAY': 0.7})


FROZEN = {'TRAIN.FEATURES': 'cached', 'MODEL.FREEZE_BACKBONE': True, 'MODEL.TUNE': 'head', 'RESUME_MODEL': 'x.pth'}


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'MODEL.FREEZE_BACKBONE': False, 'MODEL.TUNE': 'full'}, '--MODEL_TUNE head, or --TRAIN_FEATURES images'),
        ({'MIX.TYPE': 'mixup'}, "--MIX_TYPE '', or --TRAIN_FEATURES images"),
        ({'LOSS.AUXILIARY': 'distillation', 'LOSS.TEACHER': 'x.pth'}, "--LOSS_AUXILIARY ''"),
        ({'MODEL.SHIFT_BATCHNORM': True}, '--MODEL_SHIFT_BATCHNORM False'),
        ({'INPUT.SIZE_SCHEDULE': (0, 64)}, "--INPUT_SIZE_SCHEDULE ''"),
        ({'TRAIN.FEATURE_VIEWS': 2, 'INPUT.TRAIN_TRANSFORM': 'center_crop'}, '--TRAIN_FEATURE_VIEWS 1'),
    ],
)
def test_cached_features_stand_for_images_that_do_not_change(values, words):
    check(FROZEN)
    check({**FROZEN, 'TRAIN.FEATURE_VIEWS': 2})
    check({**FROZEN, 'TRAIN.FEATURE_VIEWS': 2, 'INPUT.TRAIN_TRANSFORM': 'center_crop', 'INPUT.ERASE_PROBABILITY': 0.5})
    assert words in refused({**FROZEN, **values})


def test_metric_losses_train_an_embedding_on_cached_features():
    values = {**FROZEN, 'LOSS.AUXILIARY': 'triplet'}
    check({**values, 'MODEL.EMBEDDING': 8})
    assert 'leaves them as they are: --MODEL_EMBEDDING 256' in refused(values)
    mixed = {'LOSS.AUXILIARY': 'triplet', 'MIX.TYPE': 'mixup'}
    assert "compares images of one label, but MIX.TYPE mixup mixes labels: --MIX_TYPE ''" in refused(mixed)


def test_an_embedding_changes_the_features():
    embedded = {**FROZEN, 'MODEL.EMBEDDING': 8}
    assert '--MODEL_EMBEDDING 0, or --OPTIMIZER_TYPE sgd' in refused({**embedded, 'OPTIMIZER.TYPE': 'lbfgs'})
    text = {'MODEL.CLASSIFIER_INIT': 'text', 'MODEL.CLASSIFIER': 'FCNorm'}
    assert '--MODEL_EMBEDDING 0, or --MODEL_CLASSIFIER_INIT class_means' in refused({**embedded, **text})
    check({**embedded, 'MODEL.CLASSIFIER_INIT': 'class_means'})


def test_options_of_cached_features_need_them():
    assert 'TRAIN.FEATURE_VIEWS is 2, but TRAIN.FEATURES images does not use it' in refused({'TRAIN.FEATURE_VIEWS': 2})


@pytest.mark.parametrize('name', LARGEST)
def test_sizes_are_plausible_before_memory_is_allocated(name):
    value = (0, LARGEST[name] + 1) if isinstance(KEYS[name].default, tuple) else LARGEST[name] + 1
    assert f'but at most {LARGEST[name]} is possible' in refused({name: value})


@pytest.mark.parametrize(
    ('values', 'advice'),
    [
        ({'MIX.TYPE': 'mixup'}, "--MIX_TYPE ''"),
        ({'LOSS.SAMPLED_CLASSES': 0.5}, '--LOSS_SAMPLED_CLASSES 1.0'),
        ({'OPTIMIZER.TYPE': 'lbfgs'}, '--OPTIMIZER_TYPE sgd'),
    ],
)
def test_a_record_of_the_images_needs_their_margins(values, advice):
    defaults = {name: key.default for name, key in KEYS.items()}
    check_tracking(defaults | {'TRAIN.TRACK_SAMPLES': True})
    check_tracking(defaults | values)
    with pytest.raises(UserError) as caught:
        check_tracking(defaults | values | {'TRAIN.TRACK_SAMPLES': True})
    assert advice in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('values', 'advice'),
    [
        ({'INDEX.KIND': 'hnsw', 'INDEX.CODES': 'binary'}, '--INDEX_KIND ivfpq'),
        ({'SEARCH.INDEX': 'catalog', 'SEARCH.WHITEN': True}, '--SEARCH_WHITEN False'),
        ({'SEARCH.INDEX': 'catalog', 'SEARCH.METRIC': 'euclidean'}, "--SEARCH_INDEX ''"),
    ],
)
def test_a_catalog_is_searched_as_it_was_built(values, advice):
    defaults = {name: key.default for name, key in KEYS.items()}
    check_catalog(defaults | {'SEARCH.INDEX': 'catalog', 'INDEX.KIND': 'ivfpq', 'INDEX.CODES': 'binary'})
    with pytest.raises(UserError) as caught:
        check_catalog(defaults | values)
    assert advice in str(caught.value)


def test_classes_are_not_proposed_and_changed_in_one_command():
    defaults = {name: key.default for name, key in KEYS.items()}
    check_proposals(defaults | {'ENROLL.PROPOSE': 'photos'})
    check_proposals(defaults | {'ENROLL.IMAGES': 'photos', 'ENROLL.RETIRE': ('tea',)})
    for name, value in (('ENROLL.IMAGES', 'photos'), ('ENROLL.RETIRE', ('tea',))):
        with pytest.raises(UserError, match=name):
            check_proposals(defaults | {'ENROLL.PROPOSE': 'photos', name: value})
