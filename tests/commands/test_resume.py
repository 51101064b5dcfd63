"""The table of resuming (DESIGN 4), row by row."""

import os
from dataclasses import replace

import pytest

from lib.commands.resume import ResumeRequest, is_set_aside, plan_resume
from lib.errors import UserError
from lib.runtime.folders import fresh_folder
from lib.trainer.checkpointing.latest import checkpoints_in, latest_checkpoint
from tests.trainer.small import DIGEST, RECIPE, save, save_original


@pytest.fixture
def folder(tmp_path):
    """log/run: 2 of 10 epochs are done, the first of them is the best."""
    folder = tmp_path / 'log' / 'run'
    save(folder / 'epoch_1.pth', epoch=1)
    save(folder / 'best_model.pth', epoch=1)
    save(folder / 'last.pth', epoch=2)
    return folder


@pytest.fixture
def options(folder):
    return ResumeRequest(folder, '', 'auto', False, dict(RECIPE), DIGEST, 10)


def plan(options, **changes):
    return plan_resume(replace(options, **changes))


def refused(options, **changes):
    before = sorted(options.folder.parent.rglob('*'))
    with pytest.raises(UserError) as error:
        plan(options, **changes)
    assert sorted(options.folder.parent.rglob('*')) == before
    assert '\n' not in str(error.value)
    return str(error.value)


# RESUME_MODEL is empty


def test_an_unused_folder_is_a_new_run(options, tmp_path):
    for path in (tmp_path / 'nothing', tmp_path):
        start = plan(options, folder=path)
        assert (start.kind, start.folder, start.checkpoint, start.set_aside) == ('new', path, None, False)
    assert not (tmp_path / 'nothing').exists()


def test_a_used_folder_is_refused_with_the_options(options, folder):
    message = refused(options)
    for part in (str(folder), '--RESUME_MODEL last', '--NAME', '--OVERWRITE True', 'renamed, not deleted'):
        assert part in message


def test_any_checkpoint_makes_a_folder_used(options, tmp_path):
    save(tmp_path / 'other' / 'epoch_10.pth')
    assert 'earlier run' in refused(options, folder=tmp_path / 'other')


def test_overwrite_starts_a_new_run_and_deletes_nothing(options, folder):
    start = plan(options, overwrite=True)
    assert (start.kind, start.folder, start.set_aside) == ('new', folder, True)
    assert (folder / 'last.pth').exists()
    for name in ('run_old', 'run_old_2'):
        with fresh_folder(folder, 'NAME', lambda: is_set_aside(start)):
            assert not checkpoints_in(folder)
            assert folder.with_name(name).exists()
            save(folder / 'last.pth')
    assert (folder.with_name('run_old') / 'last.pth').exists()


def test_another_run_in_the_folder_meanwhile_is_an_error(options, folder, tmp_path):
    new = plan(options, folder=tmp_path / 'nothing')
    assert not is_set_aside(new)
    save(tmp_path / 'nothing' / 'last.pth')
    with pytest.raises(UserError, match='another run has saved last'):
        is_set_aside(new)
    resumed = plan(options, resume_model='last')
    assert not is_set_aside(resumed)
    save(folder / 'last.pth', epoch=resumed.checkpoint.progress.epoch + 1)
    with pytest.raises(UserError, match='another run has saved last'):
        is_set_aside(resumed)


def test_overwrite_of_nothing_is_a_new_run(options, tmp_path):
    start = plan(options, folder=tmp_path / 'nothing', overwrite=True)
    assert (start.kind, start.set_aside) == ('new', False)


# RESUME_MODEL is last


def test_last_resumes(options, folder):
    start = plan(options, resume_model='last')
    assert (start.kind, start.folder, start.checkpoint.progress.epoch) == ('continue', folder, 2)
    assert f'resuming from {folder / "last.pth"}, 2 epochs' in start.reason


def test_last_in_an_empty_folder_starts(options, tmp_path):
    start = plan(options, resume_model='last', folder=tmp_path / 'nothing')
    assert (start.kind, start.checkpoint) == ('new', None)
    assert 'holds no checkpoint' in start.reason


