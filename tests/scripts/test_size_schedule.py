"""main.py with image sizes that grow over the run."""

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import TINY, error_line, metrics_of


def trained(scripts, products, folder, *options):
    scripts.run(folder, 'main.py', '--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', *options)
    return folder / 'log' / 'run'


def losses(run, epoch):
    lines = [line for line in metrics_of(run) if line['epoch'] == epoch]
    return [{key: value for key, value in line.items() if 'second' not in key} for line in lines]


def test_a_schedule(scripts, products, finished, tmp_path):
    """The same weights until the size changes; other weights of the same shapes from then on."""
    whole = finished / 'log' / 'tiny'
    same = trained(scripts, products, tmp_path, '--INPUT_SIZE_SCHEDULE', '0,32', '--NAME', 'same')
    assert [losses(same.with_name('same'), epoch) for epoch in (1, 2)] == [losses(whole, epoch) for epoch in (1, 2)]
    grown = trained(scripts, products, tmp_path, '--INPUT_SIZE_SCHEDULE', '1,48')
    assert losses(grown, 1) == losses(whole, 1)
    assert losses(grown, 2) != losses(whole, 2)
    shapes = [
        {key: value.shape for key, value in read_checkpoint(run / 'last.pth').state_dict.items()}
        for run in (whole, grown)
    ]
    assert shapes[0] == shapes[1]


def test_a_mistake(scripts, products, tmp_path):
    command = ('--config', TINY, '--DATASET_ROOT', products, '--INPUT_SIZE_SCHEDULE', '0,32,2')
    error = error_line(scripts.run(tmp_path, 'main.py', *command, code=2))
    assert 'INPUT.SIZE_SCHEDULE is (0, 32, 2), but must be pairs of epoch and pixels' in error
