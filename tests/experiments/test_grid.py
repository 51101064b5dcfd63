"""The runs of a grid, their order and commands, and the next step of an interrupted run."""

import itertools
import json
import os

import pytest

from lib.errors import UserError
from lib.experiments.command import find_base, find_methods, parse
from lib.experiments.grid import check_recipes, plan_runs, split_options
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from lib.trainer.checkpointing.state import TrainProgress


def names(runs):
    return [run.name for run in runs]


def finish(run, epoch=1, progress=None):
    """Write the files of a run that was trained to an epoch."""
    run.folder.mkdir(parents=True, exist_ok=True)
    lines = [{'epoch': number, 'split': 'valid', 'mean_class_error': 0.5} for number in range(1, epoch + 1)]
    (run.folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    checkpoint = read_checkpoint(run.grid.repository / 'done.pth')
    checkpoint.progress = progress or TrainProgress(epoch=epoch)
    write_checkpoint(run.folder / 'last.pth', checkpoint)


def options_of(command):
    return dict(itertools.pairwise(command))


def test_each_run_is_planned_once_and_after_the_runs_it_needs(make_grid):
    runs = plan_runs(make_grid('crt,focal,lws,weight_balancing,dive,tau_norm', seeds=2))
    first = [
        'ce',
        'crt',
        'focal',
        'lws',
        'weight_balancing_1',
        'weight_balancing',
        'balanced_softmax',
        'dive',
        'tau_norm',
    ]
    assert names(runs) == [f'tiny_{name}_{seed}' for seed in (0, 1) for name in first]
    assert [run.method.name for run in runs if not run.in_table] == ['ce', 'weight_balancing_1', 'balanced_softmax'] * 2
    for run in runs:
        assert [need.method.name for need in run.needs] == list(run.method.needs)
        assert all(need.seed == run.seed and names(runs).index(need.name) < names(runs).index(run.name)
                   for need in run.needs)  # fmt: skip


def test_a_requested_method_is_in_the_table_even_if_others_need_it(make_grid):
    assert all(run.in_table for run in plan_runs(make_grid('crt,ce')))
    assert [run.method.name for run in plan_runs(make_grid('crt,ce'))] == ['ce', 'crt']


def test_the_command(make_grid, tmp_path):
    grid = make_grid('focal', seeds=3)
    command = plan_runs(grid)[2].next_step().command
    assert command[1] == str(grid.repository / 'main.py')
    index = command.index('--config')
    assert command[index + 1 : index + 3] == [str(grid.base), str(tmp_path / 'overlays' / 'focal.yaml')]
    options = options_of(command)
    assert (options['--NAME'], options['--SEED']) == ('tiny_focal_2', '2')
    assert options['--LOG_ROOT'] == str(tmp_path / 'out' / 'runs')
    assert options['--RESUME_MODEL'] == 'last'
    assert options['--TRAIN_MAX_EPOCH'] == '1'
    assert '--RESUME_MODE' not in options


def test_stage_2_starts_from_stage_1_and_then_resumes(make_grid):
    ce, crt = plan_runs(make_grid('crt'))
    options = options_of(crt.next_step().command)
    assert (options['--RESUME_MODEL'], options['--RESUME_MODE']) == (str(ce.folder / 'last.pth'), 'finetune')
    finish(crt, epoch=0)
    options = options_of(crt.next_step().command)
    assert options['--RESUME_MODEL'] == 'last'
    assert '--RESUME_MODE' not in options


def test_the_teacher_has_the_same_seed(make_grid):
    runs = plan_runs(make_grid('dive', seeds=2))
    options = options_of(runs[-1].next_step().command)
    assert options['--LOSS_TEACHER'] == str(runs[-2].folder / 'last.pth')
    assert '_1' in runs[-2].name
    assert options['--RESUME_MODEL'] == 'last'


def test_rebalancing_uses_the_recipe_of_stage_1(make_grid, tmp_path):
    ce, tau = plan_runs(make_grid('tau_norm'))
    command = tau.next_step().command
    assert command[1].endswith('tau_norm.py')
    index = command.index('--config')
    configs = [str(tmp_path / 'overlays' / f'{name}.yaml') for name in ('ce', 'tau_norm')]
    assert command[index + 2 : index + 4] == configs
    options = options_of(command)
    assert options['--RESUME_MODEL'] == str(ce.folder / 'last.pth')
    assert options['--TAU_NORM_LOG_ROOT'] == str(tmp_path / 'out' / 'tau')
    assert tau.folder == tmp_path / 'out' / 'tau' / 'tiny_tau_norm_0'


def test_max_epoch_0_of_a_method_overrides_the_options(make_grid, tmp_path):
    (tmp_path / 'overlays' / 'ncm.yaml').write_text('TRAIN:\n  MAX_EPOCH: 0\n')
    run = plan_runs(make_grid('ncm'))[-1]
    assert run.cfg.TRAIN.MAX_EPOCH == 0
    assert run.next_step().command.count('--TRAIN_MAX_EPOCH') == 2
    assert options_of(run.next_step().command)['--TRAIN_MAX_EPOCH'] == '0'


@pytest.mark.parametrize(
    ('epoch', 'progress', 'done'),
    [
        (1, None, False),
        (2, None, True),
        (3, None, True),
        # Metrics are written before the checkpoint: a run killed in between is not done.
        (2, TrainProgress(epoch=1), False),
        (2, TrainProgress(epoch=1, step=3), False),
    ],
)
def test_a_run_is_done_with_the_checkpoint_of_the_last_epoch(make_grid, epoch, progress, done):
    (run,) = plan_runs(make_grid('ce', options=('--DATASET_ROOT', 'nowhere', '--TRAIN_MAX_EPOCH', '2')))
    finish(run, epoch, progress)
    assert run.is_trained() == done
    assert (run.next_step() is None) == done


def test_a_run_that_chooses_its_epochs_is_done_with_the_last_one(make_grid):
    (run,) = plan_runs(make_grid('ce', options=('--DATASET_ROOT', 'nowhere', '--TRAIN_MAX_EPOCH', 'auto')))
    assert not run.is_trained()
    finish(run, 2, TrainProgress(epoch=2))
    for epochs, done in ((2, True), (3, False)):
        (run.folder / 'config.yaml').write_text(f'TRAIN: {{MAX_EPOCH: {epochs}}}\n')
        assert run.is_trained() == done


def test_a_truncated_line_is_ignored(make_grid):
    (run,) = plan_runs(make_grid('ce'))
    finish(run)
    assert run.is_trained()
    (run.folder / 'metrics.jsonl').write_text('{"epoch": 1, "spl')
    assert not run.is_trained()


def test_the_test_split_is_predicted_once_per_model(make_grid, tmp_path):
    (run,) = plan_runs(make_grid('ce'))
    finish(run)
    assert run.next_step() is None
    (tmp_path / 'data' / 'test').mkdir()
    step = run.next_step()
    assert step.command[1].endswith('test.py')
    assert options_of(step.command)['--RESUME_MODEL'] == str(run.model)
    run.test_metrics.write_text('{}')
    assert run.next_step() is None
    # The model was trained further since.
    later = run.test_metrics.stat().st_mtime_ns + 10**9
    os.utime(run.model, ns=(later, later))
    assert run.next_step().verb == 'test'


def test_cifar_has_no_test_split_of_its_own(make_grid, tmp_path):
    (tmp_path / 'data' / 'test').mkdir()
    options = ('--DATASET_NAME', 'cifar10_lt', '--DATASET_ROOT', str(tmp_path / 'data'), '--TRAIN_MAX_EPOCH', '1')
    (run,) = plan_runs(make_grid('ce', options=options))
    finish(run)
    assert run.next_step() is None


def test_runs_of_another_recipe_are_an_error(make_grid, tmp_path):
    grid = make_grid('ce')
    check_recipes(grid, plan_runs(grid))
    more = make_grid('focal,ce', seeds=3, options=(*grid.options, '--RUN_NUM_WORKERS', '1'))
    check_recipes(more, plan_runs(more))
    longer = make_grid('ce', options=(*grid.options[:2], '--TRAIN_MAX_EPOCH', '2'))
    with pytest.raises(UserError, match=r'runs of ce with another TRAIN\.MAX_EPOCH \(1, now 2\); use another --out'):
        check_recipes(longer, plan_runs(longer))
    (tmp_path / 'overlays' / 'focal.yaml').write_text('LOSS:\n  TYPE: focal\n')
    with pytest.raises(UserError, match=r'runs of focal with another LOSS\.TYPE \(not set, now focal\)'):
        check_recipes(more, plan_runs(more))


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ('--NAME x', 'NAME, which the grid sets'),
        ('--RESUME_MODEL last', 'RESUME_MODEL, which'),
        ('--config a.yaml', '--config, which'),
        ('--TRAIN_MAX_EPOCHS 3', r'did you mean --TRAIN_MAX_EPOCH\?'),
        ('--LOSS_GAMMA 3', 'method ce over .*LOSS.GAMMA'),
    ],
)
def test_invalid_options(make_grid, options, words):
    with pytest.raises(UserError, match=words):
        plan_runs(make_grid('ce', options=split_options(options)))


