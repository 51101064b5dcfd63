"""A catalog is killed at random times while it is built and changed: it then is as before the change or as after it."""

import json
import os
import random
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDTH, INDEX_ROWS = 8, 25


def vector_of(product, image):
    """Return the features (1, WIDTH) of a photo, which the names determine."""
    import numpy as np

    return (
        np.random.default_rng(zlib.crc32(f'{product} {image}'.encode())).standard_normal((1, WIDTH)).astype(np.float32)
    )


def change(folder, step):
    """Apply a step to the catalog, which is created if needed."""
    import numpy as np

    from lib.catalog.catalog import create_catalog, open_catalog
    from lib.catalog.manifest import has_catalog

    catalog = open_catalog(folder) if has_catalog(folder) else create_catalog(folder, 'v', WIDTH, kind='hnsw')
    if step['add']:
        products, images = zip(*step['add'], strict=True)
        catalog.add(np.concatenate([vector_of(*names) for names in step['add']]), products, images)
    if step['remove']:
        catalog.remove(step['remove'])
    if step['merge']:
        catalog.merge()


def entries(folder):
    """Return the (product, image) of all photos, each of which must be found by its features."""
    from lib.catalog.catalog import open_catalog
    from lib.catalog.manifest import has_catalog

    if not has_catalog(folder):
        return []
    catalog = open_catalog(folder)
    found = sorted((product, image) for product in catalog.products() for image in catalog.images_of(product))
    for product, image in found:
        for exact in (False, True):
            matches = catalog.search(vector_of(product, image), 1, by='image', effort=200, exact=exact)
            assert (matches.products[0, 0], matches.images[0, 0]) == (product, image)
    assert catalog.num_images == len(found)
    return found


def in_child(work):
    """Run a function in a forked process, which may be killed; return what it returns, None if it was killed."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.write(writing, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:  # a forked process must never return into pytest's frames
            import traceback

            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        content = pipe.read()
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        return None
    assert not os.WEXITSTATUS(status)
    return json.loads(content)


def killed(folder, step, at):
    """Apply a step, and end the process at the `at`-th operation on files; return the number of operations."""
    from lib.runtime import files

    count = 0

    def hook(event, path):
        nonlocal count
        count += 1
        if count == at:
            if event == 'after write' and at % 2:  # the last bytes are not on the disk
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    files.on_operation = hook
    change(folder, step)
    return count


def run_trials(folder, seed, num_trials):
    """Kill `num_trials` changes, and compare the photos after each with those before and after the change."""
    # Once, and not in each forked process.
    import faiss  # noqa: F401
    import pyarrow

    import lib.catalog.catalog as module

    pyarrow.array([])  # imports pandas if that is installed
    module.INDEX_ROWS, module.MAX_INDEXES = INDEX_ROWS, 2
    draw, expected, num_killed = random.Random(seed), {}, 0
    for trial in range(num_trials):
        added = [(f'product {draw.randrange(12)}', str(draw.randrange(10_000))) for _ in range(draw.choice((1, 9, 40)))]
        step = {
            'add': list(dict.fromkeys(added)) if trial % 3 != 2 else [],
            'remove': [f'product {draw.randrange(12)}'] if trial % 3 == 2 else [],
            'merge': trial % 3 == 2,
        }
        after = {key: None for key in expected if key[0] not in step['remove']} | dict.fromkeys(step['add'])
        states = [sorted(expected), sorted(after)]
        done = in_child(lambda step=step: killed(folder, step, draw.randrange(1, 16)))
        num_killed += done is None
        found = [tuple(pair) for pair in in_child(lambda: entries(folder))]
        assert found in states, f'trial {trial}: {len(found)} photos, not {[*map(len, states)]}'
        in_child(lambda step=step: change(folder, step))
        assert [tuple(pair) for pair in in_child(lambda: entries(folder))] == states[1]
        expected = after
    left = {path.name for path in folder.iterdir()}
    assert not [name for name in left if name.endswith('.tmp')], left
    print(f'{num_killed} of {num_trials} killed')


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize('num_trials', [4, pytest.param(40, marks=pytest.mark.slow)])
def test_kills_lose_nothing(tmp_path, num_trials):
    pytest.importorskip('faiss')
    seed = random.randrange(2**32)
    print('seed', seed)
    command = [sys.executable, __file__, str(tmp_path / 'catalog'), str(seed), str(num_trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert not done.returncode, done.stderr
    assert int(done.stdout.split()[0]) >= num_trials // 4


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    run_trials(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
