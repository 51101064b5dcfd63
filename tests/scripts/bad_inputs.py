"""Mistakes of users: the table of test_bad_inputs.py."""

import re
from dataclasses import dataclass

import torch

from tests.scripts.corruptions import (
    Corruption,
    both,
    checkpoint_with_code,
    edited_checkpoint,
    edited_json,
    labels,
    linked,
    pickled_code,
    removed,
    saved,
    text,
    truncated,
    unreadable_images,
    zipped,
)
from tests.scripts.running import ON_CPU

# Every row starts from a folder with shop/ (six classes, converted), recipe.yaml and, if it is named, log/tiny (a
# finished run).
TRAIN = 'main.py --config recipe.yaml --DATASET_ROOT shop --NAME new'
AGAIN = 'main.py --config recipe.yaml --DATASET_ROOT shop --NAME tiny'
PREDICT = f'test.py --DATASET_ROOT shop {" ".join(ON_CPU)} --RESUME_MODEL'
REBALANCE = f'tau_norm.py --DATASET_ROOT shop {" ".join(ON_CPU)} --RESUME_MODEL'
CONVERT = 'tools/convert.py'
DOCTOR = 'tools/doctor.py --RUN_NUM_WORKERS 0'
PACK = 'tools/pack.py --config recipe.yaml --RUN_NUM_WORKERS 0 --DATASET_ROOT shop'
BEST, LAST = 'log/tiny/best_model.pth', 'log/tiny/last.pth'
TRAIN_JSON, VALID_JSON = 'shop/converted_train.json', 'shop/converted_val.json'
TEST_JSON, CLASSES = 'shop/converted_test.json', 'shop/classes.json'


def more_classes(tree: dict) -> None:
    """Give an annotation file of another program one class more."""
    tree.update(num_classes=7)
    del tree['classes_digest']


