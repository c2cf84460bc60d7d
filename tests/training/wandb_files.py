"""Reads what W&B keeps of an offline run: records of Protocol Buffers in the log format of
LevelDB."""

import struct
import time

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = 7


def finished(workdir):
    """The records of every run in `workdir`, oldest first. W&B's own process may write the last
    ones a little later."""
    paths = sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb"))
    deadline = time.monotonic() + 30
    while True:
        runs = [list(records(path)) for path in paths]
        ended = [bool(run) and run[-1].WhichOneof("record_type") == "exit" for run in runs]
        if all(ended) or time.monotonic() > deadline:
            return runs
        time.sleep(0.2)


def records(path):
    """The records of a `run-ID.wandb`, in order."""
    # the file begins with seven bytes of its own
    data = path.read_bytes()
    place = HEADER
    parts = []
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        parts.append(data[place + HEADER : place + HEADER + length])
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record
