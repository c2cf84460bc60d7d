"""ArrayRecord files of the library's own writer, with maps in msgpack and with
`tf.train.Example`s."""

import pickle
import threading

import msgpack
import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_generated_pb2 as pb
from twelve_records import RECORDS, make_png, small_array, write_array_records, write_msgpack

from jaxvl.config import ConfigError
from jaxvl.data.records import BadRecord, DataError, pack, write_records
from jaxvl.data.sources import array_record
from jaxvl.data.sources.array_record import ArrayRecord
from jaxvl.data.sources.tf_example import parse_example


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "cache"))


def quiet(line):
    pass


def written(folder, contents, **options):
    write_array_records(folder / "a.array_record", contents)
    return ArrayRecord(str(folder / "a.array_record"), **options).open(quiet)


def array(value):
    return {"dtype": value.dtype.str, "shape": list(value.shape), "data": value.tobytes()}


def test_maps_in_msgpack_of_every_kind(tmp_path):
    rows = [
        {
            "image": make_png(i),
            "caption": f"ü {i}",
            "alts": ["a", f"{i}"],
            "frames": [make_png(i)] * 2,
            "n": -i,
            "score": i / 7,
            "emb": array(small_array(i)),
            "sound": b"fLaC",
        }
        for i in range(5)
    ]
    del rows[2]["score"]
    source = written(tmp_path, [msgpack.packb(row) for row in rows])
    assert {name: column.kind for name, column in source.columns.items()} == {
        "image": "image",
        "audio": "audio",
        "text": "text",
        "alts": "texts",
        "frames": "frames",
        "n": "int",
        "score": "float",
        "emb": "array",
    }
    for i, row in enumerate(rows):
        record = source[i]
        assert (
            record["image"] == row["image"]
            and record["text"] == row["caption"]
            and record["alts"] == row["alts"]
            and record["frames"] == row["frames"]
        )
        assert record["n"] == -i and record.get("score") == row.get("score")
        assert record["emb"].dtype == np.float32 and (record["emb"] == small_array(i)).all()


def test_the_records_of_the_demo_corpora(tmp_path):
    rows = [
        {
            "key": f"k{i}",
            "image": make_png(i),
            "label": i,
            "style": "s",
            "captions": {"en": [f"name {i}", ["k"]], "fr": [f"nom {i}", []]},
        }
        for i in range(4)
    ]
    write_records(tmp_path / "a.array_record", rows)
    columns = {
        "image": "image",
        "class_label": "label",
        "name/en": "captions.en.0",
        "keywords/en": "captions.en.1",
    }
    source = ArrayRecord(str(tmp_path / "a.array_record"), columns=columns).open(quiet)
    assert source[3] == {
        "image": make_png(3),
        "class_label": 3,
        "name/en": "name 3",
        "keywords/en": ["k"],
    }
    assert pack(rows[0])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.one_of(
            st.lists(st.binary(), min_size=1, max_size=3),
            st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
            st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=3),
        ),
        max_size=5,
    )
)
def test_examples_are_read_as_the_formats_own_message_writes_them(features):
    example = pb.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        kind = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}[
            type(values[0])
        ]
        kind.value.extend(values)
    found = parse_example(example.SerializeToString(), "here")
    assert {
        name: list(value) if isinstance(value, (list, np.ndarray)) else [value]
        for name, value in found.items()
    } == features


def test_examples_that_are_none():
    assert parse_example(b"", "here") == {}
    for content in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"no example at all"):
        with pytest.raises(BadRecord, match="here: no tf.train.Example"):
            parse_example(content, "here")


def test_payloads_that_are_neither(tmp_path):
    with pytest.raises(
        DataError,
        match=r"its records are pickled objects, which may run code when they are read; write them as msgpack",
    ):
        written(tmp_path, [pickle.dumps({"image": b"x"})])
    for content in (b"", b"garbage", msgpack.packb([1, 2])):
        with pytest.raises(
            DataError, match=r"its records are neither maps in msgpack nor tf.train.Example"
        ):
            written(tmp_path, [content])
    with pytest.raises(DataError, match=r"none of 32 records can be read"):
        written(tmp_path, [msgpack.packb({"text": "a"})], payload="example")


def test_one_damaged_record_is_one_bad_record(tmp_path):
    good = msgpack.packb({"text": "a", "n": 1})
    objects = msgpack.packb({"text": "a", "n": {"dtype": "|O", "shape": [1], "data": b"12345678"}})
    unfit = msgpack.packb({"text": "a", "n": {"dtype": "<f4", "shape": [9], "data": b"1234"}})
    bad_text = msgpack.packb({"text": b"\xff\xfe", "n": 1})
    source = written(
        tmp_path,
        [
            good,
            good[:-2],
            b"",
            msgpack.packb(3),
            objects,
            unfit,
            bad_text,
            msgpack.packb({"text": 4.5, "n": "x"}),
            good,
        ],
    )
    caused = {}
    for i in range(9):
        try:
            source.read(i)
        except BadRecord as error:
            caused[i] = error.cause
    broken = dict.fromkeys(range(1, 6), "record cannot be read")
    assert caused == {**broken, 6: "text is not UTF-8", 7: "number cannot be read"}
    assert source[8] == {"text": "a", "n": 1}


def test_a_file_that_is_cut_short_or_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record, "LOOK_AGAIN", -1.0)
    config = write_msgpack(tmp_path)
    file = tmp_path / "1.array_record"
    whole = file.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match="1.array_record: not a whole ArrayRecord file"):
            config.open(quiet)
    file.write_bytes(whole)
    source = config.open(quiet)
    file.write_bytes(whole + b"more")
    with pytest.raises(DataError, match="1.array_record: was replaced or is still being written"):
        source.read(11)
    file.unlink()
    with pytest.raises(DataError, match="1.array_record: is not there any more"):
        source.read(11)
    assert source[0]["text"] == RECORDS[0]["text"]
    with pytest.raises(
        ConfigError, match="is remote, but ArrayRecord files are read from local disks"
    ):
        ArrayRecord("s3://bucket/a.array_record").open(quiet)


def test_files_stay_open_up_to_a_bound_and_numbers_run_through(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record, "MOST_OPEN", 2)
    sizes = [3, 0, 1, 5, 2]
    n = 0
    for file, size in enumerate(sizes):
        write_array_records(
            tmp_path / f"{file}.array_record", [msgpack.packb({"n": n + i}) for i in range(size)]
        )
        n += size
    source = ArrayRecord(str(tmp_path)).open(quiet)
    assert source.shards().tolist() == [3, 1, 5, 2] and len(source) == 11
    before = threading.active_count()
    for i in np.random.default_rng(0).permutation(11).tolist() * 5:
        assert source[i] == {"n": i}
        assert len(source._reader._open) <= 2
    assert threading.active_count() <= before + 1


def test_grouped_records_are_read_as_well(tmp_path):
    writer = array_record_module.ArrayRecordWriter(
        str(tmp_path / "a.array_record"), "group_size:8,zstd:3"
    )
    for i in range(50):
        writer.write(msgpack.packb({"n": i}))
    writer.close()
    source = ArrayRecord(str(tmp_path / "a.array_record")).open(quiet)
    assert [source[i]["n"] for i in range(50)] == list(range(50))