# One row of each kind also runs as a process; the others run in the test's process.
END_TO_END = (
    'config missing', 'unknown option', 'LOG_ROOT is read-only', 'margin without angles', 'config is Python',
    'config with a python tag', 'no data yet', 'broken JSON', 'labels of all wrong kinds', 'no test split',
    'tau on other classes', 'unknown backbone', 'pretrained with code', 'checkpoint missing',
    'checkpoint that is a bare pickle', 'checkpoint with code', 'checkpoint with code, to train',
    'checkpoint with code, to tau', 'a folder in use', 'unknown format', 'nowhere to pack to',
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One mistake.

    Attributes:
        name: of the test.
        command: as typed.
        words: which the error line must contain.
        disk: changes the files in the folder first.
        trains: the error comes during training: the run folder then logs it, but its checkpoints are unchanged.
        warns: `warning:` lines about the data come before the error.
    """

    name: str
    command: str
    words: tuple[str, ...]
    disk: Corruption
    trains: bool = False
    warns: bool = False

    @property
    def end_to_end(self) -> bool:
        """Return whether it runs in a separate process."""
        return self.trains or self.name in END_TO_END

    @property
    def needs_run(self) -> bool:
        """Return whether the command reads log/tiny, or a.pth, which many rows derive from it."""
        return re.search(r'\b(log|tiny|a\.pth)\b', self.command) is not None


def row(name: str, command: str, *words: str, disk: Corruption = lambda folder: None, **when: bool) -> Row:
    """Return a Row; words follow the command, as the error line follows what was typed."""
    return Row(name, command, words, disk, **when)


OPTIONS = [
    row('config missing', 'main.py --config recipes.yaml', '--config recipes.yaml: no such file',
        'did you mean recipe.yaml?'),
    row('config without value', 'main.py --config', '--config', 'expected at least one argument'),
    row('config is a folder', 'main.py --config shop', '--config shop: only YAML files'),
    row('unknown option', f'{TRAIN} --LOSS_TIPE focal', '--LOSS_TIPE is not an option', 'did you mean --LOSS_TYPE?'),
    row('option in small letters', f'{TRAIN} --loss-type focal', 'did you mean --LOSS_TYPE?'),
    row('a word that is no option', f'{TRAIN} focal', "'focal' is not an option"),
    row('option without value', f'{TRAIN} --SEED', '--SEED', 'expected one argument'),
    row('wrong type in an option', f'{TRAIN} --OPTIMIZER_LR fast', "--OPTIMIZER_LR is 'fast'", 'a number, at least 0'),
    row('option out of range', f'{TRAIN} --TRAIN_MAX_EPOCH -1', "--TRAIN_MAX_EPOCH is '-1'", 'at least 0'),
    row('option out of choices', f'{TRAIN} --LOSS_TYPE focl', "'focl'", 'cross_entropy, focal', 'did you mean focal?'),
    row('unused option', f'{TRAIN} --LOSS_GAMMA 1', 'LOSS.GAMMA is 1', 'LOSS.TYPE cross_entropy does not use it',
        'focal'),
    row('NAME with a slash', f'{TRAIN}/../../out', 'NAME', 'one folder'),
    row('switch without a sampler', f'{TRAIN} --SAMPLER_SWITCH_EPOCH 1', 'SAMPLER.SWITCH_EPOCH is 1',
        'SAMPLER.SWITCH_TYPE'),
    row('unused beta', f'{TRAIN} --SAMPLER_BETA 0.5', 'SAMPLER.BETA is 0.5', 'effective_number'),
    row('images per class that fill no batch', f'{TRAIN} --SAMPLER_TYPE class_balance --SAMPLER_IMAGES_PER_CLASS 5'
        ' --TRAIN_BATCH_SIZE 8', 'SAMPLER.IMAGES_PER_CLASS is 5', 'divide TRAIN.BATCH_SIZE 8'),
    row('more classes per batch than there are', f'{TRAIN} --SAMPLER_TYPE class_balance --SAMPLER_IMAGES_PER_CLASS 2'
        ' --TRAIN_BATCH_SIZE 16', 'a batch of 16 images needs 8 classes, but only 6 have images', warns=True),
    row('no such device', f'{TRAIN} --RUN_DEVICE cuda:77', 'RUN.DEVICE is cuda:77', 'auto'),
    row('a device that is none', f'{TRAIN} --RUN_DEVICE gpu', "RUN.DEVICE is 'gpu'", "'cuda:N'"),
    row('LOG_ROOT is a file', f'{TRAIN} --LOG_ROOT recipe.yaml', 'recipe.yaml/new: not a directory'),
    row('LOG_ROOT is read-only', f'{TRAIN} --LOG_ROOT /sys', '/sys/new'),
]  # fmt: skip

METHODS = [
    row('margin without angles', f'{TRAIN} --LOSS_TYPE arcface', 'LOSS.TYPE arcface', '--MODEL_CLASSIFIER FCNorm'),
    row('centers without angles', f'{TRAIN} --MODEL_CENTERS 3', 'MODEL.CENTERS is 3', 'FCNorm and cosine do'),
    row('several centers from one mean', f'{TRAIN} --MODEL_CLASSIFIER FCNorm --MODEL_CENTERS 3 --MODEL_PRETRAINED timm '
        '--MODEL_CLASSIFIER_INIT class_means', 'MODEL.CLASSIFIER_INIT class_means needs one row', '--MODEL_CENTERS 1'),
    row('deferred weights without weights', f'{TRAIN} --LOSS_REWEIGHT_EPOCH 1', 'LOSS.REWEIGHT_EPOCH is 1',
        'CLASS_WEIGHTS'),
    row('pairs of an odd batch', f'{TRAIN} --MIX_TYPE mixup --TRAIN_BATCH_SIZE 7', 'MIX.TYPE mixup',
        'TRAIN.BATCH_SIZE 7 is odd'),
    row('adjacent images of one class mixed', f'{TRAIN} --MIX_TYPE mixup --SAMPLER_TYPE class_balance '
        '--SAMPLER_IMAGES_PER_CLASS 2', 'SAMPLER.IMAGES_PER_CLASS is 2', 'MIX.TYPE mixup'),
    row('half a stage', f'{TRAIN} --MIX_TYPE manifold_mixup --MIX_STAGES 0,0.5', 'MIX.STAGES', 'whole numbers'),
    row('a stage that is not there', f'{TRAIN} --MIX_TYPE manifold_mixup --MIX_STAGES 0,9', 'MIX.STAGES', '9',
        'stages 1 (layer1) to 4', warns=True),
    row('mixing key without mixing', f'{TRAIN} --MIX_ALPHA 0.2', 'MIX.ALPHA is 0.2', 'MIX.TYPE (none)'),
    row('pair sampler without pairs', f'{TRAIN} --SAMPLER_PAIR_TYPE square_root', 'SAMPLER.PAIR_TYPE', 'cmo and bbn'),
    row('frozen at random', f'{TRAIN} --MODEL_FREEZE_BACKBONE True', 'MODEL.FREEZE_BACKBONE True', 'trained backbone',
        '--RESUME_MODEL'),
    row('shifted but not frozen', f'{TRAIN} --MODEL_SHIFT_BATCHNORM True', '--MODEL_FREEZE_BACKBONE True'),
    row('second stage without a first', f'{TRAIN} --MODEL_CLASSIFIER_INIT random', 'MODEL.CLASSIFIER_INIT is random',
        '--RESUME_MODEL'),
    row('means of random features', f'{TRAIN} --MODEL_CLASSIFIER_INIT class_means', 'CLASSIFIER_INIT is class_means',
        '--RESUME_MODEL', '--MODEL_PRETRAINED timm'),
    row('texts in a linear classifier', f'{TRAIN} --MODEL_CLASSIFIER_INIT text --RESUME_MODEL {BEST}',
        'MODEL.CLASSIFIER_INIT text', 'MODEL.CLASSIFIER is FC', '--MODEL_CLASSIFIER FCNorm'),
    row('full batches of images', f'{TRAIN} --OPTIMIZER_TYPE lbfgs', 'OPTIMIZER.TYPE lbfgs', '--TRAIN_FEATURES cached'),
    row('means on scales', f'{TRAIN} --MODEL_CLASSIFIER lws --MODEL_CLASSIFIER_INIT class_means --RESUME_MODEL {BEST}',
        'class_means', 'not lws'),
    row('norms of a cosine', f'{TRAIN} --MODEL_CLASSIFIER FCNorm --OPTIMIZER_MAX_NORM 1', 'OPTIMIZER.MAX_NORM is 1'),
    row('contrast of mixed labels', f'{TRAIN} --LOSS_AUXILIARY balanced_contrastive --MIX_TYPE mixup',
        'balanced_contrastive', 'MIX.TYPE mixup'),
    row('contrast of a frozen backbone', f'{TRAIN} --LOSS_AUXILIARY balanced_contrastive --MODEL_FREEZE_BACKBONE True '
        f'--RESUME_MODEL {BEST}', 'balanced_contrastive', 'FREEZE_BACKBONE'),
    row('distillation without a teacher', f'{TRAIN} --LOSS_AUXILIARY distillation', '--LOSS_TEACHER'),
    row('a teacher that is not there', f'{TRAIN} --LOSS_AUXILIARY distillation --LOSS_TEACHER none.pth', 'none.pth',
        'no such file', warns=True),
    row('a teacher of mixed features', f'{TRAIN} --LOSS_AUXILIARY distillation --LOSS_TEACHER {BEST} '
        '--MIX_TYPE manifold_mixup', 'distillation', 'manifold_mixup'),
    row('more than all from the teacher', f'{TRAIN} --LOSS_AUXILIARY distillation --LOSS_TEACHER {BEST} '
        '--LOSS_AUXILIARY_WEIGHT 2', 'LOSS.AUXILIARY_WEIGHT is 2', 'at most 1'),
]  # fmt: skip

FILES = [
    row('config not text', 'main.py --config a.yaml', 'a.yaml', 'cannot be read',
        disk=text('a.yaml', b'\xff\xfe\x00NAME')),
    row('config is Python', 'main.py --config a.py', 'a.py', 'only YAML files', 'never executed',
        disk=text('a.py', 'import pathlib; pathlib.Path("executed").touch()')),
    row('config with a python tag', 'main.py --config a.yaml', 'a.yaml: not valid YAML in line 1',
        'python/object/apply',
        disk=text('a.yaml', 'NAME: !!python/object/apply:os.system ["touch executed"]')),
    row('config of broken YAML', 'main.py --config a.yaml', 'a.yaml: not valid YAML in line 2',
        disk=text('a.yaml', 'NAME: x\n  SEED: [1\n')),
    row('config is a list', 'main.py --config a.yaml', 'a.yaml: must contain keys',
        disk=text('a.yaml', '- NAME\n- x\n')),
    row('key twice', 'main.py --config a.yaml', 'a.yaml', "'SEED' is set twice",
        disk=text('a.yaml', 'SEED: 1\nSEED: 2\n')),
    row('unknown key', 'main.py --config a.yaml', 'TRAIN.BATCHSIZE is not a key', 'did you mean TRAIN.BATCH_SIZE?',
        '--help', disk=text('a.yaml', 'TRAIN:\n  BATCHSIZE: 3\n')),
    row('key of the wrong type', 'main.py --config a.yaml', "a.yaml: TRAIN.BATCH_SIZE is 'many'",
        'a whole number, at least 1',
        disk=text('a.yaml', 'TRAIN:\n  BATCH_SIZE: many\n')),
    row('key without a value', 'main.py --config a.yaml', 'SEED is empty', 'a whole number',
        disk=text('a.yaml', 'SEED:\n')),
    row('section without keys', 'main.py --config a.yaml', 'TRAIN is a section', disk=text('a.yaml', 'TRAIN: 3\n')),
    row('unused key', 'main.py --config recipe.yaml a.yaml', 'LOSS.GAMMA is 1', 'does not use it',
        disk=text('a.yaml', 'LOSS: {TYPE: cross_entropy, GAMMA: 1}')),
    row('unused key in a later file', 'main.py --config a.yaml b.yaml', 'OPTIMIZER.MOMENTUM is 0.5',
        'adamw does not use it', 'sgd',
        disk=both(text('a.yaml', 'OPTIMIZER: {TYPE: adamw}'), text('b.yaml', 'OPTIMIZER: {MOMENTUM: 0.5}'))),
    row('log on a full disk', TRAIN, 'no space left on the device', trains=True,
        disk=linked('log/new/log.txt', '/dev/full')),
]  # fmt: skip

DATA = [
    row('no data yet', 'main.py', 'AliProducts', 'tianchi.aliyun.com', 'python main.py --config configs/demo.yaml'),
    row('ROOT missing', f'{TRAIN} --DATASET_ROOT shoppe', 'shoppe', 'no such folder'),
    row('ROOT is a file', f'{TRAIN} --DATASET_ROOT recipe.yaml', 'recipe.yaml', 'folder'),
    row('ROOT without classes', f'{TRAIN} --DATASET_ROOT empty', 'empty: no class folders', 'CLASS/photo.jpg',
        disk=text('empty/a.txt', '')),
    row('TRAIN_JSON missing', f'{TRAIN} --DATASET_TRAIN_JSON shop/t.json',
        'DATASET.TRAIN_JSON shop/t.json: no such file'),
    row('VALID_JSON missing', f'{TRAIN} --DATASET_VALID_JSON shop/v.json', 'shop/v.json: no such file'),
    row('TRAIN_JSON is a folder', f'{TRAIN} --DATASET_TRAIN_JSON shop', 'shop: cannot be read'),
    row('QUARANTINE missing', f'{TRAIN} --DATASET_QUARANTINE q.json', 'DATASET.QUARANTINE q.json: no such file',
        'tools/doctor.py'),
    row('QUARANTINE is another JSON', f'{TRAIN} --DATASET_QUARANTINE {TRAIN_JSON}',
        f'DATASET.QUARANTINE {TRAIN_JSON}: must be'),
    row('CORRECTIONS missing', f'{TRAIN} --DATASET_CORRECTIONS d.json', 'DATASET.CORRECTIONS d.json: no such file',
        'tools/clean.py'),
    row('CORRECTIONS is another JSON', f'{TRAIN} --DATASET_CORRECTIONS {TRAIN_JSON}',
        f'DATASET.CORRECTIONS {TRAIN_JSON}: must be'),
    row('CORRECTIONS of another split', f'{TRAIN} --DATASET_VALID_CORRECTIONS d.json',
        'DATASET.VALID_CORRECTIONS d.json: has decisions about the train split',
        disk=text('d.json', '{"split": "train", "decisions": []}')),
    row('a weight in grams', TRAIN, f'{TRAIN_JSON}: entry 0: weight is 350', 'at most 1',
        disk=text(TRAIN_JSON,
                  '{"annotations": [{"fpath": "a.jpg", "category_id": 0, "weight": 350}], "num_classes": 1}')),
    row('doctor without data', f'{DOCTOR} --DATASET_ROOT shoppe', 'shoppe', 'no such folder'),
    row('doctor with a TEST_JSON that is not there', f'{DOCTOR} --DATASET_ROOT shop --DATASET_TEST_JSON t.json',
        't.json: no such file'),
    row('DOCTOR.OUT is a file', f'{DOCTOR} --DATASET_ROOT shop --DOCTOR_OUT recipe.yaml', 'recipe.yaml', 'file exists'),
    row('broken JSON', TRAIN, f'{TRAIN_JSON}:28: not valid JSON', disk=truncated(TRAIN_JSON)),
    row('JSON is empty', TRAIN, f'{TRAIN_JSON}:1: not valid JSON', 'truncated', disk=text(TRAIN_JSON, '')),
    row('JSON nested too deep', TRAIN, f'{TRAIN_JSON}:1: not valid JSON', disk=text(TRAIN_JSON, '[' * 100_000)),
    row('JSON of another form', TRAIN, f'{TRAIN_JSON}: must be', '"annotations"', disk=text(TRAIN_JSON, '[1, 2]')),
    row('num_classes is text', TRAIN, "num_classes is '6'", 'a whole number',
        disk=edited_json(TRAIN_JSON, lambda tree: tree.update(num_classes='6'))),
    row('no annotations', TRAIN, f'{TRAIN_JSON}: lists no images',
        disk=edited_json(TRAIN_JSON, lambda tree: tree.update(annotations=[]))),
    row('no valid annotations', TRAIN, f'{VALID_JSON}: lists no images',
        disk=edited_json(VALID_JSON, lambda tree: tree.update(annotations=[]))),
    row('labels of all wrong kinds', TRAIN, 'entry 1: category_id is 6, but must be from 0 to 5',
        'entry 2: category_id is -1', 'entry 3: category_id is True', "entry 4: category_id is '2'",
        'entry 5: category_id is 1.5', 'entry 6: category_id is None', '(6 faulty in all)',
        disk=labels(TRAIN_JSON, {1: 6, 2: -1, 3: True, 4: '2', 5: 1.5, 6: None})),
    row('label beyond 64 bits', TRAIN, 'entry 0: category_id is 1267650600228229401496703205376',
        disk=labels(TRAIN_JSON, {0: 2**100})),
    row('many faults', TRAIN, 'entry 0:', 'entry 9:', 'and 41 more', '(51 faulty in all)',
        disk=labels(TRAIN_JSON, dict.fromkeys(range(51), 9))),
    row('no path', TRAIN, 'entry 4 has no fpath',
        disk=edited_json(TRAIN_JSON, lambda tree: tree['annotations'][4].pop('fpath'))),
    row('splits disagree', TRAIN, TRAIN_JSON, 'num_classes 6', VALID_JSON, '7', warns=True,
        disk=edited_json(VALID_JSON, more_classes)),
    row('names of fewer classes', TRAIN, CLASSES, '5 names', '6',
        disk=edited_json(CLASSES, lambda tree: tree['names'].pop())),
    row('names that are numbers', TRAIN, CLASSES, 'one text per class',
        disk=edited_json(CLASSES, lambda tree: tree.update(names=list(range(6))))),
    row('images elsewhere', f'{TRAIN} --DATASET_TRAIN_JSON {TRAIN_JSON} --DATASET_ROOT log', 'do not exist',
        'set DATASET.ROOT'),
    row('cifar missing', f'{TRAIN} --DATASET_NAME cifar10_lt', 'shop', 'cifar'),
    row('test split missing', f'{PREDICT} {BEST} --DATASET_TEST_JSON shop/t.json', 'shop/t.json: no such file'),
    row('no test split', f'{PREDICT} {BEST}', 'no test images', '--DATASET_TEST_ROOT',
        disk=removed(TEST_JSON, 'shop/test')),
    row('a test folder without images', f'{PREDICT} {BEST}', 'shop/test: no images in this folder',
        disk=both(removed(TEST_JSON, 'shop/test'), text('shop/test/a.txt', ''))),
    row('TEST_ROOT without images', f'{PREDICT} {BEST} --DATASET_TEST_ROOT empty', 'empty', 'no images',
        disk=text('empty/a.txt', '')),
    row('test JSON of another form', f'{PREDICT} {BEST}', f'{TEST_JSON}: must be',
        disk=text(TEST_JSON, '{"files": []}')),
    row('test label out of range', f'{PREDICT} {BEST} --DATASET_TEST_JSON {VALID_JSON}', 'entry 0: category_id is 6',
        disk=labels(VALID_JSON, {0: 6})),
    row('tau without valid split', f'{REBALANCE} {BEST} --DATASET_VALID_JSON v.json', 'v.json: no such file'),
    row('tau on other classes', f'{REBALANCE} {BEST}', VALID_JSON, 'num_classes 7', 'trained on 6', warns=True,
        disk=edited_json(VALID_JSON, more_classes)),
]  # fmt: skip

WHILE_TRAINING = [
    row('one image missing', f'{TRAIN} --TRAIN_BATCH_SIZE 99', 'no such file; compare DATASET.ROOT',
        'shop/train/', trains=True, disk=lambda folder: next(folder.glob('shop/train/*/*.jpg')).unlink()),
    row('unreadable image, raise', f'{TRAIN} --TRAIN_BATCH_SIZE 99 --DATASET_ON_BAD_IMAGE raise', 'shop/train/',
        'ON_BAD_IMAGE skip', trains=True, disk=unreadable_images(1)),
    row('a class with no readable image', f'{TRAIN} --TRAIN_BATCH_SIZE 99',
        "class '10031': none of its 4 training images can be decoded", trains=True, disk=unreadable_images(4, label=5)),
    row('too many unreadable images', f'{TRAIN} --TRAIN_BATCH_SIZE 99', '11 training images cannot be decoded',
        'fraction 0.1', 'DATASET.MAX_BAD_FRACTION', trains=True, warns=True, disk=unreadable_images(11, label=0)),
    row('batch of one image', f'{TRAIN} --TRAIN_BATCH_SIZE 1', 'BatchNorm', 'TRAIN.BATCH_SIZE', trains=True),
    row('loss that is not finite', f'{AGAIN} --RESUME_MODEL last --TRAIN_MAX_EPOCH 4 --OPTIMIZER_LR 1e30',
        'the loss is not finite from epoch 3, step', 'learning rate', 'the last good checkpoint remains',
        trains=True),
]  # fmt: skip

MODELS = [
    row('unknown backbone', f'{TRAIN} --MODEL_BACKBONE resnet5O', "'resnet5O'", 'did you mean resnet50'),
    row('backbone from a hub', f'{TRAIN} --MODEL_BACKBONE hf-hub:timm/resnet18', 'hf-hub:timm/resnet18',
        'MODEL.PRETRAINED timm'),
    row('backbone of another size', f'{TRAIN} --MODEL_BACKBONE test_vit --INPUT_SIZE 40', "'test_vit'",
        'INPUT.SIZE 40'),
    row('backbone of another test size', f'{TRAIN} --MODEL_BACKBONE test_vit --INPUT_TEST_SIZE 40', "'test_vit'",
        'INPUT.TEST_SIZE 40'),
    row('backbone of another scheduled size', f'{TRAIN} --MODEL_BACKBONE test_vit --INPUT_SIZE_SCHEDULE 1,40',
        "'test_vit'", 'INPUT.SIZE_SCHEDULE 40'),
    row('pretrained missing', f'{TRAIN} --MODEL_PRETRAINED w.pth', 'MODEL.PRETRAINED w.pth: no such file',
        'auto, bundled, timm, a weights file, the name of one in ./pretrain_models'),
    row('bundled weights of another backbone', f'{TRAIN} --MODEL_BACKBONE resnet18 --MODEL_PRETRAINED bundled',
        'MODEL.PRETRAINED bundled', 'MODEL.BACKBONE resnet18', 'tf_efficientnet_lite0', '--MODEL_PRETRAINED timm'),
    row('pretrained of another model', f'{TRAIN} --MODEL_PRETRAINED w.pth',
        'MODEL.PRETRAINED w.pth does not fit MODEL.BACKBONE', 'set MODEL.BACKBONE as in its training',
        disk=saved('w.pth', {'a.weight': torch.zeros(2, 3)})),
    row('pretrained with code', f'{TRAIN} --MODEL_PRETRAINED w.pth', 'MODEL.PRETRAINED w.pth', 'never executed',
        disk=pickled_code('w.pth')),
    row('no checkpoint given', 'test.py --DATASET_ROOT shop', 'test.py needs a trained model', '--RESUME_MODEL'),
    row('no checkpoint given to tau', 'tau_norm.py --DATASET_ROOT shop', 'tau_norm.py needs a trained model',
        '--RESUME_MODEL'),
    row('checkpoint missing', f'{PREDICT} log/tiny/best.pth', 'RESUME_MODEL log/tiny/best.pth: no such file', BEST),
    row('no newest checkpoint', f'{PREDICT} last --NAME other', 'RESUME_MODEL last',
        'log/other contains no checkpoint'),
    row('checkpoint is text', f'{PREDICT} a.pth', 'RESUME_MODEL a.pth', disk=text('a.pth', 'hello\n')),
    row('checkpoint is empty', f'{PREDICT} a.pth', 'RESUME_MODEL a.pth: cannot be read', disk=text('a.pth', '')),
    row('checkpoint is a zip', f'{PREDICT} a.pth', 'RESUME_MODEL a.pth: cannot be read', disk=zipped('a.pth')),
    row('checkpoint cut short', f'{PREDICT} {BEST}', f'RESUME_MODEL {BEST}: cannot be read', disk=truncated(BEST)),
    row('all checkpoints cut short', f'{AGAIN} --RESUME_MODEL last', 'log/tiny', 'cannot be read',
        disk=both(truncated(BEST), truncated('log/tiny/last.pth'))),
    row('checkpoint is a list', f'{PREDICT} a.pth', 'a.pth: holds no state_dict', disk=saved('a.pth', [1, 2])),
    row('checkpoint of a backbone', f'{PREDICT} a.pth', 'no classifier.weight', '--MODEL_PRETRAINED',
        disk=saved('a.pth', {'state_dict': {'backbone.conv1.weight': torch.zeros(1)}})),
    row('checkpoint that is a bare pickle', f'{PREDICT} a.pth', 'a.pth', 'could run code', disk=pickled_code('a.pth')),
    row('checkpoint with code', f'{PREDICT} a.pth', 'a.pth', 'could run code', disk=checkpoint_with_code('a.pth')),
    row('checkpoint with code, to train', f'{TRAIN} --RESUME_MODEL a.pth', 'could run code',
        disk=checkpoint_with_code('a.pth')),
    row('checkpoint with code, to tau', f'{REBALANCE} a.pth', 'could run code', disk=checkpoint_with_code('a.pth')),
    row('checkpoint with an unknown part', f'{PREDICT} a.pth', 'RESUME_MODEL a.pth: cannot be read as a checkpoint',
        'tide',
        disk=edited_checkpoint('a.pth', lambda content: content['place'].update(tide=3))),
    row('checkpoint without a part', f'{TRAIN} --RESUME_MODEL a.pth',
        'RESUME_MODEL a.pth: cannot be read as a checkpoint', 'recipe',
        disk=edited_checkpoint('a.pth', lambda content: content.pop('recipe'))),
    row('classifier of no dimension', f'{PREDICT} a.pth', 'a.pth', 'classifier.weight',
        disk=edited_checkpoint('a.pth', lambda content: content['state_dict']['classifier.weight'].resize_(()))),
    row('checkpoint of another backbone', f'{PREDICT} {BEST} --MODEL_BACKBONE test_convnext',
        f'{BEST} does not fit MODEL.BACKBONE test_convnext of 32 px', 'missing',
        'set MODEL.BACKBONE as in its training'),
    row('checkpoint of another backbone, to train',
        f'{TRAIN} --RESUME_MODEL {BEST} --MODEL_BACKBONE test_vit --NAME other',
        f'{BEST} does not fit MODEL.BACKBONE test_vit of 32 px', 'missing', 'set MODEL.BACKBONE as in its training'),
    row('checkpoint of another classifier', f'{PREDICT} a.pth', 'its classifier has no bias',
        '--MODEL_CLASSIFIER FCNorm',
        disk=edited_checkpoint('a.pth', lambda content: content['state_dict'].pop('classifier.bias'))),
    row('tau of its own result', f'{REBALANCE} {BEST} --TAU_NORM_LOG_ROOT log', BEST, 're-balanced already'),
    row('tau result there', f'{REBALANCE} {BEST}', 'log_tau/tiny holds an earlier result', '--OVERWRITE True',
        disk=text('log_tau/tiny/best_model.pth', 'old')),
]  # fmt: skip

RESUMING = [
    row('a folder in use', AGAIN, 'log/tiny holds the checkpoints of an earlier run', '--RESUME_MODEL last', '--NAME',
        '--OVERWRITE True'),
    row('OVERWRITE and last', f'{AGAIN} --OVERWRITE True --RESUME_MODEL last', 'OVERWRITE', 'give one of them'),
    row('OVERWRITE of what is read', f'{AGAIN} --OVERWRITE True --RESUME_MODEL {BEST}', 'log/tiny', 'OVERWRITE'),
    row('continue with another recipe', f'{TRAIN} --RESUME_MODE continue --RESUME_MODEL {LAST} --OPTIMIZER_LR 1',
        'RESUME_MODE continue', 'OPTIMIZER.LR 0.05 -> 1.0'),
    row('continue from the best model', f'{TRAIN} --RESUME_MODE continue --RESUME_MODEL {BEST}',
        'log/tiny/best_model.pth', 'no optimizer state', '--RESUME_MODEL last', '--RESUME_MODE finetune'),
    row('last on another set', f'{AGAIN} --RESUME_MODEL last --DATASET_TRAIN_JSON {VALID_JSON}',
        'another training set', '--RESUME_MODEL log/tiny/last.pth'),
    row('last with another optimizer', f'{AGAIN} --RESUME_MODEL last --OPTIMIZER_TYPE adamw --TRAIN_MAX_EPOCH 3',
        'log/tiny/last.pth', 'OPTIMIZER.TYPE', '--RESUME_MODE finetune'),
    row('last with a frozen backbone',
        f'{AGAIN} --RESUME_MODEL last --MODEL_FREEZE_BACKBONE True --TRAIN_MAX_EPOCH 3', 'log/tiny/last.pth',
        'MODEL.FREEZE_BACKBONE', '--RESUME_MODE finetune'),
]  # fmt: skip

CONVERSIONS = [
    row('no format', CONVERT, 'FORMAT'),
    row('unknown format', f'{CONVERT} coco shop', "'coco'", 'aliproducts'),
    row('no source', f'{CONVERT} list nowhere', 'nowhere: no such file or folder'),
    row('no official JSON', f'{CONVERT} aliproducts log', 'log', 'train.json'),
    row('broken official JSON', f'{CONVERT} aliproducts shop', 'shop/train.json:', 'not valid JSON',
        disk=truncated('shop/train.json')),
    row('no column', f'{CONVERT} csv a.csv', "a.csv:1: no column 'label'", '--label_column',
        disk=text('a.csv', 'path,name\nx.jpg,a\n')),
    row('list without label', f'{CONVERT} list a.txt', 'a.txt:2', disk=text('a.txt', 'a.jpg 0\nb.jpg\n')),
    row('images not there', f'{CONVERT} list a.txt', "'nowhere.jpg'", '--image_root',
        disk=text('a.txt', 'nowhere.jpg 0\n')),
    row('source is empty', f'{CONVERT} csv a.csv', 'a.csv', disk=text('a.csv', '')),
    row('folder without classes', f'{CONVERT} imagefolder empty', 'empty', disk=text('empty/a.txt', '')),
    row('nothing to append to', f'{CONVERT} aliproducts shop empty --append', 'empty/classes.json: no such file',
        '--append', disk=text('empty/a.txt', '')),
    row('imbalance that is none', f'{CONVERT} aliproducts shop --imbalance 1', '--imbalance is 1.0', 'above 1'),
    row('imbalance without end', f'{CONVERT} aliproducts shop --imbalance inf', '--imbalance is inf', 'above 1'),
    row('imbalance of text', f'{CONVERT} aliproducts shop --imbalance high', '--imbalance', "'high'"),
    row('imbalance and append', f'{CONVERT} aliproducts shop --imbalance 4 --append', '--imbalance with --append',
        'convert without --append'),
    row('imbalance without training images', f'{CONVERT} list --test a.txt empty --imbalance 4', '--imbalance',
        'SOURCE has none', disk=both(text('a.txt', 'a.jpg 0\n'), text('empty/b.txt', ''))),
    row('OUT is a file', f'{CONVERT} aliproducts shop recipe.yaml', 'recipe.yaml: file exists'),
]  # fmt: skip

PACKING = [
    row('nowhere to pack to', PACK, 'PACK.OUT is empty', '--PACK_OUT FOLDER'),
    row('PACK_OUT is a file', f'{PACK} --PACK_OUT recipe.yaml', 'PACK.OUT recipe.yaml: is a file'),
    row('PACK_OUT holds the photos', f'{PACK} --PACK_OUT shop', 'shop/train holds files that are not packed images',
        'another --PACK_OUT'),
    row('PACK_OUT holds the photos, overwrite', f'{PACK} --PACK_OUT shop --OVERWRITE True', 'PACK.OUT shop holds',
        'not packed data'),
    row('PACK_OUT is read-only', f'{PACK} --PACK_OUT /sys/packed', '/sys/packed'),
    row('quality of a copy', f'{PACK} --PACK_OUT p --PACK_IMAGES copy --PACK_QUALITY 80', 'PACK.QUALITY is 80',
        'PACK.IMAGES copy does not use it', 'reencode'),
    row('way to pack', f'{PACK} --PACK_OUT p --PACK_IMAGES cpoy', "'cpoy'", 'did you mean copy?'),
    row('cifar cannot be packed', f'{PACK} --PACK_OUT p --DATASET_NAME cifar10_lt', 'is in memory'),
    row('nothing to pack', f'{PACK}pe --PACK_OUT p', 'shoppe: no such folder'),
    row('shards missing', f'{TRAIN} --DATASET_SHARDS p', 'DATASET.SHARDS p: no such folder', 'tools/pack.py'),
    row('shards that are none', f'{TRAIN} --DATASET_SHARDS shop', 'shop/train/index.arrow: no such file',
        'tools/pack.py --PACK_OUT shop'),
    row('shards without a valid split', f'{REBALANCE} {BEST} --DATASET_SHARDS log', 'DATASET.SHARDS log',
        'no validation split'),
    row('broken index', f'{TRAIN} --DATASET_SHARDS p', 'p/train/index.arrow: is not an index of packed images',
        'pack again: python tools/pack.py --PACK_OUT p', disk=text('p/train/index.arrow', 'hello')),
    row('shards and annotations', f'{TRAIN} --DATASET_SHARDS p --DATASET_TRAIN_JSON {TRAIN_JSON}',
        'DATASET.TRAIN_JSON', 'DATASET.SHARDS p', "--DATASET_SHARDS ''"),
]  # fmt: skip

ROWS = OPTIONS + METHODS + FILES + DATA + WHILE_TRAINING + MODELS + RESUMING + CONVERSIONS + PACKING