def test_options_are_split_as_in_a_shell():
    with pytest.raises(UserError, match='--options'):
        split_options("--DATASET_ROOT 'a b")
    assert split_options("--DATASET_ROOT 'a b'") == ('--DATASET_ROOT', 'a b')


def test_a_missing_method_config_is_an_error(make_grid, tmp_path):
    (tmp_path / 'overlays' / 'ldam.yaml').unlink()
    with pytest.raises(UserError, match=r'method ldam .*ldam\.yaml: no such file'):
        plan_runs(make_grid('ce,ldam'))


def test_names_of_bases_and_methods(tmp_path):
    assert find_base('CIFAR100_lt').name == 'Cifar100_LT.yaml'
    assert find_base('demo').name == 'demo.yaml'
    (tmp_path / 'Own.yaml').touch()
    assert find_base(str(tmp_path / 'Own.yaml')) == tmp_path / 'Own.yaml'
    with pytest.raises(UserError, match=r'did you mean demo\?'):
        find_base('dmo')
    with pytest.raises(UserError, match='no such file'):
        find_base('none.yaml')
    assert [method.name for method in find_methods('ce, ldam_drw,ce,')] == ['ce', 'ldam_drw']
    with pytest.raises(UserError, match=r"'ldam_drv' is not a method \(did you mean ldam_drw\?\)"):
        find_methods('ce,ldam_drv')
    with pytest.raises(UserError, match='--methods is empty'):
        find_methods(' , ')


@pytest.mark.parametrize('argv', [[], ['--base', 'demo'], ['--base', 'demo', '--methods', 'ce', '--seeds', '0']])
def test_invalid_command_lines(argv):
    with pytest.raises(UserError, match=r'tools/grid\.py --help lists the options'):
        parse(argv)
