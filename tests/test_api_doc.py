"""The examples of docs/api.md and docs/api.ipynb run, on the demo's photos with a network of random weights."""

import json
import os
import re
from pathlib import Path

import pytest

from lib.demo.generate import generate_demo
from tests.api_model import write_model

ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTEBOOK = ROOT / 'docs' / 'api.md', ROOT / 'docs' / 'api.ipynb'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with a part of the demo data, a model of its classes, lib, and an empty docs."""
    folder = tmp_path_factory.mktemp('project')
    generate_demo(folder / 'dataset' / 'demo', seed=0, num_workers=1, scale=0.03)
    classes = json.loads((folder / 'dataset' / 'demo' / 'classes.json').read_text(encoding='utf-8'))['names']
    options = {'MODEL__BACKBONE': 'test_resnet', 'INPUT__SIZE': 80, 'TEST__BATCH_SIZE': 32}
    write_model(folder / 'log' / 'demo' / 'best_model.pth', classes, **options)
    (folder / 'lib').symlink_to(ROOT / 'lib')
    (folder / 'docs').mkdir()
    return folder


@pytest.mark.long
def test_examples_of_the_page(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    blocks = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), flags=re.DOTALL)
    assert len(blocks) >= 8
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f'{PAGE.name}, example {number + 1}', 'exec'), names)
    assert len(names['accepted']) <= len(names['photos'])
    assert '%' in capsys.readouterr().out


def test_the_notebook_has_no_output():
    """It would change with every run."""
    cells = json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
    assert all(
        cell['cell_type'] == 'markdown' or (cell['outputs'], cell['execution_count']) == ([], None) for cell in cells
    )
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.slow
@pytest.mark.process
def test_the_notebook_runs(project, monkeypatch):
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    monkeypatch.setitem(os.environ, 'OMP_NUM_THREADS', '1')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(project / 'docs')}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
    errors = [output for output in outputs if output.output_type == 'error' or output.get('name') == 'stderr']
    assert not [output for output in errors if 'TqdmWarning' not in output.get('text', '')]  # of a library of timm
    assert sum('image/png' in output.get('data', {}) for output in outputs) >= 2
