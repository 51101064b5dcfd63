"""Parts of a prediction that do not fit together are found."""

import pytest

from lib.commands.predict_parts import _fault, _merge_key

INPUTS = {'size': 32, 'crop_ratio': 0.875, 'mean': (0.5,), 'std': (0.5,), 'color_space': 'RGB'}


def key(rows, **changes):
    """Return the key of a part's store."""
    same = {
        'models': ['a'],
        'inputs': [INPUTS | {'device': 'cpu, float32'}],
        'views': ['plain'],
        'batch_size': 2,
        'weights': [1.0],
        'average': 'logits',
        'split': 'digest',
        'files': 'digest',
    }
    return same | {'rows': rows} | changes


# The command that merges may run on another device, with another batch size.
EXPECTED = _merge_key(key([], inputs=[INPUTS | {'device': 'cuda:0, bfloat16'}], batch_size=512))


def test_parts_that_follow_each_other():
    assert _fault(key([0, 4]), EXPECTED, []) == ''
    assert _fault(key([4, 4]), EXPECTED, [key([0, 4])]) == ''
    assert _fault(key([4, 6]), EXPECTED, [key([0, 4]), key([4, 4])]) == ''


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'models': ['b']}, 'another model'),
        ({'models': ['a', 'b']}, 'another model'),
        ({'inputs': [INPUTS | {'size': 64, 'device': 'cpu, float32'}]}, 'another image size'),
        ({'views': ['flip']}, 'other views'),
        ({'weights': [0.5]}, 'ensemble weights'),
        ({'average': 'probabilities'}, 'TEST.AVERAGE'),
        ({'split': 'other'}, 'another list of images'),
        ({'files': 'other'}, 'images that have changed'),
        ({'batch_size': 4}, 'another batch size'),
        ({'inputs': [INPUTS | {'device': 'mps'}]}, 'another device'),
        ({'rows': [2, 6]}, 'other rows'),
        ({'rows': [6, 8]}, 'other rows'),
    ],
)
def test_parts_that_do_not_fit(changes, words):
    assert words in _fault(key([4, 6]) | changes, EXPECTED, [key([0, 4])])
