"""tools/clean.py as a user runs it: wrong labels are found, written, applied, and the same after a kill."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from lib.dataset.corrections import Decision, write_decisions
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ON_CPU, REPOSITORY, TINY, error_line

BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
NOISY = ('--DATASET_TRAIN_JSON', 'noisy.json')
WRONG = {0: 3, 5: 1, 11: 2}  # position among the images of class 0 or 1 -> label
COSINE = ('--CLEAN_ROUNDS', 1, '--CLEAN_HEAD', 'cosine')
FILES = ('suspects.csv', 'clean.json', 'clean.html')


@pytest.fixture
def wrong(run_folder, products) -> dict[str, str]:
    """Write noisy.json into the run folder; return the paths of images with a wrong label, and their true class."""
    content = json.loads((products / 'converted_train.json').read_text())
    names = json.loads((products / 'classes.json').read_text())['names']
    entries = [entry for entry in content['annotations'] if entry['category_id'] == 0]
    found = {}
    for position, label in WRONG.items():
        found[entries[position]['fpath']] = names[0]
        entries[position]['category_id'] = label
    (run_folder / 'noisy.json').write_text(json.dumps(content))
    (run_folder / 'classes.json').write_text((products / 'classes.json').read_text())
    return found


def suspects(folder: Path) -> list[dict[str, str]]:
    with open(folder / 'suspects.csv', newline='') as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.long
def test_wrong_labels_are_found_and_described(scripts, run_folder, wrong):
    done = scripts.run(run_folder, 'tools/clean.py', *BEST, *NOISY)
    folder = run_folder / 'log' / 'tiny' / 'clean'
    rows = suspects(folder)
    mislabeled = {row['fpath']: row for row in rows if row['kind'] == 'mislabeled'}
    assert {*mislabeled} == {*wrong}
    assert all(mislabeled[fpath]['proposal'] == true for fpath, true in wrong.items())
    errors = [float(row['error_probability']) for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert [row['rank'] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    summary = json.loads((folder / 'clean.json').read_text())
    assert summary['images'] == sum(summary['kinds'].values()) == 51
    assert summary['kinds']['mislabeled'] == 3
    assert summary['noise']['low'] < 3 / 51 < summary['noise']['high']
    assert sum(each['images'] for each in summary['classes']) == 51
    assert summary['options']['CLEAN.FOLDS'] == 5
    lines = done.stdout.splitlines()
    assert '  mislabeled: 3' in lines
    assert all(len(line) <= 80 for line in lines if 'log/' not in line and str(run_folder) not in line)
    assert f'wrote {Path("log/tiny/clean/clean.html")}' in lines
    assert not (folder / 'decisions.json').exists()


@pytest.mark.long
def test_decisions_train_a_run_and_are_completed_by_a_second_cleaning(scripts, run_folder, products, wrong):
    scripts.run(run_folder, 'tools/clean.py', *BEST, *NOISY, '--CLEAN_APPLY', 'relabel')
    decisions = run_folder / 'log' / 'tiny' / 'clean' / 'decisions.json'
    found = json.loads(decisions.read_text())['decisions']
    assert {each['fpath']: each['to'] for each in found} == wrong
    assert {each['by'] for each in found} == {'clean'}
    corrections = ('--DATASET_CORRECTIONS', decisions)
    options = ('--config', TINY, '--DATASET_ROOT', products, *NOISY, '--NAME', 'again', *corrections)
    done = scripts.run(run_folder, 'main.py', *options, '--TRAIN_MAX_EPOCH', 1)
    assert '3' in next(line for line in done.stdout.splitlines() if 'decisions.json' in line)
    done = scripts.run(run_folder, 'tools/clean.py', *BEST, *NOISY, *corrections, '--CLEAN_APPLY', 'drop')
    assert '  mislabeled: 0' in done.stdout.splitlines()
    assert json.loads(decisions.read_text())['decisions'] == found
    assert 'train with the decisions' in done.stdout
    assert not decisions.with_name('decisions_1.json').exists()  # the same decisions
    former = decisions.read_bytes()
    done = scripts.run(run_folder, 'tools/clean.py', *BEST, '--CLEAN_APPLY', 'relabel')
    assert 'decisions.json: 0 decisions (relabel)' in done.stdout
    assert 'kept the former decisions' in done.stdout
    assert decisions.with_name('decisions_1.json').read_bytes() == former
    assert 'next steps' not in done.stdout


@pytest.mark.long
def test_labels_that_a_person_has_kept_are_not_suspected_again(scripts, run_folder, wrong):
    kept, *others = wrong
    label = json.loads((run_folder / 'classes.json').read_text())['names'][WRONG[0]]
    write_decisions(run_folder / 'kept.json', [Decision(kept, 'keep', label, by='review')])
    scripts.run(
        run_folder, 'tools/clean.py', *BEST, *NOISY, '--DATASET_CORRECTIONS', 'kept.json', '--CLEAN_APPLY', 'drop'
    )
    folder = run_folder / 'log' / 'tiny' / 'clean'
    assert {row['fpath'] for row in suspects(folder) if row['fpath'] in wrong} == {*others}
    found = json.loads((folder / 'decisions.json').read_text())['decisions']
    assert {each['fpath']: each['action'] for each in found} == {kept: 'keep', **dict.fromkeys(others, 'drop')}


@pytest.mark.long
def test_weights_of_images(scripts, run_folder, wrong):
    scripts.run(run_folder, 'tools/clean.py', *BEST, *NOISY, '--CLEAN_APPLY', 'weight', '--CLEAN_HEAD', 'cosine')
    folder = run_folder / 'log' / 'tiny' / 'clean'
    weights = {
        each['fpath']: each['weight'] for each in json.loads((folder / 'decisions.json').read_text())['decisions']
    }
    for row in suspects(folder):
        if row['kind'] == 'mislabeled':
            assert weights[row['fpath']] == pytest.approx(max(0.01, 1 - float(row['error_probability'])), abs=1e-3)
    assert {*wrong} <= {*weights}


@pytest.mark.long
def test_features_of_several_models(scripts, run_folder, wrong):
    (run_folder / 'log' / 'copy').mkdir()
    for name in ('best_model.pth', 'config.yaml'):
        (run_folder / 'log' / 'copy' / name).write_bytes((run_folder / 'log' / 'tiny' / name).read_bytes())
    options = ('tools/clean.py', *BEST, *NOISY, '--CLEAN_MODELS', 'log/copy/best_model.pth')
    scripts.run(run_folder, *options)
    folder = run_folder / 'log' / 'tiny' / 'clean'
    mislabeled = {row['fpath'] for row in suspects(folder) if row['kind'] == 'mislabeled'}
    assert mislabeled == {*wrong}
    before = results(folder)
    scripts.run(run_folder, *options)
    assert results(folder) == before
    failed = scripts.run(run_folder, *options[:-1], 'log/none.pth', code=2)
    assert 'CLEAN.MODELS' in error_line(failed)


@pytest.mark.long
@pytest.mark.process
def test_killed_at_random_and_started_again(scripts, run_folder, wrong, seed):
    options = ('tools/clean.py', *BEST, *NOISY, '--CLEAN_ROUNDS', 2)
    folder = run_folder / 'log' / 'tiny' / 'clean'
    started = time.monotonic()
    scripts.run(run_folder, *options)
    seconds = time.monotonic() - started
    expected = results(folder)
    random = np.random.default_rng(seed)
    for path in (folder, run_folder / 'log' / 'tiny' / 'features'):
        path.rename(run_folder / f'old_{path.name}')
    for _ in range(3):
        running = scripts.start(run_folder, *options)
        time.sleep(random.uniform(0.2, 1) * seconds)
        os.kill(running.process, signal.SIGKILL)
        running.wait(None)
    scripts.run(run_folder, *options)
    assert results(folder) == expected


@pytest.mark.long
@pytest.mark.process
def test_two_ranks_find_what_one_finds(scripts, run_folder, wrong):
    options = (*BEST, *NOISY, '--CLEAN_FOLDS', 3, '--CLEAN_ROUNDS', 2)
    folder = run_folder / 'log' / 'tiny' / 'clean'
    scripts.run(run_folder, 'tools/clean.py', *options)
    expected = results(folder)
    for path in (folder, run_folder / 'log' / 'tiny' / 'features'):
        path.rename(run_folder / f'old_{path.name}')
    run_ranks_of(scripts, 2, run_folder, 'tools/clean.py', *options)
    assert results(folder) == expected


@pytest.mark.long
def test_without_a_model_bundled_weights_are_used(scripts, run_folder, products, wrong):
    config = ('--config', REPOSITORY / 'configs' / 'own_photos.yaml')
    size = ('--INPUT_SIZE', 48, '--INPUT_TEST_SIZE', 48)
    options = (*config, '--DATASET_ROOT', products, *NOISY, *size, '--NAME', 'goods', *ON_CPU)
    done = scripts.run(run_folder, 'tools/clean.py', *options, *COSINE)
    assert (run_folder / 'log' / 'goods' / 'clean' / 'clean.html').exists()
    assert f'--DATASET_ROOT {products}' in done.stdout
    assert '--NAME goods_cleaned' in done.stdout
    done = scripts.run(run_folder, 'tools/clean.py', *options, *COSINE)
    assert ', cached' in done.stdout


def test_images_in_quarantine_and_unreadable_ones_are_left_out(scripts, run_folder, products):
    annotations = json.loads((products / 'converted_train.json').read_text())
    listed = [{'fpath': entry['fpath'], 'split': 'train'} for entry in annotations['annotations'][:10]]
    (run_folder / 'quarantine.json').write_text(json.dumps({'images': listed}))
    annotations['annotations'][20]['fpath'] = 'train/gone.jpg'
    (run_folder / 'noisy.json').write_text(json.dumps(annotations))
    options = ('--DATASET_QUARANTINE', 'quarantine.json', '--CLEAN_ROUNDS', 1, '--CLEAN_HEAD', 'cosine')
    done = scripts.run(run_folder, 'tools/clean.py', *BEST, *NOISY, *options)
    summary = json.loads((run_folder / 'log/tiny/clean/clean.json').read_text())
    assert (summary['images'], summary['unreadable']) == (40, 1)
    assert '1 image cannot be decoded, left out' in done.stdout


def test_copies_that_the_doctor_found_with_another_label(scripts, run_folder, products):
    entries = json.loads((products / 'converted_train.json').read_text())['annotations']
    images = [
        {'split': 'train', 'row': row, 'fpath': entries[row]['fpath'], 'category_id': entries[row]['category_id']}
        for row in (
            3,
            next(row for row, entry in enumerate(entries) if entry['category_id'] != entries[3]['category_id']),
        )
    ]
    group = {'leak': False, 'contradiction': True, 'images': images}
    (run_folder / 'log' / 'tiny_doctor').mkdir()
    doctor = {'exact_duplicates': [], 'near_duplicates': [group]}
    (run_folder / 'log' / 'tiny_doctor' / 'doctor.json').write_text(json.dumps(doctor))
    scripts.run(run_folder, 'tools/clean.py', *BEST, '--CLEAN_ROUNDS', 1, '--CLEAN_HEAD', 'cosine')
    rows = {row['fpath']: row['kind'] for row in suspects(run_folder / 'log/tiny/clean')}
    assert {image['fpath'] for image in images} <= {*rows}
    assert 'duplicate' in rows.values()
    # One of the two is relabeled to the class of the other.
    names = json.loads((products / 'classes.json').read_text())['names']
    label, to = (names[image['category_id']] for image in images[::-1])
    write_decisions(run_folder / 'decisions.json', [Decision(images[1]['fpath'], 'relabel', label, to)])
    options = ('--DATASET_CORRECTIONS', 'decisions.json', '--CLEAN_ROUNDS', 1, '--CLEAN_HEAD', 'cosine')
    done = scripts.run(run_folder, 'tools/clean.py', *BEST, *options)
    assert '  near-duplicates with another label: 0' in done.stdout.splitlines()


def test_mistakes(scripts, run_folder, products):
    def line(*options):
        return error_line(scripts.run(run_folder, 'tools/clean.py', *ON_CPU, *options, code=2))

    assert 'tools/clean.py needs features' in line('--DATASET_ROOT', products, '--config', TINY)
    assert 'one of auto, linear, cosine' in line(*BEST, '--CLEAN_HEAD', 'nearest')
    assert 'CLEAN.FOLDS is 3, but CLEAN.HEAD cosine does not use it' in line(
        *BEST, '--CLEAN_HEAD', 'cosine', '--CLEAN_FOLDS', 3
    )
    annotations = json.loads((products / 'converted_train.json').read_text())
    annotations['annotations'] = annotations['annotations'][:1]
    (run_folder / 'noisy.json').write_text(json.dumps(annotations))
    assert 'has 1 labeled image that can be decoded' in line(*BEST, *NOISY)
