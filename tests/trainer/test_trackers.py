"""Records of a run in trackers that fail, lose their server, and are continued."""

import json
import logging
import threading

import pytest

from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.trainer import trackers
from lib.trainer.run_folder import RunFolder
from lib.trainer.tracker_records import RecordPlace
from lib.trainer.trackers import Trackers

URL_ERROR = 'API request to http://me:secret@host:1/api failed\nwith exception'


class Server:
    """A tracker that holds its points in memory."""

    def __init__(self):
        self.points, self.results, self.status, self.starts = {}, {}, {}, []
        self.away = False
        self.free = threading.Event()
        self.free.set()

    def check(self):
        self.free.wait()
        if self.away:
            raise ConnectionError(URL_ERROR)

    def make(self, known, name, parameters, tags, folder):
        """Be the constructor of a record."""
        self.check()
        self.starts.append((name, dict(parameters), dict(tags)))
        record = FakeRecord()
        record.server, record.id = self, known.id if known is not None else f'run-{len(self.points)}'
        self.points.setdefault(record.id, [])
        self.status[record.id] = 'RUNNING'
        return record


class FakeRecord:
    def last_epoch(self):
        self.server.check()
        return max((epoch for epoch, _ in self.server.points[self.id]), default=-1)

    def add(self, epoch, metrics):
        self.server.check()
        self.server.points[self.id].append((epoch, dict(metrics)))

    def add_result(self, epoch, metrics, files):
        self.server.check()
        self.server.results[self.id] = epoch, metrics, [path.name for path in files]

    def end(self, status):
        self.server.check()
        self.server.status[self.id] = status


@pytest.fixture
def server(monkeypatch):
    found = Server()
    monkeypatch.setattr(trackers, 'RECORDS', {'mlflow': found.make})
    return found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'environment.txt').write_text('commit: abc (with changes)\nsystem: Linux: 6\n')
    return RunFolder(tmp_path)


@pytest.fixture
def lines(monkeypatch, caplog):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda: [record.getMessage() for record in caplog.records]


def epoch(folder, number):
    folder.append({'epoch': number, 'split': 'train', 'lr': 0.5, 'loss': number + 0.25})
    folder.append({'epoch': number, 'split': 'valid', 'lr': 0.5, 'top1': number / 8})


def point(number):
    return number, {'train/lr': 0.5, 'train/loss': number + 0.25, 'valid/lr': 0.5, 'valid/top1': number / 8}


def send(tracked, position):
    tracked.send(position)
    tracked._wait()


def train(folder, first, last, *, saved=None):
    """Run epochs, each of them saved; with `saved`, the process is killed after that many are saved."""
    tracked = Trackers(folder, ('mlflow',))
    with tracked.recording('demo', {'SEED': 0}):
        for number in range(first, last + 1):
            epoch(folder, number)
            send(tracked, (min(number, saved or number), 0))
        tracked.finish({}, [])
    return tracked


def test_an_epoch_is_sent_once_a_checkpoint_has_it(server, folder, lines):
    tracked = Trackers(folder, ('mlflow', 'tensorboard'))
    with tracked.recording('demo', {'SEED': 0}):
        epoch(folder, 1)
        send(tracked, None)
        assert server.points == {'run-0': []}
        send(tracked, (0, 7))
        assert server.points == {'run-0': []}
        send(tracked, (1, 0))
        epoch(folder, 2)
        send(tracked, (1, 3))
        assert server.points == {'run-0': [point(1)]}
        send(tracked, (2, 0))
        (folder.path / 'report.html').write_text('x')
        tracked.finish(
            {'top1': 0.5, 'few': None, 'split': 'valid'}, [folder.path / 'report.html', folder.path / 'none']
        )
    assert server.points == {'run-0': [point(1), point(2)]}
    assert server.results == {'run-0': (2, {'best/top1': 0.5}, ['report.html'])}
    assert server.status == {'run-0': 'FINISHED'}
    assert server.starts == [('demo', {'SEED': 0}, {'commit': 'abc (with changes)', 'system': 'Linux: 6'})]
    assert lines() == ['mlflow: run run-0, new', 'mlflow: 1 file recorded']
    assert json.loads((folder.path / 'trackers.json').read_text()) == {'mlflow': {'id': 'run-0', 'epoch': 2}}


def test_a_resumed_run_continues_its_record(server, folder, lines):
    train(folder, 1, 2)
    train(folder, 3, 4)
    assert server.points == {'run-0': [point(number) for number in (1, 2, 3, 4)]}
    assert lines()[-2:] == ['mlflow: run run-0, continued after epoch 2', 'mlflow: 0 files recorded']


def test_epochs_that_were_saved_but_not_sent_before_a_kill(server, folder):
    train(folder, 1, 1)
    epoch(folder, 2)  # the checkpoint to resume has it
    tracked = Trackers(folder, ('mlflow',))
    with tracked.recording('demo', {}):
        assert server.points == {'run-0': [point(1), point(2)]}


