"""tools/plan.py as a user runs it."""

import pytest

from tests.scripts.running import TINY, contents, error_line

RUN = ('--config', TINY, '--NAME', 'p', '--RUN_DEVICE', 'cpu', '--RUN_PRECISION', 'float32')


def total_of(lines: list[str], strategy: str) -> float:
    """Return the total GB per device of a strategy."""
    line = next(line for line in lines if line.startswith(f'{strategy} '))
    return float(line.split()[-2])


def test_plans_for_the_annotations_and_writes_nothing(scripts, products, tmp_path):
    before = contents(products)
    done = scripts.run(tmp_path, 'tools/plan.py', *RUN, '--DATASET_ROOT', products)
    assert '6 classes x' in done.stdout
    assert 'fastest strategy that fits: plain' in done.stdout
    assert contents(products) == before
    assert not list(tmp_path.iterdir())


def test_model_that_does_not_fit_on_one_device_fits_sharded(scripts, tmp_path):
    """2 million classes x 64 float32 features take 0.5 GB, and twice as much again in training."""
    million = ('--PLAN_NUM_CLASSES', 2_000_000, '--PLAN_DEVICE_GB', 1, '--MODEL_BACKBONE', 'res32_cifar')
    single = scripts.run(tmp_path, 'tools/plan.py', *RUN, *million).stdout
    assert 'nothing fits: use several devices (--PLAN_DEVICES)' in single
    sharded = scripts.run(tmp_path, 'tools/plan.py', *RUN, *million, '--PLAN_DEVICES', 4).stdout
    assert 'fastest strategy that fits: sharded\n    --MODEL_CLASSIFIER_SHARDED True' in sharded
    lines = sharded.splitlines()
    assert total_of(lines, 'plain') > 3 * 0.512 > 1 > total_of(lines, 'sharded')
    assert max(map(len, lines)) <= 80


def test_configured_strategy_has_a_row(scripts, tmp_path):
    options = ('--PLAN_NUM_CLASSES', 10, '--LOSS_CHUNK_IMAGES', 4, '--PLAN_TFLOPS', 100, '--PLAN_IMAGES', 1000)
    lines = scripts.run(tmp_path, 'tools/plan.py', *RUN, *options).stdout.splitlines()
    assert next(line for line in lines if line.startswith('as configured')).split()[3] == '4'
    assert 'assumed: 30% of 100 TFLOP/s' in lines


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        (('--PLAN_NUM_CLASSES', -1), 'PLAN_NUM_CLASSES is'),
        (('--PLAN_NUM_CLASSES', 9, '--PLAN_DEVICES', 2, '--PLAN_TFLOPS', 9), '--PLAN_LINK_GB_S'),
        (('--PLAN_NUM_CLASSES', 9, '--MODEL_BACKBONE', 'resnet5'), 'did you mean'),
    ],
)
def test_mistakes(scripts, tmp_path, options, text):
    assert text in error_line(scripts.run(tmp_path, 'tools/plan.py', *RUN, *options, code=None))
