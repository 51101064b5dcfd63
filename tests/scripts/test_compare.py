"""tools/compare.py as a user runs it."""

import json
import shutil

import torch

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.scripts.running import ON_CPU, error_line


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


def test_mistakes(scripts, run_folder, products):
    line = error_line(scripts.run(run_folder, 'tools/compare.py', 'log/tiny', 'log/nothing', code=2))
    assert line == 'error: log/nothing: neither a checkpoint nor a run folder with a best_model.pth'
    checkpoint = read_checkpoint(run_folder / 'log' / 'tiny' / 'best_model.pth')
    checkpoint.training_set.class_names[0] = 'other'
    write_checkpoint(run_folder / 'other.pth', checkpoint)
    line = error_line(scripts.run(run_folder, 'tools/compare.py', 'log/tiny', 'other.pth', *ON_CPU, code=2))
    assert 'differ from those of log/tiny/best_model.pth' in line
