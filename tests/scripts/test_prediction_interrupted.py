"""A prediction that is killed and resumed writes the files of an uninterrupted one."""

import random
import signal

from tests.scripts.running import ON_CPU, REPOSITORY, contents

OPTIONS = ('--TEST_TOP_K', 3, '--TEST_EMBEDDINGS', True, '--TEST_FLIP', True, '--TEST_BATCH_SIZE', 2)


def test_killed_and_resumed(scripts, run_folder, products, seed):
    model = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
    options = (*model, '--DATASET_TEST_JSON', products / 'converted_val.json', *OPTIONS)
    scripts.run(run_folder, 'test.py', *options)
    folder = run_folder / 'log' / 'tiny'
    expected = contents(folder)
    for path in folder.glob('predictions_*'):
        path.unlink()
    draws = random.Random(seed)
    num_resumed = 0
    for _ in range(3):
        target = ('SIGKILL', 'lib.runtime.column_store:ColumnStore.write', draws.randint(1, 4))
        done = scripts.run(
            run_folder, 'tests/scripts/flushing.py', *target, REPOSITORY / 'test.py', *options, code=None
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (folder / 'predictions_converted_val.flip.partial').is_dir()
        assert not (folder / 'predictions_converted_val.flip.csv').exists()
        num_resumed += 'resuming after' in done.stdout
    assert num_resumed == 2
    done = scripts.run(run_folder, 'test.py', *options)
    assert 'resuming after' in done.stdout
    assert contents(folder) == expected
    assert not list(folder.glob('*.partial'))
