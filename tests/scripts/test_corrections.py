"""Training with DATASET.CORRECTIONS equals training on annotations that were corrected by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import ON_CPU, TINY, error_line, metrics_of


def decide(products: Path, file: Path, *, split: str = 'train', weights: bool = False) -> dict[str, dict]:
    """Write decisions about some images of each class; return them by path."""
    name = {'train': 'converted_train.json', 'valid': 'converted_val.json'}[split]
    images = json.loads((products / name).read_text())['annotations']
    names = json.loads((products / 'classes.json').read_text())['names']
    decisions = []
    for number, image in enumerate(images[::3]):
        action = ['relabel', 'keep', 'drop', 'unsure', 'relabel'][number % 5]
        entry = {'fpath': image['fpath'], 'action': action, 'label': names[image['category_id']], 'by': 'review'}
        if action == 'relabel':
            entry['to'] = names[(image['category_id'] + 1) % len(names)]
        if action == 'unsure' and weights:
            entry |= {'action': 'weight', 'weight': 0.25}
        decisions.append(entry)
    file.write_text(json.dumps({'split': split, 'decisions': decisions}))
    return {entry['fpath']: entry for entry in decisions}


def correct_by_hand(folder: Path, name: str, decisions: dict[str, dict]) -> None:
    """Apply decisions to an annotation file, as a reader of the docs would."""
    tree = json.loads((folder / name).read_text())
    names = json.loads((folder / 'classes.json').read_text())['names']
    corrected = []
    for image in tree['annotations']:
        decision = decisions.get(image['fpath'], {'action': 'keep'})
        if decision['action'] == 'relabel':
            image['category_id'] = names.index(decision['to'])
        if decision['action'] == 'weight':
            image['weight'] = decision['weight']
        if decision['action'] != 'drop':
            corrected.append(image)
    (folder / name).write_text(json.dumps({**tree, 'annotations': corrected}))


def checkpoint_of(folder: Path, name: str):
    return read_checkpoint(folder / 'log' / name / 'last.pth')


def assert_same_weights(folder: Path, first: str, second: str) -> None:
    one, other = (checkpoint_of(folder, name).state_dict for name in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.long
@pytest.mark.parametrize(
    'options',
    [
        ('--MIX_TYPE', 'mixup', '--SAMPLER_TYPE', 'class_balance'),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(('--MIX_TYPE', 'cmo', '--LOSS_CHUNK_IMAGES', 3), marks=pytest.mark.slow),
        pytest.param(('--MIX_TYPE', 'bbn', '--LOSS_TYPE', 'ldam'), marks=pytest.mark.slow),
    ],
)
def test_equals_training_on_corrected_annotations(scripts, products, tmp_path, options):
    decisions = decide(products, tmp_path / 'd.json', weights=True)
    valid = decide(products, tmp_path / 'v.json', split='valid')
    shutil.copytree(products, tmp_path / 'fixed')
    correct_by_hand(tmp_path / 'fixed', 'converted_train.json', decisions)
    correct_by_hand(tmp_path / 'fixed', 'converted_val.json', valid)
    given = ('--DATASET_CORRECTIONS', 'd.json', '--DATASET_VALID_CORRECTIONS', 'v.json')
    train = ('--config', TINY, *options)
    done = scripts.run(tmp_path, 'main.py', *train, '--DATASET_ROOT', products, '--NAME', 'given', *given)
    scripts.run(tmp_path, 'main.py', *train, '--DATASET_ROOT', tmp_path / 'fixed', '--NAME', 'fixed')
    assert_same_weights(tmp_path, 'given', 'fixed')
    for mine, theirs in zip(*(metrics_of(tmp_path / 'log' / name) for name in ('given', 'fixed')), strict=True):
        assert {key: mine[key] for key in ('loss', 'top1')} == {key: theirs[key] for key in ('loss', 'top1')}
    mine, theirs = (checkpoint_of(tmp_path, name).training_set for name in ('given', 'fixed'))
    assert mine.class_counts.tolist() == theirs.class_counts.tolist()
    counts = {action: sum(one['action'] == action for one in decisions.values()) for action in ('relabel', 'drop')}
    weighted = sum(one['action'] == 'weight' for one in decisions.values())
    line = f'd.json: {counts["relabel"]} labels corrected, {counts["drop"]} images dropped, {weighted} images weighted'
    assert line in done.stdout
    record = mine.corrections['train']
    assert record['file'] == 'd.json'
    assert record['counts']['relabel'] == counts['relabel']
    assert theirs.corrections == {}
    assert set(mine.corrections) == {'train', 'valid'}


def test_other_corrections_are_another_training_set(scripts, products, tmp_path):
    decisions = decide(products, tmp_path / 'd.json')
    train = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run')
    scripts.run(tmp_path, 'main.py', *train, '--DATASET_CORRECTIONS', 'd.json')
    last = (*train, '--RESUME_MODEL', 'last', '--TRAIN_MAX_EPOCH', 3)
    line = error_line(scripts.run(tmp_path, 'main.py', *last, '--DATASET_CORRECTIONS', '', code=2))
    assert 'another training set' in line
    # Decisions that change nothing are no other training set.
    without = [one for one in decisions.values() if one['action'] in ('relabel', 'drop')]
    (tmp_path / 'less.json').write_text(json.dumps({'decisions': without}))
    done = scripts.run(tmp_path, 'main.py', *last, '--DATASET_CORRECTIONS', 'less.json')
    assert 'resuming from' in done.stdout
    assert checkpoint_of(tmp_path, 'run').training_set.corrections['train']['file'] == 'd.json'


def test_mistakes(scripts, products, tmp_path):
    decide(products, tmp_path / 'v.json', split='valid')
    train = ('--config', TINY, '--DATASET_ROOT', products)
    line = error_line(scripts.run(tmp_path, 'main.py', *train, '--DATASET_CORRECTIONS', 'v.json', code=2))
    assert line == ('error: DATASET.CORRECTIONS v.json: has decisions about the valid split, not about the train split')
    images = json.loads((products / 'converted_train.json').read_text())['annotations']
    names = json.loads((products / 'classes.json').read_text())['names']
    every = [{'fpath': one['fpath'], 'action': 'drop', 'label': names[one['category_id']]} for one in images]
    (tmp_path / 'all.json').write_text(json.dumps({'decisions': every}))
    line = error_line(scripts.run(tmp_path, 'main.py', *train, '--DATASET_CORRECTIONS', 'all.json', code=2))
    assert 'DATASET.CORRECTIONS all.json lists all 51 images' in line


def test_shards_have_the_corrected_labels(scripts, products, tmp_path):
    decide(products, tmp_path / 'd.json')
    decide(products, tmp_path / 'v.json', split='valid')
    given = ('--config', TINY, '--DATASET_ROOT', products, '--DATASET_CORRECTIONS', 'd.json', *ON_CPU)
    given += ('--DATASET_VALID_CORRECTIONS', 'v.json')
    done = scripts.run(tmp_path, 'tools/pack.py', *given, '--PACK_OUT', 'shards', '--PACK_IMAGES', 'copy')
    assert 'packed with corrected labels' in done.stdout
    scripts.run(tmp_path, 'main.py', *given, '--NAME', 'files')
    done = scripts.run(tmp_path, 'main.py', *given, '--DATASET_SHARDS', 'shards', '--NAME', 'packed')
    assert 'already corrected' in done.stdout
    assert_same_weights(tmp_path, 'files', 'packed')
    records = [metrics_of(tmp_path / 'log' / name)[-1]['top1'] for name in ('files', 'packed')]
    assert records[0] == records[1]


def test_cached_features_are_used_for_corrected_labels(scripts, run_folder, products):
    decide(products, run_folder / 'd.json', weights=True)
    cached = ('--MODEL_TUNE', 'head', '--TRAIN_FEATURES', 'cached', '--TRAIN_MAX_EPOCH', 1, *ON_CPU)
    train = ('--RESUME_MODEL', 'log/tiny/best_model.pth', '--RESUME_MODE', 'finetune', *cached)
    done = scripts.run(run_folder, 'main.py', *train, '--NAME', 'first')
    assert 'computed in' in done.stdout
    done = scripts.run(run_folder, 'main.py', *train, '--NAME', 'second', '--DATASET_CORRECTIONS', 'd.json')
    assert 'computed in' not in done.stdout
    assert 'images weighted' in done.stdout
    counts = [checkpoint_of(run_folder, name).training_set.digest for name in ('first', 'second')]
    assert counts[0] != counts[1]


@pytest.mark.slow
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(scripts, products, tmp_path):
    decide(products, tmp_path / 'd.json', weights=True)
    options = ('--config', TINY, '--DATASET_ROOT', products, '--DATASET_CORRECTIONS', 'd.json', '--DATASET_HEAD_CAP', 6)
    scripts.run(tmp_path, 'main.py', *options, '--NAME', 'whole')
    step = 'lib.trainer.step:TrainStep.__call__'
    scripts.run_until(tmp_path, 'SIGINT', step, 2, *options, '--NAME', 'run', code=130)
    scripts.run(tmp_path, 'main.py', *options, '--NAME', 'run', '--RESUME_MODEL', 'last')
    assert_same_weights(tmp_path, 'whole', 'run')
