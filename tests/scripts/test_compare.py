"""tools/compare.py as a user runs it."""

import json
import shutil

import torch

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.scripts.running import ON_CPU, TINY, error_line


def test_two_models(scripts, run_folder):
    shutil.copytree(run_folder / 'log' / 'tiny', run_folder / 'log' / 'noisy')
    path = run_folder / 'log' / 'noisy' / 'best_model.pth'
    checkpoint = read_checkpoint(path)
    noise = torch.randn(checkpoint.state_dict['classifier.weight'].shape, generator=torch.Generator().manual_seed(0))
    checkpoint.state_dict['classifier.weight'] += 10 * noise
    write_checkpoint(path, checkpoint)
    done = scripts.run(run_folder, 'tools/compare.py', 'log/tiny', 'log/noisy/best_model.pth', *ON_CPU)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith('noisy') for line in lines)
    assert (run_folder / 'log' / 'comparison.png').read_bytes()[:4] == b'\x89PNG'
    first, second = json.loads((run_folder / 'log' / 'comparison.json').read_text())
    difference = second['mean_class_error'] - first['mean_class_error']
    assert abs(second['against_first']['mean_class_error_difference'] - difference) < 1e-12
    again = scripts.run(run_folder, 'tools/compare.py', 'log/tiny', 'log/noisy', *ON_CPU, '--output', 'other/side')
    assert 'using cached features of the valid split' in again.stdout
    assert (run_folder / 'other' / 'side.json').exists()


def test_images_that_valid_corrections_change_are_left_out(scripts, run_folder, products):
    """The models are compared on the other images, with the labels of the annotations."""
    images = json.loads((products / 'converted_val.json').read_text())['annotations']
    names = json.loads((products / 'classes.json').read_text())['names']
    decisions = [
        {'fpath': image['fpath'], 'action': action, 'label': names[image['category_id']], 'to': names[5]}
        for image, action in zip(images, ('drop', 'relabel', 'keep', 'unsure'), strict=False)
    ]
    (run_folder / 'valid.json').write_text(json.dumps({'split': 'valid', 'decisions': decisions}))
    train_images = json.loads((products / 'converted_train.json').read_text())['annotations'][:3]
    decisions = [
        {'fpath': image['fpath'], 'action': 'drop', 'label': names[image['category_id']]} for image in train_images
    ]
    (run_folder / 'train.json').write_text(json.dumps({'decisions': decisions}))
    given = ('--DATASET_CORRECTIONS', 'train.json', '--DATASET_VALID_CORRECTIONS', 'valid.json')
    scripts.run(
        run_folder, 'main.py', '--config', TINY, '--DATASET_ROOT', products, '--NAME', 'clean', *given, report=True
    )
    done = scripts.run(run_folder, 'tools/compare.py', 'log/tiny', 'log/clean', *ON_CPU)
    assert f'left out: 2 of {len(images)} valid images' in done.stdout
    assert f'the same {len(images) - 2} images' in done.stdout
    assert 'clean: trained with train.json (0 labels corrected, 3 images dropped)' in done.stdout
    first, second = json.loads((run_folder / 'log' / 'comparison.json').read_text())
    assert first['left_out'] == 2
    assert first['corrections'] == {}
    assert second['corrections']['train']['counts']['drop'] == 3
    page = (run_folder / 'log' / 'clean' / 'report.html').read_text()
    assert 'Training images: 0 labels corrected, 3 images dropped' in page
    assert 'Valid images: 1 label corrected, 1 image dropped, 1 unsure' in page


def test_mistakes(scripts, run_folder, products):
    line = error_line(scripts.run(run_folder, 'tools/compare.py', 'log/tiny', 'log/nothing', code=2))
    assert line == 'error: log/nothing: neither a checkpoint nor a run folder with a best_model.pth'
    checkpoint = read_checkpoint(run_folder / 'log' / 'tiny' / 'best_model.pth')
    checkpoint.training_set.class_names[0] = 'other'
    write_checkpoint(run_folder / 'other.pth', checkpoint)
    line = error_line(scripts.run(run_folder, 'tools/compare.py', 'log/tiny', 'other.pth', *ON_CPU, code=2))
    assert 'differ from those of log/tiny/best_model.pth' in line
