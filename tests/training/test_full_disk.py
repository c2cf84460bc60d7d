"""What a run writes while it goes on, where the disk is full for a time."""

import errno
import json
import struct
import time

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from jaxvl.training.sinks import JsonLines, TensorBoard


class Disk:
    """An open file that takes so many bytes."""

    def __init__(self, file, room):
        self.file = file
        self.room = room
        self.name = file.name

    def write(self, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self.file.write(data[: self.room])
        self.room -= count
        return count

    def close(self):
        self.file.close()


def lines(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("room", [0, 1, 100, 137, 250])
def test_a_log_on_a_full_disk_has_every_line_once_there_is_room(tmp_path, room, caplog):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink._file = Disk(sink._file, room)
    for step in range(5):
        sink.record(step, "train", "pairs", {"loss": 0.5})
    assert path.stat().st_size == min(room, 5 * 85) or room > 5 * 85
    sink._file.room = 10**6
    sink.record(5, "train", "pairs", {"loss": 0.5})
    assert lines(path) == list(range(6))
    sink.close(False)
    assert lines(path) == list(range(6))


def test_a_disk_that_stays_full_is_told_at_the_end_and_the_next_process_goes_on(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink.record(0, "train", "pairs", {"loss": 0.5})
    sink._file = Disk(sink._file, 10)
    for step in (1, 2):
        sink.record(step, "train", "pairs", {"loss": 0.5})
    sink.close(False)
    assert caplog.text.count("cannot be written at present") == 1
    assert "lacks its last 2 lines" in caplog.text
    sink = JsonLines(path)
    sink.record(1, "train", "pairs", {"loss": 0.5})
    sink.close(False)
    first, cut, again = path.read_text().splitlines()
    assert json.loads(first)["step"] == 0 and json.loads(again)["step"] == 1 and len(cut) == 10


def test_tensorboard_goes_on_in_a_new_file(tmp_path, monkeypatch):
    """Its thread has ended; more figures than its queue would hold make no step wait."""
    write = EventsWriter.write_event
    full = [False]

    def writing(self, event):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, event)

    monkeypatch.setattr(EventsWriter, "write_event", writing)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    sink = TensorBoard(tmp_path)
    sink.record(0, "train", "pairs", {"loss": 0.5})
    full[0] = True
    for step in range(1, 100):
        sink.record(step, "train", "pairs", {"loss": 0.5})
        time.sleep(0.001)
    full[0] = False
    end = time.monotonic() + 20
    while sink._board.file_writer.event_writer._worker.is_alive() and time.monotonic() < end:
        sink.record(100, "train", "pairs", {"loss": 0.5})
        time.sleep(0.01)
        if len(list(tmp_path.iterdir())) > 1:
            break
    sink.record(101, "train", "pairs", {"loss": 0.5})
    sink.close(False)
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    steps = set()
    while content:  # a record: its length, a checksum, the event, a checksum
        (size,) = struct.unpack("<Q", content[:8])
        steps.add(Event.FromString(content[12 : 12 + size]).step)
        content = content[16 + size :]
    assert {0, 101} <= steps and 50 not in steps