def test_last_falls_back_when_last_is_truncated(options, folder):
    save(folder / 'epoch_2.pth', epoch=2)
    content = (folder / 'last.pth').read_bytes()
    (folder / 'last.pth').write_bytes(content[: len(content) // 2])
    os.utime(folder / 'best_model.pth', (1, 1))
    start = plan(options, resume_model='last')
    assert start.checkpoint.path == folder / 'epoch_2.pth'
    assert str(folder / 'last.pth') in start.reason
    assert 'unreadable' in start.reason


def test_last_falls_back_to_the_latest_position(options, folder):
    """The modification times of a copied folder (cp without -p) mean nothing."""
    save(folder / 'epoch_2.pth', epoch=2)
    (folder / 'last.pth').write_bytes(b'')
    os.utime(folder / 'epoch_2.pth', (1, 1))
    checkpoint, errors = latest_checkpoint(folder)
    assert checkpoint.progress.epoch == 2
    assert len(errors) == 1


def test_last_when_nothing_can_be_read(options, folder):
    for path in folder.glob('*.pth'):
        path.write_bytes(b'PK\x03\x04')
    assert 'no checkpoint can be read' in refused(options, resume_model='last')


def test_last_of_another_training_set(options, folder):
    message = refused(options, resume_model='last', train_digest='other images')
    assert 'another training set' in message
    assert f'--RESUME_MODEL {folder / "last.pth"}' in message


def test_last_with_another_recipe_names_the_change(options):
    start = plan(options, resume_model='last', recipe=RECIPE | {'OPTIMIZER.LR': 0.5})
    assert start.kind == 'continue'
    assert 'OPTIMIZER.LR 0.1 -> 0.5' in start.reason


def test_last_of_a_finished_run_resumes_for_no_epoch(options):
    assert plan(options, resume_model='last', max_epoch=2).kind == 'continue'


def test_last_of_an_original_checkpoint(options, tmp_path):
    (tmp_path / 'old').mkdir()
    save_original(tmp_path / 'old' / 'last.pth')
    assert 'fine-tune' in refused(options, resume_model='last', folder=tmp_path / 'old')


def test_last_and_overwrite_contradict(options):
    assert 'one of them' in refused(options, resume_model='last', overwrite=True)


# RESUME_MODEL is a path, same training set and recipe, epochs left


def test_path_resumes(options, folder):
    start = plan(options, resume_model=str(folder / 'last.pth'))
    assert (start.kind, start.folder, start.checkpoint.progress.epoch) == ('continue', folder, 2)
    assert 'same training set and recipe' in start.reason


def test_max_epoch_may_grow(options, folder):
    path = str(folder / 'last.pth')
    assert plan(options, resume_model=path, max_epoch=2).kind == 'finetune'
    assert plan(options, resume_model=path, max_epoch=3).kind == 'continue'
    assert plan(options, resume_model=path, max_epoch=1000).kind == 'continue'
    assert '0 epochs' in plan(options, resume_model=path, max_epoch=0).reason


def test_a_newer_last_is_named(options, folder):
    message = refused(options, resume_model=str(folder / 'epoch_1.pth'))
    for part in (str(folder / 'last.pth'), 'is newer (2 epochs)', '--RESUME_MODEL last', '--RESUME_MODE finetune'):
        assert part in message
    save(folder / 'last.pth', epoch=1, step=3)
    assert '1 epoch and 3 steps' in refused(options, resume_model=str(folder / 'epoch_1.pth'))


@pytest.mark.parametrize('epochs', [1, 2, 10])
@pytest.mark.parametrize('mode', ['auto', 'continue'])
def test_the_best_model_cannot_be_resumed(options, folder, mode, epochs):
    """It holds no optimizer state. That is the reason in mode continue, also if all epochs are done."""
    save(folder / 'last.pth', epoch=epochs)
    path = folder / 'best_model.pth'
    message = refused(options, resume_model=str(path), resume_mode=mode)
    for part in (f'{path} holds no optimizer state', '--RESUME_MODEL last', 'epoch_N.pth', '--RESUME_MODE finetune'):
        assert part in message
    changes = {'resume_model': str(save(folder / 'best_model.pth', epoch=10)), 'resume_mode': mode}
    if mode == 'continue':
        assert 'no optimizer state' in refused(options, **changes)
    else:
        assert 'all 10 epochs are done' in plan(options, **changes).reason


def test_the_best_model_fine_tunes(options, folder, tmp_path):
    path = str(folder / 'best_model.pth')
    start = plan(options, resume_model=path, resume_mode='finetune')
    assert (start.kind, start.folder) == ('finetune', folder.with_name('run_finetune'))
    start = plan(options, resume_model=path, folder=tmp_path / 'log' / 'again')
    assert (start.kind, start.folder.name) == ('finetune', 'again')
    assert 'no optimizer state' in start.reason


def test_last_is_never_the_best_model(options, folder):
    """It is neither resumed in place of an older checkpoint nor, without one, replaced by a new run."""
    save(folder / 'best_model.pth', epoch=2)
    (folder / 'last.pth').unlink()
    assert plan(options, resume_model='last').checkpoint.path == folder / 'epoch_1.pth'
    (folder / 'epoch_1.pth').unlink()
    message = refused(options, resume_model='last')
    for part in ('holds no checkpoint to resume', 'no optimizer state', f'--RESUME_MODEL {folder / "best_model.pth"}'):
        assert part in message


def test_the_older_one_under_another_name(options, folder, tmp_path):
    start = plan(options, resume_model=str(folder / 'epoch_1.pth'), folder=tmp_path / 'log' / 'again')
    assert (start.kind, start.folder.name, start.checkpoint.progress.epoch) == ('continue', 'again', 1)


def test_the_folder_of_another_run_is_refused(options, folder, tmp_path):
    path = save(tmp_path / 'elsewhere' / 'last.pth')
    assert 'checkpoints of another run' in refused(options, resume_model=str(path))


def test_the_same_folder_by_another_path(options, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert plan(options, resume_model='last.pth').folder == folder


# RESUME_MODEL is a path, else


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'train_digest': 'other images'}, 'another training set'),
        ({'recipe': RECIPE | {'OPTIMIZER.LR': 0.01}}, 'another recipe: OPTIMIZER.LR 0.1 -> 0.01'),
        ({'recipe': RECIPE | {'SEED': 1}}, 'another recipe: SEED 0 -> 1'),
        ({'max_epoch': 2}, 'all 2 epochs are done'),
        ({'resume_mode': 'finetune'}, 'RESUME_MODE finetune'),
    ],
)
def test_path_fine_tunes_into_a_folder_of_its_own(options, folder, changes, reason):
    path = str(folder / 'last.pth')
    start = plan(options, resume_model=path, **changes)
    assert (start.kind, start.folder, start.set_aside) == ('finetune', folder.with_name('run_finetune'), False)
    assert reason in start.reason
    for name in ('run_finetune', 'run_finetune_2'):
        folder.with_name(name).mkdir()
    assert plan(options, resume_model=path, **changes).folder == folder.with_name('run_finetune_3')


