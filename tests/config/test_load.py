"""Where values come from: defaults < the checkpoint's config < files given explicitly < options."""

import os
import re
from pathlib import Path

import pytest

from lib.config.defaults import KEYS
from lib.config.load import load_config, merge_checkpoint_config
from lib.config.yaml_text import as_text, as_values
from lib.errors import UserError
from tools.convert import parse as parse_conversion

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


class Checkpoints:
    """A fake reader of checkpoints that records its calls."""

    def __init__(self, text=None):
        self.text, self.calls = text, []

    def __call__(self, resume_model, folder):
        self.calls.append((resume_model, folder))
        return self.text


def load(*argv, checkpoint=None):
    find = checkpoint if isinstance(checkpoint, Checkpoints) else Checkpoints(checkpoint)
    return load_config([str(word) for word in argv], program='main.py', description='', find_checkpoint_config=find)


def cfg_of(*argv, checkpoint=None):
    return load(*argv, checkpoint=checkpoint).cfg


def saved(*argv):
    """Return the config text in the checkpoints of a run started with `argv`."""
    return as_text(cfg_of(*argv))


@pytest.fixture
def files(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_the_default_is_aliproducts():
    loaded = load()
    assert loaded.cfg.NAME == 'AiProducts'
    assert loaded.cfg.DATASET.HEAD_CAP == 250
    assert loaded.cfg.SAMPLER.SWITCH_EPOCH == 40
    assert loaded.notes == ['configs/AiProducts.yaml is used (no --config), for AliProducts']


def test_each_layer_wins_over_the_one_before(files):
    a = files('a.yaml', 'SEED: 1\nTRAIN: {BATCH_SIZE: 11, MAX_EPOCH: 61}\nOPTIMIZER: {LR: 0.1}')
    b = files('b.yaml', 'TRAIN: {BATCH_SIZE: 12}\nOPTIMIZER: {LR: 0.2}')
    text = 'NAME: old\nSEED: 9\nINPUT: {SIZE: 99}\nTRAIN: {BATCH_SIZE: 9, MAX_EPOCH: 99}\nOPTIMIZER: {LR: 0.9}'
    argv = ('--config', a, b, '--OPTIMIZER_LR', '0.3', '--RESUME_MODEL', 'x.pth')
    cfg = cfg_of(*argv, checkpoint=text)
    assert cfg.OPTIMIZER.LR == 0.3  # option
    assert cfg.TRAIN.BATCH_SIZE == 12  # the file further right
    assert (cfg.SEED, cfg.TRAIN.MAX_EPOCH) == (1, 61)  # the file further left
    assert (cfg.INPUT.SIZE, cfg.NAME) == (99, 'old')  # the checkpoint
    default = KEYS['TRAIN.LOG_EVERY_STEPS'].default
    assert default == cfg.TRAIN.LOG_EVERY_STEPS


def test_an_option_may_set_a_key_back_to_its_default(files):
    file = files('a.yaml', 'NAME: x\nTRAIN: {BATCH_SIZE: 11}')
    assert cfg_of('--config', file, '--TRAIN_BATCH_SIZE', '512').TRAIN.BATCH_SIZE == 512


def test_an_explicit_file_replaces_the_default_one(files):
    cfg = cfg_of('--config', files('a.yaml', 'NAME: x'))
    assert cfg.DATASET.ROOT == ''
    assert cfg.DATASET.HEAD_CAP == 0


def test_the_default_file_does_not_count_beside_a_checkpoints_config():
    cfg = cfg_of('--RESUME_MODEL', 'x.pth', checkpoint='NAME: mine')
    assert (cfg.NAME, cfg.DATASET.HEAD_CAP, cfg.SAMPLER.SWITCH_TYPE) == ('mine', 0, '')


def test_the_default_file_counts_where_there_is_no_checkpoint_yet():
    cfg = cfg_of('--RESUME_MODEL', 'last', checkpoint=Checkpoints(None))
    assert (cfg.NAME, cfg.DATASET.HEAD_CAP) == ('AiProducts', 250)


def test_keys_of_this_call_or_machine_never_come_from_the_checkpoint():
    text = saved(
        '--NAME', 'mine', '--LOG_ROOT', '/elsewhere', '--RUN_DEVICE', 'cuda', '--RUN_NUM_WORKERS', '7',
        '--RUN_PRECISION', 'bfloat16', '--OVERWRITE', 'True', '--RESUME_MODE', 'finetune', '--SEED', '5',
    )  # fmt: skip
    cfg = cfg_of('--RESUME_MODEL', 'x.pth', checkpoint=text)
    assert (cfg.NAME, cfg.SEED) == ('mine', 5)
    for name in ('LOG_ROOT', 'OVERWRITE', 'RESUME_MODE', *(key for key in KEYS if key.startswith('RUN.'))):
        assert as_values(cfg)[name] == KEYS[name].default, name
    assert cfg.RESUME_MODEL == 'x.pth'


def test_name_and_machine_can_be_given_beside_a_checkpoint():
    argv = ('--RESUME_MODEL', 'x.pth', '--NAME', 'other', '--LOG_ROOT', 'there', '--RUN_DEVICE', 'cpu')
    cfg = cfg_of(*argv, checkpoint=saved('--NAME', 'mine'))
    assert (cfg.NAME, cfg.LOG_ROOT, cfg.RUN.DEVICE) == ('other', 'there', 'cpu')


def test_last_is_searched_in_the_run_folder(files):
    file = files('a.yaml', 'NAME: run\nLOG_ROOT: logs')
    photos = file.parent
    for argv, folder in (
        (('--config', file), 'logs/run'),
        (('--config', file, '--NAME', 'z'), 'logs/z'),
        ((), 'log/AiProducts'),
        (('--DATASET_ROOT', photos), f'log/{photos.name}'),
    ):
        find = Checkpoints('NAME: run')
        load(*argv, '--RESUME_MODEL', 'last', checkpoint=find)
        assert find.calls == [('last', Path(folder))]


def test_no_checkpoint_is_read_without_resume_model():
    find = Checkpoints('NAME: x')
    load(checkpoint=find)
    assert find.calls == []


def test_a_checkpoint_of_the_original_gets_its_recipe():
    loaded = load('--RESUME_MODEL', 'old.pth', checkpoint='')
    assert loaded.cfg.DATASET.COLOR_SPACE == 'BGR'
    assert loaded.cfg.MODEL.COSINE_SCALE == 1.0
    assert (loaded.cfg.NAME, loaded.cfg.MODEL.CLASSIFIER) == ('AiProducts', 'FC')
    assert 'AiProducts_original.yaml' in loaded.notes[0]
    cosine = load('--RESUME_MODEL', 'old.pth', '--MODEL_CLASSIFIER', 'FCNorm', checkpoint='').cfg
    assert (cosine.MODEL.CLASSIFIER, cosine.MODEL.COSINE_SCALE) == ('FCNorm', 1.0)


def test_explicit_files_overlay_the_original_recipe(files):
    cfg = cfg_of('--RESUME_MODEL', 'old.pth', '--config', files('a.yaml', 'NAME: z'), checkpoint='')
    assert (cfg.NAME, cfg.DATASET.COLOR_SPACE) == ('z', 'BGR')


def test_keys_of_another_version_are_ignored_and_named():
    text = 'NAME: x\nFUTURE: {KEY: 1}\nTRAIN: {NEW_KEY: 2, BATCH_SIZE: 7}'
    loaded = load('--RESUME_MODEL', 'x.pth', checkpoint=text)
    assert loaded.cfg.TRAIN.BATCH_SIZE == 7
    assert loaded.notes == ['x.pth: keys of another version are ignored: FUTURE, TRAIN.NEW_KEY']


def test_a_checkpoints_config_is_checked_like_a_file():
    with pytest.raises(UserError, match=r"the config in x.pth: TRAIN.BATCH_SIZE is '0', but must be"):
        load('--RESUME_MODEL', 'x.pth', checkpoint='TRAIN: {BATCH_SIZE: 0}')


def test_the_config_of_a_run_can_always_be_resumed():
    """A higher layer may switch off keys of a lower one; in the saved text, both are in one layer."""
    argv = (
        '--config', CONFIGS / 'GroceryStore.yaml', '--OPTIMIZER_TYPE', 'adamw', '--LOSS_TYPE', 'focal',
        '--SCHEDULE_TYPE', 'cosine',
    )  # fmt: skip
    before = cfg_of(*argv)
    assert before.OPTIMIZER.NESTEROV  # set by the recipe, unused by adamw
    assert before.LOSS.LABEL_SMOOTHING == 0.1
    again = cfg_of('--RESUME_MODEL', 'x.pth', checkpoint=as_text(before))
    assert as_values(again) == {**as_values(before), 'RESUME_MODEL': 'x.pth'}
    # And it can be fine-tuned with another method.
    assert cfg_of('--RESUME_MODEL', 'x.pth', '--LOSS_TYPE', 'balanced_softmax', checkpoint=as_text(before))
    with pytest.raises(UserError, match=r'OPTIMIZER.MOMENTUM is 0.5, but OPTIMIZER.TYPE adamw does not use it'):
        cfg_of('--RESUME_MODEL', 'x.pth', '--OPTIMIZER_MOMENTUM', '0.5', checkpoint=as_text(before))


def test_the_config_of_a_second_model_is_that_of_its_checkpoint(files):
    text = saved('--NAME', 'mine', '--SEED', '5', '--RUN_DEVICE', 'cuda', '--LOG_ROOT', '/elsewhere')
    cfg = merge_checkpoint_config(text, 'x.pth', {'TEST.BATCH_SIZE': 7, 'TEST.SCALES': (1.0, 1.5), 'LOG_ROOT': 'here'})
    expected = load(
        '--RESUME_MODEL', 'x.pth', '--TEST_BATCH_SIZE', 7, '--TEST_SCALES', '1,1.5', '--LOG_ROOT', 'here',
        checkpoint=text,
    )  # fmt: skip
    assert as_values(cfg) == as_values(expected.cfg)
    assert (cfg.NAME, cfg.SEED, cfg.RUN.DEVICE, cfg.LOG_ROOT) == ('mine', 5, 'auto', 'here')
    file = files('a.yaml', 'SEED: 6\nTEST: {BATCH_SIZE: 8}')
    cfg = merge_checkpoint_config(text, 'x.pth', {'TEST.BATCH_SIZE': 7}, files=[str(file)])
    assert (cfg.SEED, cfg.TEST.BATCH_SIZE) == (6, 7)
    assert merge_checkpoint_config('', 'old.pth', {}).DATASET.COLOR_SPACE == 'BGR'
    with pytest.raises(UserError, match=r'the config in x.pth: SEED is empty'):
        merge_checkpoint_config('SEED:', 'x.pth', {})
    with pytest.raises(UserError, match=r'LOSS.GAMMA is 1.0, but LOSS.TYPE'):
        merge_checkpoint_config(text, 'x.pth', {'LOSS.GAMMA': 1.0})


def test_a_folder_alone_selects_own_photos(tmp_path):
    loaded = load('--DATASET_ROOT', tmp_path)
    assert (loaded.cfg.MODEL.BACKBONE, loaded.cfg.TRAIN.BATCH_SIZE) == ('tf_efficientnet_lite0', 32)
    name = tmp_path.name
    assert name == loaded.cfg.NAME
    assert 'configs/own_photos.yaml' in loaded.notes[0]
    assert name == cfg_of('--DATASET_ROOT', f'{tmp_path}/').NAME


@pytest.mark.parametrize(
    'argv',
    [
        ('--DATASET_TRAIN_JSON', 'x.json'),
        ('--DATASET_NAME', 'cifar10_lt'),
        ('--RESUME_MODEL', 'x.pth'),
    ],
)
def test_more_than_a_folder_selects_the_default(tmp_path, argv):
    loaded = load('--DATASET_ROOT', tmp_path, *argv)
    assert loaded.cfg.MODEL.BACKBONE == 'resnest50'
    assert 'configs/AiProducts.yaml is used' in loaded.notes[0]


def test_a_converted_folder_selects_own_photos_unless_it_is_large(tmp_path):
    annotations = tmp_path / 'converted_train.json'
    annotations.write_text('{}')
    assert cfg_of('--DATASET_ROOT', tmp_path).MODEL.BACKBONE == 'tf_efficientnet_lite0'
    os.truncate(annotations, 149_000_000)  # that of AliProducts
    assert cfg_of('--DATASET_ROOT', tmp_path).MODEL.BACKBONE == 'resnest50'


def test_a_run_on_own_photos_is_resumed(tmp_path):
    argv = ('--DATASET_ROOT', tmp_path, '--RESUME_MODEL', 'last')
    first = load(*argv, checkpoint=None)  # no checkpoint yet: a new run
    assert (first.cfg.NAME, first.cfg.MODEL.BACKBONE, len(first.notes)) == (
        tmp_path.name, 'tf_efficientnet_lite0', 1,
    )  # fmt: skip
    again = load(*argv, checkpoint=as_text(first.cfg))
    assert as_values(again.cfg) == as_values(first.cfg)
    assert again.notes == []


def defaults_in_help(capsys, *argv, checkpoint=None, program='main.py', needs_model=False):
    """Return option -> its default as --help shows it."""
    with pytest.raises(SystemExit) as caught:
        load_config(
            [str(word) for word in argv],
            program=program,
            description='',
            find_checkpoint_config=Checkpoints(checkpoint),
            needs_model=needs_model,
        )
    assert not caught.value.code
    blocks = re.split(r'\n  (?=--)', capsys.readouterr().out)[1:]
    return {
        block.split()[0]: ' '.join(block.rpartition('Default: ')[2].partition('\n\n')[0].split()) for block in blocks
    }


def test_help_shows_the_defaults_of_the_recipe(capsys, tmp_path, files, monkeypatch):
    photos = tmp_path / 'photos'
    photos.mkdir()
    found = defaults_in_help(capsys, '--DATASET_ROOT', photos, '--help')
    cfg = cfg_of('--DATASET_ROOT', photos)
    assert found['--config'] == 'configs/own_photos.yaml'
    assert found['--NAME'] == "photos (the folder name of DATASET.ROOT; else '')"
    assert found['--TRAIN_BATCH_SIZE'] == f'{cfg.TRAIN.BATCH_SIZE} (configs/own_photos.yaml; else 512)'
    assert found['--MODEL_BACKBONE'] == f'{cfg.MODEL.BACKBONE} (configs/own_photos.yaml; else resnest50)'
    assert found['--TRAIN_LOG_EVERY_STEPS'] == '50'  # the recipe does not set it
    # A mistake beside it, another order, a section, an option of the command line.
    assert defaults_in_help(capsys, '--help', 'all', '--TRAIN_BATCHSIZE', 3, '--DATASET_ROOT', photos)[
        '--SCHEDULE_WARMUP_FRACTION'
    ].startswith('0.1 (configs/own_photos.yaml')
    assert defaults_in_help(capsys, '--DATASET_ROOT', photos, '--SEED', 'x', '--TRAIN_BATCH_SIZE', 7, '-h') == found
    monkeypatch.chdir(files('a.yaml', 'TRAIN: {BATCH_SIZE: 9}\nNAME: mine').parent)
    found = defaults_in_help(capsys, '--config', CONFIGS / 'demo.yaml', 'a.yaml', '--help')
    assert found['--TRAIN_BATCH_SIZE'] == '9 (a.yaml; else 512)'
    assert (found['--TRAIN_MAX_EPOCH'].split()[0], found['--NAME'].split()[0]) == ('7', 'mine')
    assert defaults_in_help(capsys, '--help')['--OPTIMIZER_LR'] == '0.5 (configs/AiProducts.yaml; else 0.1)'
    assert defaults_in_help(capsys, '--config', 'no.yaml', '--help')['--config'].startswith(
        'none, since --config no.yaml'
    )


def test_help_shows_the_config_of_the_checkpoint(capsys):
    found = defaults_in_help(
        capsys, '--RESUME_MODEL', 'x.pth', '--help', 'TEST', checkpoint='NAME: run\nTEST: {TOP_K: 5}', needs_model=True
    )
    assert (found['--TEST_TOP_K'], found['--TEST_FLIP']) == ('5 (the config in x.pth; else 0)', 'False')
    found = defaults_in_help(capsys, '--help', 'all', needs_model=True)  # a recipe for training is not used
    assert (found['--config'], found['--OPTIMIZER_LR']) == ('the config in the checkpoint', '0.1')


def test_the_default_config_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cfg_of().NAME == 'AiProducts'


def test_the_whole_config_is_frozen():
    cfg = cfg_of()
    for node, name in ((cfg, 'SEED'), (cfg.TRAIN, 'BATCH_SIZE')):
        with pytest.raises(AttributeError):
            setattr(node, name, 1)
    # yacs lets lists be changed after freeze(); there are none.
    assert not any(isinstance(value, list) for value in as_values(cfg).values())


def test_the_command_line_is_not_changed():
    argv = ['--SEED', '3']
    load_config(argv, program='main.py', description='', find_checkpoint_config=Checkpoints())
    assert argv == ['--SEED', '3']


# Overlay -> its base config; those in folders overlay any config.
OVERLAYS = {
    'AiProducts_original': 'AiProducts',
    'AiProducts_strong_2': 'AiProducts_strong',
    'Cifar_LT_long': 'Cifar100_LT',
}
NAMELESS = ('own_photos', 'own_photos_search', 'own_photos_scratch')  # runs are named after the folder of the photos
ALL_CONFIGS = sorted(CONFIGS.rglob('*.yaml'))


@pytest.mark.parametrize('path', ALL_CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(path):
    if path.parent == CONFIGS and path.stem not in OVERLAYS:
        cfg = cfg_of('--config', path)
        assert path.stem in (cfg.NAME, *NAMELESS), 'named as its file'
    else:
        # A second stage needs a first one, and a student a teacher.
        others = ('--RESUME_MODEL', 'stage1.pth') if 'FREEZE_BACKBONE' in path.read_text(encoding='utf-8') else ()
        others += ('--LOSS_TEACHER', 'teacher.pth') if path.stem == 'dive' else ()
        assert cfg_of('--config', CONFIGS / f'{OVERLAYS.get(path.stem, "AiProducts")}.yaml', path, *others)
    assert path.read_text(encoding='utf-8').startswith('# '), 'a config starts with its description'


def commands_of(path):
    """Return the command lines in the head of a config, split, without their comments."""
    head = [line for line in path.read_text(encoding='utf-8').splitlines() if line.startswith('#   ')]
    return [re.split(r'\s{2,}', line[1:].strip())[0].split() for line in head]


@pytest.mark.parametrize('path', [path for path in ALL_CONFIGS if path.parent == CONFIGS], ids=lambda path: path.name)
def test_the_commands_in_its_head_are_valid(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    commands = commands_of(path)
    runs = [words for words in commands if words[:2] in (['python', 'main.py'], ['python', 'test.py'])]
    assert runs, 'the head of a config has a command'
    for words in runs:
        base = CONFIGS / f'{OVERLAYS.get(path.stem, path.stem)}.yaml'
        argv = [str(base.parent) if word == 'my_photos' else word for word in words[2:]]
        cfg = cfg_of(*argv, checkpoint=saved('--config', base, '--NAME', 'stage_1'))
        if words[1] == 'main.py' and '--NAME' not in words and '--RESUME_MODEL' not in words:
            assert path.stem in (cfg.NAME, *NAMELESS)
    for words in commands:
        if words[:2] == ['python', 'tools/convert.py']:
            parse_conversion(words[2:])
        elif words[0] == 'sh':
            assert Path(words[1]).is_file(), words
