"""Two commands at the same time: each ends well or with a line, and the files are those of one after the other."""

import json
import shutil

import pytest

from tests.faults.commands import CASES, all_cases
from tests.faults.harness import describe_difference
from tests.faults.outcome import contents as all_contents
from tests.scripts.running import REPOSITORY, TINY

pytestmark = [pytest.mark.process, pytest.mark.long]

MEET = 'tests/faults/meet.py'
BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', '--RUN_DEVICE', 'cpu', '--RUN_PRECISION', 'float32')
PREDICT = ('test.py', *BEST, '--RUN_NUM_WORKERS', 0)
RESUME = ('main.py', '--config', TINY, '--DATASET_ROOT', 'goods', '--NAME', 'tiny', '--RESUME_MODEL', 'last',
          '--TRAIN_MAX_EPOCH', 3)  # fmt: skip
APPEND = ('tools/convert.py', 'imagefolder')
# Commands that meet in one folder, after others have run.
PAIRS = {
    'one prediction and training': (PREDICT, RESUME),
    'predictions of two sources': (
        (*PREDICT, '--TEST_IMAGES', 'shop/val'),
        (*PREDICT, '--TEST_IMAGES', 'more/val'),
    ),
    'predictions of two parts': (
        (*PREDICT, '--TEST_PART', '1/2'),
        (*PREDICT, '--TEST_PART', '2/2'),
    ),
    'a search and a prediction of the same model': (
        ('tools/search.py', *BEST, '--RUN_NUM_WORKERS', 0),
        PREDICT,
    ),
}


def contents(folder):
    """Return the digests of all files, except the identity of images, which are other copies in each run."""
    return {name: '' if name.endswith('/about.json') else digest for name, digest in all_contents(folder).items()}


class Meeting:
    """A folder in which commands run, one after the other or at the same time."""

    def __init__(self, scripts, inputs, folder, seed, *, patch=None, report=False):
        self.scripts, self.inputs, self.plans, self.seed = scripts, inputs, folder, seed
        self.folder = folder / 'work'
        self.patch, self.report = patch or {}, report

    def reset(self, prepare=None, before=()):
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.inputs, self.folder, symlinks=True)
        if prepare:
            prepare(self.folder)
        for argv in before:
            self.run(argv)

    def run(self, *commands):
        """Run commands at the same time and check how they end; return the number of those that end well."""
        arrivals = self.plans / 'arrivals'
        shutil.rmtree(arrivals, ignore_errors=True)
        arrivals.mkdir()
        running = []
        for number, argv in enumerate(commands):
            plan = self.plans / f'{number}.json'
            seed = f'{self.seed} {number}'
            plan.write_text(
                json.dumps({'arrivals': str(arrivals), 'processes': len(commands), 'seed': seed, 'patch': self.patch})
            )
            script = argv[0] if (self.folder / argv[0]).exists() else REPOSITORY / argv[0]
            running.append(self.scripts.start(self.folder, MEET, plan, script, *argv[1:], report=self.report))
        finished = [one.wait(None) for one in running]
        for done in finished:
            lines = [line for line in done.stderr.splitlines() if not line.startswith(('warning: ', 'drawing '))]
            if done.returncode == 0:
                assert not lines, done.stderr
            else:
                assert done.returncode == 2, done.stderr
                assert len(lines) == 1, done.stderr
                assert lines[0].startswith('error: '), done.stderr
                assert any(reason in lines[0] for reason in ('in use', 'earlier', 'exists already', 'another')), lines
        return sum(done.returncode == 0 for done in finished)


def check_same_twice(scripts, inputs, folder, seed, case, times):
    meeting = Meeting(scripts, inputs, folder, seed, patch=case.patch, report=case.report)
    meeting.reset(case.prepare, case.before)
    meeting.inputs = folder / 'inputs'  # with the files of the commands before, whose bytes differ from run to run
    shutil.copytree(meeting.folder, meeting.inputs, symlinks=True)
    assert meeting.run(case.argv) == 1
    expected = contents(meeting.folder)
    for _ in range(times):
        meeting.reset()
        num_well = meeting.run(case.argv, case.argv)
        assert num_well, 'both have failed'
        found = contents(meeting.folder)
        if num_well > 1:  # the second one has renamed the result of the first
            found = {name: content for name, content in found.items() if '_old_2' not in name}
        assert not describe_difference(found, expected), f'seed {seed}'
        meeting.seed += 1


@pytest.mark.parametrize(('script', 'name'), [('tools/convert.py', 'append')])
def test_the_same_command_twice(scripts, inputs, tmp_path, seed, script, name):
    check_same_twice(scripts, inputs, tmp_path, seed, CASES[script][name], 1)


# The first one removes the parts, which the second one then lacks.
ONCE = [('test.py', 'merge')]


@pytest.mark.slow
@pytest.mark.parametrize(('script', 'name'), [case for case in all_cases() if case not in ONCE])
def test_every_command_twice(scripts, inputs, tmp_path, seed, script, name):
    check_same_twice(scripts, inputs, tmp_path, seed, CASES[script][name], 3)


def check_pair(scripts, inputs, folder, seed, commands, times):
    meeting = Meeting(scripts, inputs, folder, seed)
    expected = []
    for order in (commands, commands[::-1]):
        meeting.reset()
        for argv in order:
            assert meeting.run(argv) == 1
        expected.append(contents(meeting.folder))
    for _ in range(times):
        meeting.reset()
        assert meeting.run(*commands) == len(commands)
        differences = [describe_difference(contents(meeting.folder), one) for one in expected]
        assert '' in differences, f'seed {seed}: {differences}'
        meeting.seed += 1


@pytest.mark.parametrize('name', [next(iter(PAIRS))])
def test_two_commands(scripts, inputs, tmp_path, seed, name):
    check_pair(scripts, inputs, tmp_path, seed, PAIRS[name], 1)


@pytest.mark.slow
@pytest.mark.parametrize('name', PAIRS)
def test_all_pairs(scripts, inputs, tmp_path, seed, name):
    check_pair(scripts, inputs, tmp_path, seed, PAIRS[name], 3)


def test_two_appends_of_different_images(scripts, inputs, tmp_path, seed):
    """No row is lost, whichever comes first."""
    meeting = Meeting(scripts, inputs, tmp_path, seed)
    meeting.reset(before=[(*APPEND, 'shop', 'set')])
    shutil.copytree(inputs / 'more' / 'train' / 'bread', meeting.folder / 'third' / 'train' / 'dates')
    assert meeting.run((*APPEND, 'more', 'set', '--append'), (*APPEND, 'third', 'set', '--append')) == 2
    annotations = json.loads((meeting.folder / 'set' / 'converted_train.json').read_text())
    names = json.loads((meeting.folder / 'set' / 'classes.json').read_text())['names']
    assert annotations['num_classes'] == len(names) == 4
    assert sorted(names[one['category_id']] for one in annotations['annotations']) == sorted(
        ['ale'] * 3 + ['bread'] * 6 + ['cheese'] * 3 + ['dates'] * 3
    )
