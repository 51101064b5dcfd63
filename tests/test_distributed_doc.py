"""The plans in docs/distributed.md against the planner. Run as a script, this module updates the page."""

import re
import shlex
from pathlib import Path

import pytest

from lib.commands.plan import make_plan
from lib.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'distributed.md'
BLOCK = re.compile(r'```console\n\$ python tools/plan\.py (?P<options>.*)\n(?P<output>(?:.*\n)*?)```\n')
NUMBER = re.compile(r'\d[\d,]*\.?\d*')
# Other versions of torch save slightly more or less for backward.
TOLERANCE = 0.03


def plan_output(options: str) -> str:
    loaded = load_config(shlex.split(options), program='plan', description='', find_checkpoint_config=lambda *_: None)
    return ''.join(f'{line}\n' for line in make_plan(loaded.cfg))


def numbers(text: str) -> list[float]:
    return [float(number.replace(',', '')) for number in NUMBER.findall(text)]


def words(text: str) -> list[str]:
    return NUMBER.sub('#', text).split()


@pytest.mark.long
@pytest.mark.parametrize('number', [1, *(pytest.param(number, marks=pytest.mark.slow) for number in (0, 2))])
def test_page_shows_the_output_of_the_planner(number, monkeypatch):
    block = list(BLOCK.finditer(PAGE.read_text(encoding='utf-8')))[number]
    monkeypatch.chdir(ROOT)
    output = plan_output(block['options'])
    hint = 'python -m tests.test_distributed_doc updates the page'
    assert words(output) == words(block['output']), hint
    assert numbers(output) == pytest.approx(numbers(block['output']), rel=TOLERANCE, abs=0.02), hint
    assert max(map(len, output.splitlines())) <= 80


def test_page_has_three_plans():
    assert len(BLOCK.findall(PAGE.read_text(encoding='utf-8'))) == 3


def updated(block: re.Match) -> str:
    fence, command = block[0].splitlines()[:2]
    return f'{fence}\n{command}\n{plan_output(block["options"])}```\n'


if __name__ == '__main__':
    PAGE.write_text(BLOCK.sub(updated, PAGE.read_text(encoding='utf-8')), encoding='utf-8')
