"""docs/methods.md equals the output of its generator, and its data are complete."""

import pytest

from lib.errors import UserError
from lib.experiments.gallery import GALLERY, gallery
from lib.experiments.method_list import FAMILIES, METHODS, OTHERS
from lib.experiments.records import published_for, read_measured, read_published, save_measured
from tests.scripts.running import REPOSITORY

CONFIGS = REPOSITORY / 'configs' / 'method'


def entry(method, **changes):
    spread = {'mean': 0.25, 'std': 0.0123, 'seeds': 3}
    return {
        'method': method,
        'base': 'demo',
        'dataset': 'demo',
        'imbalance': None,
        'options': {},
        'seeds': 3,
        'figures': {'last_mean_class_error': spread, 'last_few': {'mean': 0.5, 'std': None, 'seeds': 1}},
        'hardware': {'cpu': 'Some CPU', 'cores': 2, 'gpu': None},
        'date': '2026-01-02',
        **changes,
    }


def test_the_page_equals_the_output_of_the_generator():
    text = gallery(read_published(), read_measured())
    assert GALLERY.read_text(encoding='utf-8') == text, 'to update it: python tools/gallery.py'


@pytest.mark.skipif(not CONFIGS.is_dir(), reason='no method configs here')
def test_every_method_has_a_config_and_every_config_a_method():
    assert {path.stem for path in CONFIGS.glob('*.yaml')} == set(METHODS)


def test_the_method_list_is_consistent():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.family in FAMILIES
        assert len(method.title) <= 36, name
        assert method.paper
        assert '\n' not in method.equation
        assert '`' not in method.equation
        assert set(method.needs) <= set(METHODS), name
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    assert not OTHERS.keys() & METHODS.keys()


def test_published_results_are_errors_of_known_methods():
    results = read_published()
    assert {one.method for one in results} <= METHODS.keys() | OTHERS.keys()
    assert {one.dataset for one in results} == {'cifar10_lt', 'cifar100_lt', 'imagenet_lt', 'inat2018'}
    for one in results:
        assert 5 < float(one.error) < 80, one
        assert (one.imbalance is None) == (not one.dataset.startswith('cifar')), one
        assert one.source
    # The error is higher at a higher imbalance, in every source.
    by_key = {(one.method, one.dataset, one.source, one.imbalance): float(one.error) for one in results}
    pairs = [(error, by_key.get((*key[:3], 50))) for key, error in by_key.items() if key[3] == 100]
    compared = [(harder, easier) for harder, easier in pairs if easier is not None]
    assert len(compared) > 60
    assert all(harder > easier for harder, easier in compared)


@pytest.mark.parametrize(
    ('method', 'dataset', 'imbalance', 'error'),
    [
        ('ce', 'cifar10_lt', 100, '28.05'),
        ('ce', 'cifar100_lt', 50, '56.22'),
        ('seql', 'cifar10_lt', 100, None),
        ('seql', 'cifar100_lt', 100, '59.51'),
        ('ldam_drw', 'cifar10_lt', 10, '11.84'),
        ('drw_cs_ce', 'cifar100_lt', 100, '58.38'),
        ('balanced_softmax', 'cifar100_lt', 10, '36.9'),
        ('dive', 'cifar100_lt', 50, '49.17'),
        ('tricks_combined', 'cifar10_lt', 50, '16.41'),
        ('drs_cam_balanced', 'cifar10_lt', 100, '23.10'),
        # 100 - accuracy, from papers that report accuracies.
        ('mislas', 'cifar100_lt', 100, '53.0'),
        ('logit_adjustment', 'cifar10_lt', 100, '22.11'),
        ('tau_norm', 'imagenet_lt', None, '50.6'),
        ('gpaco', 'inat2018', None, '24.6'),
    ],
)
def test_published_errors(method, dataset, imbalance, error):
    result = published_for(read_published(), method, dataset, imbalance)
    assert (result.error if result else None) == error


def test_a_measured_result_is_shown_with_hardware_and_seeds():
    text = gallery([], [entry('focal', options={'TRAIN.MAX_EPOCH': 2}, imbalance=50)])
    line = next(line for line in text.splitlines() if '[focal]' in line)
    assert 'demo, imbalance 50, TRAIN.MAX_EPOCH 2: 25.00 ± 1.23 (3 seeds, 2 cores of Some CPU)' in line
    others = [line for line in text.splitlines() if '../configs/method/' in line and '[focal]' not in line]
    assert len(others) == len(METHODS) - 1
    assert all(line.endswith('|  |') for line in others)
    assert '| Focal loss | 3 | 25.00 ± 1.23 |  |  | 50.00 |  | 2 cores of Some CPU | 2026-01-02 |' in text


def test_all_lines_of_a_table_have_the_same_columns():
    """A bar in a cell must be escaped."""
    columns = None
    for line in gallery(read_published(), [entry('ce')]).splitlines():
        if not line.startswith('|'):
            columns = None
            continue
        count = line.replace('\\|', '').count('|')
        assert columns in (None, count), line
        columns = count


def test_recording_replaces_the_same_results_and_keeps_the_others(tmp_path):
    file = tmp_path / 'measured.json'
    changed = [entry('ce', imbalance=50), entry('ce', options={'TRAIN.MAX_EPOCH': 2})]
    save_measured([entry('ce'), entry('focal'), *changed], file)
    save_measured([entry('focal', seeds=5)], file)
    seeds = [(one['method'], one['imbalance'], len(one['options']), one['seeds']) for one in read_measured(file)]
    assert sorted(seeds, key=str) == [('ce', 50, 0, 3), ('ce', None, 0, 3), ('ce', None, 1, 3), ('focal', None, 0, 5)]


@pytest.mark.parametrize('text', ['[{', '{}', '[1]'])
def test_an_invalid_file_is_an_error_and_unchanged(tmp_path, text):
    file = tmp_path / 'measured.json'
    file.write_text(text)
    with pytest.raises(UserError, match=r'measured\.json'):
        save_measured([entry('ce')], file)
    assert file.read_text() == text
