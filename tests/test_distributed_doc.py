"""What docs/distributed.md shows of the planner is what the planner says. Run as a script, this writes it anew."""

import re
import shlex
from pathlib import Path

import pytest

from lib.commands.plan import make_plan
from lib.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'distributed.md'
BLOCK = re.compile(r'```console\n\$ python tools/plan\.py (?P<options>.*)\n(?P<said>(?:.*\n)*?)```\n')
NUMBER = re.compile(r'\d[\d,]*\.?\d*')
# Other versions of torch keep a little more or less for the way back.
TOLERANCE = 0.03


def said(options: str) -> str:
    loaded = load_config(shlex.split(options), program='plan', description='', find_checkpoint_config=lambda *_: None)
    return ''.join(f'{line}\n' for line in make_plan(loaded.cfg))


def numbers(text: str) -> list[float]:
    return [float(number.replace(',', '')) for number in NUMBER.findall(text)]


def words(text: str) -> list[str]:
    return NUMBER.sub('#', text).split()


@pytest.mark.parametrize('number', range(3))
def test_the_page_shows_what_the_planner_says(number, monkeypatch):
    block = list(BLOCK.finditer(PAGE.read_text(encoding='utf-8')))[number]
    monkeypatch.chdir(ROOT)
    found = said(block['options'])
    hint = 'python -m tests.test_distributed_doc writes the page anew'
    assert words(found) == words(block['said']), hint
    assert numbers(found) == pytest.approx(numbers(block['said']), rel=TOLERANCE, abs=0.02), hint
    assert max(map(len, found.splitlines())) <= 80


def test_there_are_plans_on_the_page():
    assert len(BLOCK.findall(PAGE.read_text(encoding='utf-8'))) == 3


def rewritten(block: re.Match) -> str:
    fence, command = block[0].splitlines()[:2]
    return f'{fence}\n{command}\n{said(block["options"])}```\n'


if __name__ == '__main__':
    PAGE.write_text(BLOCK.sub(rewritten, PAGE.read_text(encoding='utf-8')), encoding='utf-8')
