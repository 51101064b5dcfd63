"""Long-tailed CIFAR through all three scripts, by its config: the archive as downloaded, small."""

import json

import pytest
import yaml

from lib.formats.cifar import class_sizes
from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import ON_CPU, REPOSITORY, metrics_of
from tests.small_cifar import write_small_cifar

CONFIG = REPOSITORY / 'configs' / 'Cifar100_LT.yaml'
SHORT = ('--TRAIN_MAX_EPOCH', 2, '--TRAIN_BATCH_SIZE', 16)


def test_train_predict_rebalance(scripts, tmp_path):
    write_small_cifar(tmp_path)

    def run(script, *options):
        wrapped = (tmp_path, REPOSITORY / script, *options, *ON_CPU)
        return scripts.run(tmp_path, 'tests/scripts/with_small_cifar.py', *wrapped)

    data = ('--DATASET_NAME', 'cifar10_lt', '--DATASET_ROOT', '.', '--DATASET_IMBALANCE_RATIO', 10)
    run('main.py', '--config', CONFIG, '--NAME', 'small', *data, *SHORT)
    folder = tmp_path / 'log' / 'small'
    best = read_checkpoint(folder / 'best_model.pth')
    assert best.training_set.class_counts.tolist() == class_sizes(20, 10, 'exp', 10).tolist()
    assert best.training_set.class_names[3] == 'class 3'
    assert metrics_of(folder)[-1]['split'] == 'valid'

    model = ('--RESUME_MODEL', folder / 'best_model.pth')
    run('test.py', *model)
    assert json.loads((folder / 'predictions_test.metrics.json').read_text())['num_images'] == 40
    assert len((folder / 'predictions_test.csv').read_text().splitlines()) == 41
    run('tau_norm.py', *model)
    assert (tmp_path / 'log_tau' / 'small' / 'tau.json').exists()


@pytest.mark.parametrize('name', ['Cifar10_LT', 'Cifar100_LT'])
def test_the_recipe_is_the_published_one(name):
    """Zhang et al., Bag of Tricks for Long-Tailed Visual Recognition, AAAI 2021: what its tables were measured with."""
    tree = yaml.safe_load((REPOSITORY / 'configs' / f'{name}.yaml').read_text(encoding='utf-8'))
    assert tree['DATASET']['NAME'] == name.lower()
    assert (tree['DATASET']['IMBALANCE_IMAGES'], tree['DATASET']['IMBALANCE_RATIO']) == ('published', 100)
    assert tree['MODEL']['BACKBONE'] == 'res32_cifar'
    assert (tree['TRAIN']['MAX_EPOCH'], tree['TRAIN']['BATCH_SIZE']) == (200, 128)
    optimizer = tree['OPTIMIZER']
    assert (optimizer['LR'], optimizer['NESTEROV'], float(optimizer['WEIGHT_DECAY'])) == (0.1, True, 2e-4)
    schedule = tree['SCHEDULE']
    assert (schedule['WARMUP_FRACTION'], schedule['MILESTONE_EPOCHS']) == (0.025, [160, 180])
    assert schedule['DECAY_FACTORS'] == [0.01]


def test_the_two_sizes_share_one_recipe():
    trees = [
        yaml.safe_load((REPOSITORY / 'configs' / f'Cifar{size}_LT.yaml').read_text(encoding='utf-8'))
        for size in (10, 100)
    ]
    for tree in trees:
        del tree['NAME'], tree['DATASET']['NAME']
    assert trees[0] == trees[1]
