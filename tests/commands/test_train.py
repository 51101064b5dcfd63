"""Errors of lib/trainer get the options that help, in the layer that knows options."""

import re

import pytest

from lib.commands.train import _ADVICE, _advice
from lib.config.defaults import KEYS
from lib.errors import UserError


@pytest.mark.parametrize('kind', _ADVICE)
def test_advice_names_existing_options(kind):
    with pytest.raises(UserError) as caught, _advice():
        raise kind('the loss is not finite')
    text = str(caught.value)
    assert text.startswith('the loss is not finite; ')
    options = re.findall(r'\b[A-Z]+\.[A-Z_]+\b', text)
    assert options
    assert set(options) <= set(KEYS)


def test_other_errors_pass_unchanged():
    with pytest.raises(UserError, match=r'^another mistake$'), _advice():
        raise UserError('another mistake')
