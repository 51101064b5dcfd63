"""The events for TensorBoard, read back byte by byte as TFRecords."""

import io
import struct

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from lib.trainer.run_log import EventFile


def read(folder):
    """Return the events of a folder, file by file: length (8 bytes), checksum (4), event, checksum (4)."""
    events = []
    for file in sorted(folder.glob('events.out.tfevents.*')):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def values_in(folder):
    return [(event.step, value) for event in read(folder) for value in event.summary.value]


def points(folder):
    return [
        (step, value.tag, value.simple_value) for step, value in values_in(folder) if value.HasField('simple_value')
    ]


def test_points_are_written_immediately(tmp_path):
    events = EventFile(tmp_path)
    events.add(3, 'valid', {'top1': 0.25, 'loss': 2.0})
    assert read(tmp_path)[0].file_version == 'brain.Event:2'
    assert points(tmp_path) == [(3, 'valid/top1', 0.25), (3, 'valid/loss', 2.0)]
    events.close()


@pytest.mark.parametrize('step', [0, 200])
def test_points_of_repeated_steps_are_hidden(tmp_path, step):
    """Also the first epoch of a run that was killed before its first checkpoint."""
    EventFile(tmp_path, step).close()
    _, start = read(tmp_path)
    assert (start.step, start.session_log.status) == (step + 1, SessionLog.START)


def test_a_file_of_the_same_second_is_not_overwritten(tmp_path):
    for step in range(3):
        events = EventFile(tmp_path, step)
        events.add(step, 'train', {'loss': 1.0})
        events.close()
    assert [step for step, *_ in points(tmp_path)] == [0, 1, 2]


def test_config_and_hyper_parameters(tmp_path):
    events = EventFile(tmp_path, 7)
    events.add_run(
        'NAME: räder\nTRAIN:\n  BATCH_SIZE: 8\n', {'OPTIMIZER.LR': 0.5, 'LOSS.TYPE': 'ldam', 'X': True, 'N': 3}
    )
    events.close()
    (_, config), (step, start) = values_in(tmp_path)
    assert step == 7
    assert config.tag == 'config/text_summary'
    assert config.tensor.string_val[0].decode() == '    NAME: räder\n    TRAIN:\n      BATCH_SIZE: 8\n'
    assert start.tag == '_hparams_/session_start_info'
    assert start.metadata.plugin_data.plugin_name == 'hparams'
    found = HParamsPluginData.FromString(start.metadata.plugin_data.content).session_start_info.hparams
    assert found['OPTIMIZER.LR'].number_value == 0.5
    assert found['LOSS.TYPE'].string_value == 'ldam'
    assert found['X'].bool_value is True
    assert found['N'].number_value == 3


def test_an_image_and_the_end(tmp_path):
    png = io.BytesIO()
    Image.new('RGB', (30, 20), 'red').save(png, 'PNG')
    events = EventFile(tmp_path)
    events.add_image(5, 'mistakes', png.getvalue())
    events.add_end()
    events.close()
    (step, image), (_, end) = values_in(tmp_path)
    assert (step, image.tag, image.image.width, image.image.height) == (5, 'mistakes', 30, 20)
    assert Image.open(io.BytesIO(image.image.encoded_image_string)).getpixel((3, 3)) == (255, 0, 0)
    assert HParamsPluginData.FromString(end.metadata.plugin_data.content).session_end_info.status == 1  # success


def test_a_failed_write_is_an_error(tmp_path):
    events = EventFile(tmp_path)
    events.close()
    with pytest.raises(ValueError, match='closed file'):
        events.add(1, 'train', {'loss': 1.0})
