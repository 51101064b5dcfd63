import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lib.trainer.running_metrics import EventFile


def read(folder):
    """Return the events of the only file in a folder: length (8 bytes), checksum (4), event, checksum (4)."""
    (file,) = folder.glob('events.out.tfevents.*')
    data, events = file.read_bytes(), []
    while data:
        (length,) = struct.unpack('<Q', data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_points_are_written_immediately(tmp_path):
    events = EventFile(tmp_path)
    events.add(3, 'valid', {'top1': 0.25, 'loss': 2.0})
    head, *points = read(tmp_path)
    assert head.file_version == 'brain.Event:2'
    found = [(point.step, value.tag, value.simple_value) for point in points for value in point.summary.value]
    assert found == [(3, 'valid/top1', 0.25), (3, 'valid/loss', 2.0)]
    events.close()


@pytest.mark.parametrize('finished', [0, 2])
def test_points_of_repeated_epochs_are_hidden(tmp_path, finished):
    """Also the first epoch of a run that was killed before its first checkpoint."""
    EventFile(tmp_path, finished=finished).close()
    _, start = read(tmp_path)
    assert (start.step, start.session_log.status) == (finished + 1, SessionLog.START)


def test_a_failed_write_is_an_error(tmp_path):
    events = EventFile(tmp_path)
    events.close()
    with pytest.raises(ValueError, match='closed file'):
        events.add(1, 'train', {'loss': 1.0})
