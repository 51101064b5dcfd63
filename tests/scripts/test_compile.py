"""main.py with a compiled model."""

import os
import shutil
import subprocess
import sys

import pytest

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import ENVIRONMENT, REPOSITORY, TINY, check_same_run, metrics_of

pytestmark = [pytest.mark.slow, pytest.mark.process]  # compilers take minutes


def warnings_of(done):
    """Return our warnings: torch's compiler warns too, for example about CUDA without a GPU."""
    return [line for line in done.stderr.splitlines() if line.startswith(('warning: ', 'error: '))]


def options_of(products, *options):
    return ('--config', TINY, '--NAME', 'run', '--DATASET_ROOT', products, '--RUN_COMPILE', True, *options)


@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler on a CPU')
def test_the_same_result(scripts, products, finished, tmp_path):
    """Resumed bit for bit, too, although the resumed run compiles in other steps."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    for folder in (whole, parts):
        folder.mkdir()
    done = scripts.run(whole, 'main.py', *options_of(products))
    assert warnings_of(done) == []
    run, plain = whole / 'log' / 'run', finished / 'log' / 'tiny'
    found, expected = read_checkpoint(run / 'last.pth').state_dict, read_checkpoint(plain / 'last.pth').state_dict
    assert list(found) == list(expected)
    # Sums in another order, over a dozen steps.
    first, other = metrics_of(run)[0], metrics_of(plain)[0]
    assert first['loss'] == pytest.approx(other['loss'], rel=1e-3)
    scripts.run_until(parts, 'SIGTERM', 'lib.trainer.step:TrainStep.__call__', 8, *options_of(products), code=143)
    scripts.run(parts, 'main.py', *options_of(products, '--RESUME_MODEL', 'last'))
    check_same_run(parts / 'log' / 'run', run)


def test_without_a_compiler(products, finished, tmp_path):
    """One warning, in log.txt too, and the weights of an uncompiled run."""
    # In a new process: torch reads this on import.
    environment = {'CXX': '/nonexistent/c++', 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache')}
    command = [sys.executable, str(REPOSITORY / 'main.py'), *map(str, options_of(products))]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | ENVIRONMENT | environment, capture_output=True, text=True, check=True
    )
    (note,) = warnings_of(done)
    assert note.startswith('warning: RUN.COMPILE: the model runs uncompiled, because compilation failed: ')
    assert 'No working C++ compiler found' in note
    run = tmp_path / 'log' / 'run'
    assert (run / 'log.txt').read_text().count(note.removeprefix('warning: ')) == 1
    check_same_run(run, finished / 'log' / 'tiny')
