import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lib.trainer.running_metrics import EventFile


def read(folder):
    """Return the events of the one file in a folder: each is its length (8 bytes), a sum (4), itself, a sum (4)."""
    (file,) = folder.glob('events.out.tfevents.*')
    data, events = file.read_bytes(), []
    while data:
        (length,) = struct.unpack('<Q', data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_a_point_is_there_at_once(tmp_path):
    events = EventFile(tmp_path)
    events.add(3, 'valid', {'top1': 0.25, 'loss': 2.0})
    head, *points = read(tmp_path)
    assert head.file_version == 'brain.Event:2'
    found = [(point.step, value.tag, value.simple_value) for point in points for value in point.summary.value]
    assert found == [(3, 'valid/top1', 0.25), (3, 'valid/loss', 2.0)]
    events.close()


@pytest.mark.parametrize('finished', [0, 2])
def test_epochs_that_are_run_again_are_hidden(tmp_path, finished):
    """Of a run that was killed before its first checkpoint, the first epoch is one of them."""
    EventFile(tmp_path, finished=finished).close()
    _, start = read(tmp_path)
    assert (start.step, start.session_log.status) == (finished + 1, SessionLog.START)


def test_what_cannot_be_written_is_an_error(tmp_path):
    events = EventFile(tmp_path)
    events.close()
    with pytest.raises(ValueError, match='closed file'):
        events.add(1, 'train', {'loss': 1.0})
