import subprocess
import sys

import msgpack
import numpy as np
import pytest
from data_samples import stored

from jaxvl.data.records import BadRecord, DataError, RecordSource, pack, unpack, write_records

N = 40


@pytest.fixture
def written(tmp_path):
    records = [stored(i, size=32) for i in range(N)]
    path = tmp_path / "records.array_record"
    assert write_records(path, records) == N
    return path, records


def test_records_come_back_as_they_were_written(written):
    path, records = written
    source = RecordSource(path, np.arange(N))
    assert len(source) == N and [source[i] for i in range(N)] == records


def test_an_index_selects_and_orders(written):
    path, records = written
    source = RecordSource(path, np.array([7, 0, 7, 39]))
    assert [r["label"] for r in source] == [107, 100, 107, 139]
    with pytest.raises(IndexError):
        source[4]


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_message_cut_short_is_a_bad_record(cut):
    with pytest.raises(BadRecord, match="record cannot be read") as error:
        unpack(pack(stored(0))[:-cut])
    assert error.value.cause == "record cannot be read"


@pytest.mark.parametrize("field", ["key", "image", "label", "style", "captions"])
def test_a_missing_field_is_named(field):
    whole = stored(0)
    del whole[field]
    with pytest.raises(BadRecord, match=f"record is incomplete: no '{field}'"):
        unpack(msgpack.packb(whole))


def test_a_message_that_is_no_record():
    with pytest.raises(BadRecord, match="incomplete"):
        unpack(msgpack.packb([1, 2, 3]))


def test_one_damaged_record_leaves_the_others_readable(written):
    path, records = written
    data = bytearray(path.read_bytes())
    data[data.find(records[7]["image"][40:60])] ^= 255
    path.write_bytes(data)
    source = RecordSource(path, np.arange(N))
    bad = []
    for i in range(N):
        try:
            assert source[i] == records[i]
        except BadRecord as error:
            bad.append((i, error.cause))
    assert bad == [(7, "record cannot be read")]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_file_cut_short_is_one_clear_error(written, keep):
    path, _ = written
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(
        DataError, match=r"records\.array_record: not a readable ArrayRecord file .* built anew"
    ):
        RecordSource(path, np.arange(N))


def test_an_index_beyond_the_file(written):
    path, _ = written
    with pytest.raises(DataError, match=f"holds {N} records, but record {N} is asked for"):
        RecordSource(path, np.arange(N + 1))


def test_reading_imports_nothing_that_changes_how_other_threads_import(written):
    """A record is read first while the step is traced, and Grain's modules are imported with
    another `__import__` in the place of Python's."""
    path, records = written
    code = (
        "import pathlib, sys, numpy\n"
        "from jaxvl.data.records import RecordSource\n"
        "before = set(sys.modules)\n"
        f"source = RecordSource(pathlib.Path({str(path)!r}), numpy.array([0]))\n"
        f"assert source[0]['key'] == {records[0]['key']!r}\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [name for name in eval(done.stdout) if name.startswith(("grain", "etils", "orbax"))]
