"""The command lines and examples of docs/distributed.md, on two ranks of this machine. Slurm: test_slurm.py."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.scripts.rank_runs import free_port
from tests.scripts.running import ENVIRONMENT, REPOSITORY
from tests.test_distributed_doc import blocks, command_lines

pytestmark = [pytest.mark.slow, pytest.mark.process]
# What the page's commands get so that they take seconds: another model and data set, and a separate folder.
SMALL = {
    'main.py': '--NAME run --DATASET_ROOT {products} --LOG_ROOT {folder}/log --MODEL_BACKBONE test_resnet '
    '--INPUT_SIZE 32 --TRAIN_BATCH_SIZE 8 --TRAIN_MAX_EPOCH 1 --RUN_DEVICE cpu --RUN_PRECISION float32 '
    '--RUN_NUM_WORKERS 0',
    'tools/doctor.py': '--DATASET_ROOT {products} --RUN_NUM_WORKERS 1 --LOG_ROOT {folder}/log',
    'tools/pack.py': '--DATASET_ROOT {products} --PACK_OUT {folder}/packed --RUN_NUM_WORKERS 1',
    'tools/index.py': '--RESUME_MODEL {finished}/log/tiny/best_model.pth --DATASET_ROOT {products} '
    '--LOG_ROOT {folder}/log --RUN_DEVICE cpu --RUN_PRECISION float32 --RUN_NUM_WORKERS 0',
    'tools/plan.py': '--config tests/scripts/tiny.yaml',
}  # fmt: skip
# What this machine lacks, and what it has instead.
REPLACED = {
    r'--nproc-per-node[ =]8\b': '--nproc-per-node 2',  # 8 GPUs
    r'--nproc-per-node \$SKYPILOT_NUM_GPUS_PER_NODE': '--nproc-per-node 2',
    r'--nnodes[ =]8\b': '--nnodes 1',  # 8 machines
    r'(node0|train-0\.train):29500': 'localhost:{port}',
    r'--master-port 29500': '--master-port {port}',
}
# Lines that need what no test has: none so far.
NOT_RUN: dict[str, str] = {}


def run(line, products, folder, finished=None):
    """Run a command line of the page in the repository, with SMALL at its end."""
    for pattern, replacement in REPLACED.items():
        line = re.sub(pattern, replacement.format(port=free_port()), line)
    (script,) = (word for word in shlex.split(line) if word.endswith('.py'))
    options = SMALL[script].format(products=products, folder=folder, finished=finished)
    path = {'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    done = subprocess.run(
        ['bash', '-c', f'{line.rstrip()} {options}'],
        cwd=REPOSITORY, env=os.environ | ENVIRONMENT | path, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f'{line}\n{done.stdout}{done.stderr}'
    return done.stdout


@pytest.mark.parametrize('line', [line for line in command_lines() if line not in NOT_RUN])
def test_a_line_of_the_page(line, products, finished, tmp_path):
    output = run(line, products, tmp_path, finished)
    if 'main.py' in line:
        assert '2 ranks' in output or 'torchrun' not in line
        assert (tmp_path / 'log' / 'run' / 'best_model.pth').exists()


def test_kubernetes(products, tmp_path):
    """The command of a pod. Schema and names are checked by test_distributed_doc.py."""
    job = list(yaml.safe_load_all(blocks('yaml')[0]))[1]
    (container,) = job['spec']['template']['spec']['containers']
    assert '2 ranks' in run(shlex.join(container['command']), products, tmp_path)


def test_skypilot(products, tmp_path, monkeypatch):
    for name, value in {'NUM_NODES': '1', 'NODE_RANK': '0', 'NODE_IPS': '127.0.0.1\n10.0.0.2'}.items():
        monkeypatch.setenv(f'SKYPILOT_{name}', value)
    assert '2 ranks' in run(yaml.safe_load(blocks('yaml')[1])['run'], products, tmp_path)


def test_ray(products, tmp_path):
    """The script with two workers on CPUs."""
    pytest.importorskip('ray', reason='Ray is not installed (requirements-dev.txt)')
    script = blocks('python')[0]
    for name, value in {
        'num_workers=64': 'num_workers=2',
        'use_gpu=True': 'use_gpu=False',
        '/shared': str(tmp_path),
    }.items():
        assert script.count(name) == 1
        script = script.replace(name, value)
    (tmp_path / 'ray_train.py').write_text(script)
    options = SMALL['main.py'].format(products=products, folder=tmp_path)
    done = subprocess.run(
        [sys.executable, str(tmp_path / 'ray_train.py'), *shlex.split(options)],
        cwd=REPOSITORY, env=os.environ | ENVIRONMENT | {'RAY_USAGE_STATS_ENABLED': '0', 'RAY_TMPDIR': '/tmp'},
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert '2 ranks' in done.stdout + done.stderr
    assert (tmp_path / 'log' / 'run' / 'best_model.pth').exists()
