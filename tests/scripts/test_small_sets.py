"""Every command on validation sets of one to three images: a result, or one error line."""

import json
import shutil

import pytest

from tests.scripts.in_process import run_in_process
from tests.scripts.running import ON_CPU, error_line

BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth')
# Category ids of the validation images.
SETS = {'one image': (0,), 'one class': (0, 0), 'three classes': (0, 1, 2)}
# Command -> words of the error line that is allowed; '': none is.
COMMANDS = {
    ('tau_norm.py', *BEST): '',
    ('tools/posthoc.py', *BEST): 'POSTHOC.FOLDS is 5, but ',
    ('tools/posthoc.py', *BEST, '--POSTHOC_FOLDS', 2): 'POSTHOC.FOLDS is 2, but ',
    ('tools/posthoc.py', *BEST, '--POSTHOC_FIT_SPLIT', 'train'): '',
    ('tools/search.py', *BEST): '',
    ('tools/search.py', *BEST, '--SEARCH_GALLERY', 'valid'): 'SEARCH.GALLERY valid: 1 image to search',
    ('tools/report.py', *BEST): '',
    ('tools/compare.py', 'log/tiny', 'log/tiny/last.pth'): '',
    ('tools/enroll.py', *BEST, '--ENROLL_IMAGES', 'new'): '',
    ('test.py', *BEST, '--TEST_IMAGES', 'new', '--TEST_ABSTAIN_ERROR', 0.1): '',
    ('test.py', *BEST, '--TEST_IMAGES', 'new', '--TEST_ENSEMBLE', 'log/tiny/last.pth', '--TEST_ENSEMBLE_WEIGHTS',
     'valid', '--TEST_AVERAGE', 'probabilities'): '',
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize('name', SETS)
def test_small_validation_sets(run_folder, products, name):
    annotations = json.loads((products / 'converted_val.json').read_text())
    of_class = {label: [one for one in annotations['annotations'] if one['category_id'] == label] for label in range(3)}
    chosen = [of_class[label].pop() for label in SETS[name]]
    (run_folder / 'few.json').write_text(json.dumps({**annotations, 'annotations': chosen}))
    (run_folder / 'new' / 'product').mkdir(parents=True)
    shutil.copy(next(products.rglob('*.jpg')), run_folder / 'new' / 'product' / 'one.jpg')
    data = ('--DATASET_ROOT', products, '--DATASET_VALID_JSON', 'few.json', *ON_CPU)
    for command, allowed in COMMANDS.items():
        done = run_in_process(run_folder, *command, *data)
        if done.returncode:
            assert allowed, (command, done.stderr)
            assert allowed in error_line(done)
