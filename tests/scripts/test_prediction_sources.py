"""Files of predictions are named after their source; lists on standard input; parts by independent workers."""

import csv
import os
import shutil

import pytest

from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ON_CPU, contents, error_line

MODEL = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)


def ids_of(path):
    with open(path, encoding='utf-8', newline='') as file:
        return [row['id'] for row in csv.DictReader(file)]


@pytest.fixture
def photos(products, run_folder):
    """A folder with six photos, one of them damaged, and one more folder of the same name."""
    for name, number in (('photos', 6), ('more/photos', 2)):
        folder = run_folder / name
        folder.mkdir(parents=True)
        for path in sorted((products / 'test').glob('*.jpg'))[:number]:
            shutil.copy(path, folder / path.name)
    first = sorted((run_folder / 'photos').iterdir())[0]
    first.write_bytes(b'no photo')
    return run_folder / 'photos'


def test_no_source_replaces_the_files_of_another(scripts, run_folder, photos):
    run = run_folder / 'log' / 'tiny'
    photo = sorted(photos.iterdir())[1]
    (run_folder / 'list').write_text(f'{photo}\n')
    listed = ('--TEST_IMAGES', '-')
    # The second list has another content, and two folders have the same name.
    sources = {
        'predictions_photos.csv': (('--TEST_IMAGES', 'photos'), os.devnull, 6),
        f'predictions_{photo.stem}.csv': (('--TEST_IMAGES', photo), os.devnull, 1),
        'predictions_photos_2.csv': (('--DATASET_TEST_ROOT', 'more/photos'), os.devnull, 2),
        'predictions_stdin.csv': (listed, run_folder / 'list', 1),
        'predictions_photos.flip.csv': (('--TEST_IMAGES', 'photos', '--TEST_FLIP', True), os.devnull, 6),
        'last_predictions_photos.csv': (
            ('--TEST_IMAGES', 'photos', '--RESUME_MODEL', 'log/tiny/last.pth'),
            os.devnull,
            6,
        ),
    }
    before = contents(run)
    for name, (options, stdin, number) in sources.items():
        done = scripts.run(run_folder, 'test.py', *MODEL, *options, stdin=stdin)
        assert f'wrote log/tiny/{name}' in done.stdout
        assert len(ids_of(run / name)) == number
        after = contents(run)
        assert {key: after[key] for key in before if key != 'bad_images.csv'} == {
            key: value for key, value in before.items() if key != 'bad_images.csv'
        }
        before = after
    # A source again: the same name.
    done = scripts.run(run_folder, 'test.py', *MODEL, '--TEST_IMAGES', 'photos')
    assert 'wrote log/tiny/predictions_photos.csv' in done.stdout
    assert contents(run) == before
    with open(run / 'bad_images.csv', newline='') as file:
        listed_for = {row['split'] for row in csv.DictReader(file)}
    assert listed_for == {'predictions_photos', 'predictions_photos.flip', 'last_predictions_photos'}


def test_two_ranks_predict_a_list_on_standard_input(scripts, run_folder, photos):
    """Only one rank reads it. NUL-separated, with a byte order mark and a name that is not UTF-8."""
    paths = [os.fsencode(path) for path in sorted(photos.iterdir())]
    odd = os.fsencode(photos) + b'/caf\xe9\n.jpg'
    shutil.copy(paths[1], odd)
    (run_folder / 'list').write_bytes(b'\xef\xbb\xbf' + b'\0'.join([*paths, odd, b'']))
    options = (*MODEL, '--TEST_IMAGES', '-', '--TEST_BATCH_SIZE', 2)
    scripts.run(run_folder, 'test.py', *options, stdin=run_folder / 'list')
    csv_file = run_folder / 'log' / 'tiny' / 'predictions_stdin.csv'
    expected = csv_file.read_bytes()
    csv_file.unlink()
    main, other = run_ranks_of(scripts, 2, run_folder, 'test.py', *options, stdin=run_folder / 'list')
    assert csv_file.read_bytes() == expected
    assert '7 images' in main.stdout
    assert main.stderr.count('\n') == 1, 'one warning, of the damaged photo'
    assert (other.stdout, other.stderr) == ('', '')
    rows = list(csv.reader(csv_file.read_text(encoding='utf-8').splitlines()))
    found = ids_of(csv_file)
    assert found == [*(path.decode() for path in paths), f'{photos}/caf\\xe9\n.jpg']
    assert rows[1][1:] == ['-1', '', '']
    empty = error_line(scripts.run(run_folder, 'test.py', *options, code=2))
    assert 'there is no path on standard input' in empty


def test_merged_parts_are_the_files_of_one_process(scripts, run_folder, photos):
    run = run_folder / 'log' / 'tiny'
    options = (*MODEL, '--TEST_IMAGES', 'photos', '--TEST_BATCH_SIZE', 2, '--TEST_TOP_K', 2, '--TEST_EMBEDDINGS', True)
    scripts.run(run_folder, 'test.py', *options)
    expected = contents(run)
    for path in run.glob('predictions_*'):
        path.unlink()
    (run / 'bad_images.csv').unlink()
    # More parts than batches: some have no image.
    for number in (4, 1, 2):
        done = scripts.run(run_folder, 'test.py', *options, '--TEST_PART', f'{number}/4')
        assert f'part {number} of 4' in done.stdout
    line = error_line(scripts.run(run_folder, 'test.py', *options, '--TEST_PART', 'merge/4', code=2))
    assert 'part 3 is missing' in line
    assert '--TEST_PART 3/4' in line
    run_ranks_of(scripts, 2, run_folder, 'test.py', *options, '--TEST_PART', '3/4')
    ids = [ids_of(run / f'predictions_photos.part_{number}_of_4.csv') for number in (1, 2, 3, 4)]
    assert [name for some in ids for name in some] == sorted(path.name for path in photos.iterdir())
    damaged = sorted(photos.iterdir())[0]
    damaged.rename(photos / 'z.jpg')
    line = error_line(scripts.run(run_folder, 'test.py', *options, '--TEST_PART', 'merge/4', code=2))
    assert 'part 1 is of another list of images' in line
    (photos / 'z.jpg').rename(damaged)
    scripts.run(run_folder, 'test.py', *options, '--TEST_PART', 'merge/4')
    merged = {name: digest for name, digest in contents(run).items() if '.part_' not in name}
    assert merged == expected
    assert not list(run.glob('*.partial'))
