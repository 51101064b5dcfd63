"""The plans and examples of docs/distributed.md. Run as a script, this module updates the plans.

tests/scripts/test_clusters.py and test_slurm.py run the examples.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml

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
@pytest.mark.parametrize('number', [1, *(pytest.param(number, marks=pytest.mark.slow) for number in (0, 2, 3))])
def test_page_shows_the_output_of_the_planner(number, monkeypatch):
    block = list(BLOCK.finditer(PAGE.read_text(encoding='utf-8')))[number]
    monkeypatch.chdir(ROOT)
    output = plan_output(block['options'])
    hint = 'python -m tests.test_distributed_doc updates the page'
    assert words(output) == words(block['output']), hint
    assert numbers(output) == pytest.approx(numbers(block['output']), rel=TOLERANCE, abs=0.02), hint
    assert max(map(len, output.splitlines())) <= 80


def test_page_has_four_plans():
    assert len(BLOCK.findall(PAGE.read_text(encoding='utf-8'))) == 4


def blocks(language: str) -> list[str]:
    """Return the page's blocks of code in a language."""
    return re.findall(rf'^```{language}\n(.*?)^```$', PAGE.read_text(encoding='utf-8'), re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    """Return the commands of the page's sh blocks, without comments; not those of scripts."""
    scripts = [block for block in blocks('sh') if not block.startswith('#!')]
    lines = re.sub(r'\\\n *', '', ''.join(scripts)).splitlines()
    return [line.partition('#')[0].strip() for line in lines if line.partition('#')[0].strip()]


def test_examples_start_the_scripts():
    """Each sets the variables that lib/distributed/rank_info.py reads, or starts torchrun; the options exist."""
    (slurm,) = (block for block in blocks('sh') if block.startswith('#!'))
    assert {'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'} <= set(re.findall(r'(\w+)=', slurm))
    (kubernetes, skypilot), (ray,) = blocks('yaml'), blocks('python')
    compile(ray, 'ray_train.py', 'exec')
    words = shlex.split(yaml.safe_load(skypilot)['run'])
    assert words[0] == 'torchrun'
    service, job = yaml.safe_load_all(kubernetes)
    pods = job['spec']['template']['spec']
    (container,) = pods['containers']
    assert container['command'][0] == 'torchrun'
    # Pod 0 of the job is found by the name that the service gives it.
    name = job['metadata']['name']
    assert service['metadata']['name'] == pods['subdomain']
    assert service['spec']['selector'] == {'batch.kubernetes.io/job-name': name}
    assert f'--rdzv-endpoint={name}-0.{pods["subdomain"]}:29500' in container['command']
    assert f'--nnodes={job["spec"]["completions"]}' in container['command']
    assert {mount['name'] for mount in container['volumeMounts']} == {volume['name'] for volume in pods['volumes']}
    for text in (words, [word for option in container['command'] for word in option.split('=', 1)]):
        options = text[text.index('main.py') + 1 :]
        load_config(options, program='main', description='', find_checkpoint_config=lambda *_: None)


@pytest.mark.slow
def test_kubernetes_accepts_the_example():
    kubernetes_validate = pytest.importorskip('kubernetes_validate', reason='not installed (requirements-dev.txt)')
    for resource in yaml.safe_load_all(blocks('yaml')[0]):
        for version in ('1.29', '1.33'):
            kubernetes_validate.validate(resource, version, strict=True)


def updated(block: re.Match) -> str:
    fence, command = block[0].splitlines()[:2]
    return f'{fence}\n{command}\n{plan_output(block["options"])}```\n'


if __name__ == '__main__':
    PAGE.write_text(BLOCK.sub(updated, PAGE.read_text(encoding='utf-8')), encoding='utf-8')