def test_a_checkpoint_older_than_the_record(server, folder, lines):
    """Its last.pth was damaged, so that the run resumes from an earlier epoch: no point may appear twice."""
    train(folder, 1, 3)
    folder.forget_after(1)
    train(folder, 2, 3)
    assert server.points['run-0'] == server.points['run-1'] == [point(1), point(2), point(3)]
    assert server.status == {'run-0': 'KILLED', 'run-1': 'FINISHED'}
    assert 'mlflow: run run-0 has later epochs, so a new one begins' in lines()


def test_a_server_that_goes_away_and_returns(server, folder, lines):
    tracked = Trackers(folder, ('mlflow',))
    with tracked.recording('demo', {}):
        for number, server.away in ((1, False), (2, True), (3, True), (4, False), (5, False)):
            epoch(folder, number)
            send(tracked, (number, 0))
        tracked.finish({}, [])
    assert server.points == {'run-0': [point(number) for number in (1, 2, 3, 4, 5)]}
    reason = 'API request to http://host:1/api failed with exception'
    assert lines()[1:-1] == [
        f'mlflow: not recorded, tried again after the next epoch ({reason})',
        'mlflow: recorded again, up to epoch 4',
    ]


def test_a_server_that_is_away_at_the_end(server, folder, lines):
    tracked = Trackers(folder, ('mlflow',))
    with tracked.recording('demo', {}):
        server.away = True
        epoch(folder, 1)
        send(tracked, (1, 0))
        tracked.finish({}, [])
    assert server.points == {'run-0': []}
    reason = '(API request to http://host:1/api failed with exception)'
    assert lines()[1:] == [
        f'mlflow: not recorded, tried again after the next epoch {reason}',
        f'mlflow: given up {reason}; metrics and files are in {folder.path}',
    ]


def test_a_server_that_is_absent_at_the_start(server, folder):
    server.away = True
    expected = (
        r'LOG.TRACKERS mlflow: the run cannot be recorded \(API request to http://host:1/api failed with exception\); '
        'set MLFLOW_TRACKING_URI to a server that answers, or leave mlflow out of LOG.TRACKERS'
    )
    with pytest.raises(UserError, match=expected), Trackers(folder, ('mlflow',)).recording('demo', {}):
        raise AssertionError('training has begun')


def test_a_slow_server_delays_nothing(server, folder):
    tracked = Trackers(folder, ('mlflow',))
    with tracked.recording('demo', {}):
        server.free.clear()
        for number in (1, 2, 3):
            epoch(folder, number)
            tracked.send((number, 0))
        server.free.set()
        tracked.finish({}, [])
    assert server.points == {'run-0': [point(1), point(2), point(3)]}


@pytest.mark.parametrize(
    ('error', 'status'), [(KeyboardInterrupt, 'KILLED'), (SystemExit, 'KILLED'), (UserError, 'FAILED')]
)
def test_the_state_of_a_run_that_ends_early(server, folder, error, status):
    tracked = Trackers(folder, ('mlflow',))
    with pytest.raises(error), tracked.recording('demo', {}):
        raise error
    assert server.status == {'run-0': status}


def test_a_run_that_was_stopped_and_saved(server, folder):
    """SIGTERM: it may be resumed."""
    tracked = Trackers(folder, ('mlflow',))
    with tracked.recording('demo', {}):
        epoch(folder, 1)
        tracked.send((1, 0))
    assert server.points == {'run-0': [point(1)]}
    assert server.status == {'run-0': 'KILLED'}


def test_a_package_that_is_not_installed(monkeypatch, folder):
    def make(*_):
        raise ModuleNotFoundError(name='mlflow')

    monkeypatch.setattr(trackers, 'RECORDS', {'mlflow': make})
    expected = 'the package mlflow is not installed; type: python -m pip install -r requirements-tracking.txt'
    with pytest.raises(UserError, match=expected), Trackers(folder, ('mlflow',)).recording('demo', {}):
        pass


@pytest.mark.parametrize('content', ['[]', '{"mlflow": {"id": "../x y"}}', '{"mlflow": {"id": ""}}', '{"mlflow": 3}'])
def test_a_file_of_another_form(server, folder, content):
    (folder.path / 'trackers.json').write_text(content)
    with (
        pytest.raises(UserError, match=r'trackers\.json: .*; remove it to begin new records'),
        Trackers(folder, ('mlflow',)).recording('demo', {}),
    ):
        pass
    assert server.points == {}


def test_other_ranks_and_other_trackers(server, tmp_path):
    other_rank = RunFolder(tmp_path, writes=False)
    for tracked in (Trackers(other_rank, ('mlflow', 'tensorboard')), Trackers(RunFolder(tmp_path), ())):
        with tracked.recording('demo', {}):
            tracked.send((1, 0))
            tracked.finish({}, [])
        assert not tracked.has_events
    assert Trackers(RunFolder(tmp_path)).has_events
    assert server.starts == []
    assert list(tmp_path.iterdir()) == []
    assert RecordPlace('x').epoch == -1