def test_the_older_one_fine_tunes_though_last_is_newer(options, folder):
    start = plan(options, resume_model=str(folder / 'best_model.pth'), train_digest='other images')
    assert (start.kind, start.checkpoint.progress.epoch) == ('finetune', 1)


def test_fine_tuning_under_another_name_needs_no_suffix(options, folder, tmp_path):
    start = plan(
        options, resume_model=str(folder / 'last.pth'), train_digest='other', folder=tmp_path / 'log' / 'other'
    )
    assert (start.kind, start.folder.name) == ('finetune', 'other')


def test_an_original_checkpoint_fine_tunes(options, folder, tmp_path):
    start = plan(options, resume_model=str(save_original(tmp_path / 'original.pth')))
    assert (start.kind, start.folder.name) == ('finetune', 'run_finetune')
    assert 'weights only' in start.reason


@pytest.mark.parametrize('changes', [{'train_digest': 'other'}, {'max_epoch': 2}, {'recipe': RECIPE | {'SEED': 1}}])
def test_continue_is_refused_where_it_is_not_the_same_run(options, folder, changes):
    message = refused(options, resume_model=str(folder / 'last.pth'), resume_mode='continue', **changes)
    assert 'RESUME_MODE continue is not possible' in message


def test_the_same_warm_up_in_epochs_and_as_a_fraction_is_no_change(options, folder):
    """Recipes of older versions have it in epochs; with more epochs, a fraction is longer."""
    save(folder / 'last.pth', **{'SCHEDULE.WARMUP_EPOCHS': 1.0})
    path = str(folder / 'last.pth')
    now = RECIPE | {'SCHEDULE.WARMUP_EPOCHS': -1.0, 'SCHEDULE.WARMUP_FRACTION': 0.1}
    assert plan(options, resume_model=path, recipe=now).kind == 'continue'
    assert 'WARMUP_EPOCHS 1.0 -> 2.0' in plan(options, resume_model=path, recipe=now, max_epoch=20).reason
    save(folder / 'last.pth', **now)
    assert plan(options, resume_model=path, recipe=now, max_epoch=20).kind == 'continue'
    shorter = now | {'SCHEDULE.WARMUP_FRACTION': 0.05}
    assert (
        'another recipe: SCHEDULE.WARMUP_EPOCHS 1.0 -> 0.5' in plan(options, resume_model=path, recipe=shorter).reason
    )


def test_a_key_of_another_version_changes_nothing(options, folder):
    start = plan(options, resume_model=str(folder / 'last.pth'), recipe=RECIPE | {'LOSS.NEW': 3})
    assert start.kind == 'continue'


@pytest.mark.parametrize('changes', [{}, {'train_digest': 'other images'}])
def test_overwrite_never_renames_the_folder_of_its_checkpoint(options, folder, changes):
    message = refused(options, resume_model=str(folder / 'last.pth'), overwrite=True, **changes)
    assert 'OVERWRITE True' in message


def test_overwrite_with_a_checkpoint_from_elsewhere(options, folder, tmp_path):
    path = save(tmp_path / 'elsewhere' / 'last.pth')
    start = plan(options, resume_model=str(path), overwrite=True)
    assert (start.kind, start.folder, start.set_aside) == ('continue', folder, True)


def test_no_such_file_lists_the_existing_ones(options, folder):
    message = refused(options, resume_model=str(folder / 'lst.pth'))
    assert 'no such file' in message
    assert str(folder / 'best_model.pth') in message
