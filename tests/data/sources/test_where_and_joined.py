"""A filter by a column, and columns of another source by a key."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from twelve_records import write_huggingface

from jaxvl.config import ConfigError, resolve
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.jsonl import JsonLines
from jaxvl.data.sources.pairs import PAIR, find_pairs, is_sorted, pairs_of_hex, pairs_of_keys

UIDS = [f"{i * 0x1234567890ABCDEF1234567890ABCDEF % 2**128:032x}" for i in range(1, 41)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    table = {
        "uid": UIDS,
        "text": [f"t{i}" for i in range(40)],
        "split": ["train", "val"] * 20,
        "score": [i / 40 if i % 5 else None for i in range(40)],
        "label": list(range(40)),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=7)
    return str(tmp_path / "a.parquet")


def quiet(line):
    pass


def where(file, log=quiet, **options):
    node = {"source": {"name": "parquet", "files": file}, **options}
    return resolve(SOURCES["where"], node).open(log)


def numbers(source):
    return [source.read(i, ["class_label"])["class_label"] for i in range(len(source))]


def test_values_and_bounds(file):
    assert numbers(where(file, column="split", among=("val",))) == list(range(1, 40, 2))
    assert numbers(where(file, column="class_label", among=(3, 5, 99))) == [3, 5]
    assert numbers(where(file, column="score", low=0.5)) == [i for i in range(20, 40) if i % 5]
    assert numbers(where(file, column="score", low=0.1, high=0.2)) == [4, 6, 7, 8]
    assert numbers(where(file, column="class_label", high=2)) == [0, 1, 2]
    said = []
    source = where(file, said.append, column="split", among=("train",))
    assert said[-1] == f'{file}: 20 of 40 records have split among ["train"]'
    assert source.shards().tolist() == [4, 3, 4, 3, 4, 2] and source.column("text").tolist() == [
        f"t{i}" for i in range(0, 40, 2)
    ]
    assert pickle.loads(pickle.dumps(source))[3]["text"] == "t6"
    assert where(file, column="split", among=("val",)).fingerprint != source.fingerprint
    assert where(file, column="split", among=("train",)).fingerprint == source.fingerprint


def test_classes_by_their_names(tmp_path):
    config = write_huggingface(tmp_path)
    node = {"source": {"name": "huggingface", "path": config.path}, "column": "class_label"}
    source = resolve(SOURCES["where"], {**node, "among": ("owl", 0)}).open(quiet)
    assert numbers(source) == [0, 0, 0, 0, 2, 2, 2, 2]
    with pytest.raises(
        ConfigError, match=r"^among: 'owls' is no class of 'class_label'; did you mean 'owl'\?"
    ):
        resolve(SOURCES["where"], {**node, "among": ("owls",)}).open(quiet)


def test_a_subset_file_of_datacomp(file, tmp_path):
    kept = [3, 17, 4, 39]
    pairs = np.array(
        [(int(UIDS[i][:16], 16), int(UIDS[i][16:], 16)) for i in kept] + [(7, 7)], np.dtype("u8,u8")
    )
    np.save(tmp_path / "subset.npy", np.sort(pairs))
    np.save(tmp_path / "unsorted.npy", pairs)
    for name in ("subset.npy", "unsorted.npy"):
        assert numbers(where(file, column="uid", subset=str(tmp_path / name))) == sorted(kept)
    np.save(tmp_path / "ints.npy", np.arange(4))
    with pytest.raises(
        DataError,
        match=r"ints.npy: holds int64 of shape \(4,\); a subset is one list of dtype u8,u8",
    ):
        where(file, column="uid", subset=str(tmp_path / "ints.npy"))
    np.save(tmp_path / "objects.npy", np.array([{1}], object))
    with pytest.raises(DataError, match="objects.npy: is no .npy file of uids"):
        where(file, column="uid", subset=str(tmp_path / "objects.npy"))
    np.save(tmp_path / "none.npy", pairs[-1:])
    with pytest.raises(DataError, match="no record has uid in a subset of 1 "):
        where(file, column="uid", subset=str(tmp_path / "none.npy"))


def test_options_that_do_not_fit(file):
    for options, message in (
        (
            dict(column="splti", among=("a",)),
            r"^column: .* has no column 'splti'; did you mean 'split'\?",
        ),
        (
            dict(column="split"),
            r"column: 'split': must be compared by one of among, low and high, or subset",
        ),
        (dict(column="split", among=("a",), low=1.0), r"must be compared by one of"),
        (dict(column="score", low=2.0, high=1.0), r"low: 2.0 must not be above high, 1.0"),
        (dict(column="split", low=1.0), r"^low: 'split' holds no numbers"),
        (dict(column="uid", subset="no.npy"), r"subset: no file 'no.npy'"),
    ):
        with pytest.raises(ConfigError, match=message):
            where(file, **options)
    with pytest.raises(DataError, match=r'no record has split among \["test"\]'):
        where(file, column="split", among=("test",))
    with pytest.raises(ConfigError, match=r"^source.files: "):
        where(file + "/*", column="split", among=("test",))


def test_a_column_that_has_to_be_read_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxvl.data.sources.table.MOST_PARSED", 0)
    monkeypatch.setattr("jaxvl.data.sources.pairs.BLOCK", 3)
    rows = [json.dumps({"text": f"{i}", "kind": "ab"[i % 2]}) for i in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, "{"]))
    node = {
        "source": {"name": "jsonl", "files": str(tmp_path / "a.jsonl")},
        "column": "kind",
        "among": ("b",),
    }
    source = resolve(SOURCES["where"], node).open(quiet)
    assert [source[i]["text"] for i in range(len(source))] == ["1", "3", "5", "7", "9"]


# --------------------------------------------------------------------------------------------------
# Joined


def joined(file, other, log=quiet, **options):
    node = {
        "source": {"name": "parquet", "files": file},
        "other": {"name": "jsonl", "files": other},
        "key": "uid",
        **options,
    }
    return resolve(SOURCES["joined"], node).open(log)


@pytest.fixture
def other(tmp_path):
    """New captions for every third record, in another order; one key twice."""
    rows = [{"uid": UIDS[i], "recaption": f"new {i}", "rank": i} for i in reversed(range(0, 40, 3))]
    rows += [
        {"uid": UIDS[0], "recaption": "again", "rank": -1},
        {"uid": "nobody's", "recaption": "x", "rank": 9},
        {"recaption": "no key", "rank": 9},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "b.jsonl")


def test_columns_come_by_the_key(file, other):
    said = []
    source = joined(file, other, said.append)
    assert said[-1] == f"{file}: 14 of 40 records have a partner in {other}"
    assert [source.read(i, ["class_label", "recaption"]) for i in range(len(source))] == [
        {"class_label": i, "recaption": f"new {i}"} for i in range(0, 40, 3)
    ]
    assert (
        source[1]["text"] == "t3"
        and source[1]["uid"] == UIDS[3]
        and source.column("rank").tolist() == list(range(0, 40, 3))
    )
    whole = joined(file, other, keep=True)
    assert (
        len(whole) == 40
        and whole.columns["recaption"].optional
        and "recaption" not in whole[1]
        and whole[39]["recaption"] == "new 39"
    )
    assert whole.present("rank").tolist() == [i % 3 == 0 for i in range(40)] and whole.column(
        "rank"
    ).tolist() == [i if i % 3 == 0 else 0 for i in range(40)]
    assert whole.read(3, ["recaption"]) == {"recaption": "new 3"} and whole.shards().sum() == 40
    assert pickle.loads(pickle.dumps(whole))[3] == whole[3]
    assert whole.fingerprint == joined(file, other, keep=True).fingerprint


def test_keys_of_another_name_and_numbers_as_texts(file, tmp_path):
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"id": str(i), "extra": f"e{i}"}) for i in range(40))
    )
    source = joined(file, str(tmp_path / "c.jsonl"), key="class_label", other_key="id")
    assert len(source) == 40 and source[11]["extra"] == "e11"
    for options, message in (
        (
            dict(key="uid"),
            r"^key: .*c.jsonl has no column 'uid'; did you mean 'id'\? \(columns: id, extra\)",
        ),
        (dict(key="udi"), r"^key: .*a.parquet has no column 'udi'; did you mean 'uid'\?"),
        (dict(key="class_label", other_key="di"), r"^other_key: .*c.jsonl has no column 'di'"),
        (
            dict(key="score", other_key="id"),
            r"^key: 'score' of .* is of kind float; must be one of text, int, class",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            joined(file, str(tmp_path / "c.jsonl"), **options)
    (tmp_path / "d.jsonl").write_text(json.dumps({"uid": UIDS[0], "text": "t"}))
    with pytest.raises(
        ConfigError,
        match=r"^other: has the column 'text', which source has as well; name it otherwise in its columns",
    ):
        joined(file, str(tmp_path / "d.jsonl"))
    (tmp_path / "e.jsonl").write_text(json.dumps({"uid": "x", "more": "t"}))
    with pytest.raises(DataError, match=r"no record has a 'uid' that .*e.jsonl has as 'uid'"):
        joined(file, str(tmp_path / "e.jsonl"))
    assert JsonLines(str(tmp_path / "e.jsonl")).open(quiet)[0] == {"uid": "x", "more": "t"}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.uint64, st.tuples(st.integers(0, 30), st.just(2)), elements=st.integers(0, 3)),
    hnp.arrays(np.uint64, (20, 2), elements=st.integers(0, 3)),
)
def test_pairs_are_found_as_in_a_set(there, wanted):
    pairs = (
        np.sort(np.array([tuple(row) for row in there], PAIR)) if len(there) else np.zeros(0, PAIR)
    )
    places = find_pairs(pairs, np.array([tuple(row) for row in wanted], PAIR))
    known = pairs.tolist()
    assert is_sorted(pairs)
    assert [
        known.index(tuple(row)) if tuple(row) in known else -1 for row in wanted.tolist()
    ] == places.tolist()


def test_keys_as_pairs():
    pairs, valid = pairs_of_hex(["0" * 31 + "f", "F" * 32, "g" * 32, "ab", None, "0x" + "1" * 30])
    assert valid.tolist() == [True, True, False, False, False, False]
    assert pairs[:2].tolist() == [(0, 15), (2**64 - 1, 2**64 - 1)]
    assert pairs_of_keys([7])[0] == pairs_of_keys(["7"])[0] != pairs_of_keys(["8"])[0]
