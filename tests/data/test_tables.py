"""Tables: written whole or not at all, read as columns of the source that they are of."""

import json
import pickle

import numpy as np
import pytest

from jaxvl.config import ConfigError
from jaxvl.data.batches import Batches
from jaxvl.data.config import DataConfig
from jaxvl.data.fields.numbers import Array, Label
from jaxvl.data.samplers.few_shot import FewShot
from jaxvl.data.samplers.per_cluster import PerCluster
from jaxvl.data.samplers.with_negatives import WithNegatives
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.in_memory import InMemory
from jaxvl.data.sources.selected import Selected
from jaxvl.data.tables import (
    PRESENT,
    Tabled,
    named_table,
    read_table,
    remove_older,
    versions,
    write_table,
)

N = 60
DRAW = np.random.default_rng(0)
CLUSTERS = DRAW.integers(0, 3, N).astype(np.int32)
NEGATIVES = DRAW.integers(0, N, (N, 2)).astype(np.int32)
FEATURES = DRAW.normal(size=(N, 2, 3)).astype(np.float16)
SOURCE_COLUMNS = {"image": Column("image"), "class_label": Column("class")}


class Counting(InMemory):
    """Records whose pictures are counted as they are read."""

    def __init__(self, fingerprint="f1"):
        rows = [{"image": b"picture", "class_label": i % 5} for i in range(N)]
        super().__init__("counted", SOURCE_COLUMNS, rows, fingerprint)
        self.pictures = 0
        self.reads = 0

    def read(self, i, columns=None):
        self.reads += 1
        self.pictures += columns is None or "image" in columns
        return super().read(i, columns)


def write(folder, columns, step=3, source="f1", **more):
    write_table(
        folder / str(step),
        columns,
        records=N,
        source=source,
        made_from={"job": "test"},
        step=step,
        **more,
    )
    return read_table(folder, step)


def tabled(folder, source=None, **columns):
    """A source with a table of these columns, named `t`."""
    numbers = [name for name in columns if name == "negative"]
    return Tabled(source or Counting(), {"t": write(folder, columns, numbers=numbers)})


def test_a_table_is_memory_mapped_and_says_what_it_is(tmp_path):
    table = write(tmp_path, {"cluster": CLUSTERS, "features": FEATURES})
    for name, values in {"cluster": CLUSTERS, "features": FEATURES}.items():
        assert isinstance(table.array(name), np.memmap)
        np.testing.assert_array_equal(table.array(name), values)
        assert table.columns[name].shape == values.shape
        assert table.columns[name].dtype == values.dtype.str
    about = json.loads((tmp_path / "3" / "table.json").read_text())
    assert about["source"] == "f1" and about["made_from"] == {"job": "test"} and about["step"] == 3
    assert named_table(str(tmp_path), "tables.t") == table
    with pytest.raises(ConfigError, match=r"^tables\.t: .*holds no table"):
        named_table(str(tmp_path / "nothing"), "tables.t")


def test_blocks_of_rows_are_the_whole_column_and_its_hash(tmp_path):
    blocks = (FEATURES[start : start + 7] for start in range(0, N, 7))
    table = write(tmp_path / "a", {"features": blocks})
    np.testing.assert_array_equal(table.array("features"), FEATURES)
    assert table.content == write(tmp_path / "b", {"features": FEATURES}).content
    other = FEATURES.copy()
    other[-1, -1, -1] += 1
    assert table.content != write(tmp_path / "c", {"features": other}).content


@pytest.mark.parametrize("rows", [N - 1, N + 1])
def test_a_column_of_another_length_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="cluster: "):
        write(tmp_path, {"cluster": np.zeros(rows, np.int32)})
    assert read_table(tmp_path) is None


def test_one_that_is_cut_short_is_no_table_and_does_not_stand_in_the_way(tmp_path):
    def blocks():
        yield FEATURES[:7]
        raise KeyboardInterrupt

    before = write(tmp_path, {"cluster": CLUSTERS}, step=1)
    mapped = before.array("cluster")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"cluster": CLUSTERS + 1, "features": blocks()}, step=2)
    assert versions(tmp_path) == [1]
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"cluster": CLUSTERS + 1, "features": blocks()}, step=1)
    assert versions(tmp_path) == [], "the table of other columns is not taken for this one"
    np.testing.assert_array_equal(mapped, CLUSTERS, "who reads the old one goes on")
    after = write(tmp_path, {"cluster": CLUSTERS + 1}, step=1)
    np.testing.assert_array_equal(after.array("cluster"), CLUSTERS + 1)
    parts = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.part")]
    assert sorted(parts) == ["1/features.npy.part", "2/cluster.npy.part", "2/features.npy.part"]


def test_columns_are_asked_for_in_turn(tmp_path):
    """So that columns which are made together need no more memory than a block."""
    asked = []

    def blocks(name):
        for start in range(0, N, 7):
            asked.append(name)
            yield FEATURES[start : start + 7]

    table = write(tmp_path, {"a": blocks("a"), "b": blocks("b")})
    assert asked == ["a", "b"] * -(-N // 7)
    np.testing.assert_array_equal(table.array("b"), FEATURES)


def test_versions(tmp_path):
    for step in (0, 2, 4, 10):
        write(tmp_path, {"cluster": CLUSTERS}, step=step)
    assert versions(tmp_path) == [0, 2, 4, 10]
    assert [read_table(tmp_path, step).step for step in (0, 1, 9, 10, None)] == [0, 0, 4, 10, 10]
    remove_older(tmp_path, 4)
    assert versions(tmp_path) == [4, 10] and sorted(p.name for p in tmp_path.iterdir()) == [
        "10",
        "4",
    ]


def test_columns_of_a_table_are_columns_of_the_source(tmp_path):
    source = tabled(tmp_path, cluster=CLUSTERS, features=FEATURES)
    assert {"t/cluster", "t/features", "image", "class_label"} == set(source.columns)
    assert (
        source.columns["t/cluster"].kind == "int" and source.columns["t/features"].kind == "array"
    )
    record = source.read(7, ("t/features", "t/cluster"))
    assert record["t/cluster"] == CLUSTERS[7] and type(record["t/cluster"]) is int
    np.testing.assert_array_equal(record["t/features"], FEATURES[7])
    assert source.source.reads == 0, "the source itself is not asked"
    assert source.read(7)["image"] == b"picture"
    assert set(source.read(7, ("class_label",))) == {"class_label"}
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.column("t/cluster"), CLUSTERS)
    assert len(pickle.dumps(source.column("t/features"))) > FEATURES.nbytes
    assert b"_arrays" not in pickle.dumps(source), "a worker maps the arrays anew"


def test_a_table_of_one_column_has_its_name(tmp_path):
    assert "t" in tabled(tmp_path, cluster=CLUSTERS).columns


def test_a_table_of_another_source_is_refused_by_name(tmp_path):
    write(tmp_path / "clusters", {"cluster": CLUSTERS}, source="f2")
    with pytest.raises(ConfigError, match=r"^tables\.t: .*clusters' is of the records of another"):
        Tabled(Counting(), {"t": read_table(tmp_path / "clusters")})
    table = write(tmp_path / "image", {"cluster": CLUSTERS})
    with pytest.raises(ConfigError, match=r"^tables\.image: gives the column 'image', which"):
        Tabled(Counting(), {"image": table})


def test_the_fingerprint_is_of_the_content(tmp_path):
    one, same = (tabled(tmp_path / name, cluster=CLUSTERS).fingerprint for name in "ab")
    other = tabled(tmp_path / "c", cluster=CLUSTERS + 1).fingerprint
    assert one == same != other
    assert Tabled(Counting(), {}).fingerprint == "f1"
    table = read_table(tmp_path / "a")
    assert Tabled(Counting(), {"t": table}, {"t": "own"}).fingerprint == "f1+t:own"


def test_records_without_values(tmp_path):
    present = np.arange(N) % 2 == 0
    source = tabled(tmp_path, features=FEATURES, **{PRESENT: present})
    assert source.columns["t"].optional
    np.testing.assert_array_equal(source.present("t"), present)
    assert "t" in source.read(2) and "t" not in source.read(3)
    config = data(dict(x=Array("t", (2, 3))))
    assert len(config.select(source)) == N // 2
    assert not tabled(tmp_path, cluster=CLUSTERS, **{PRESENT: present | True}).columns["t"].optional


# --------------------------------------------------------------------------------------------------
# Samplers and fields


class NoTokenizer:
    eos_id = 1
    pad_id = 0


def data(fields, batch=6, **more):
    return DataConfig(source=None, batch=batch, fields=fields, **more)


def test_training_from_cached_features_reads_no_picture(tmp_path):
    source = tabled(tmp_path, cluster=CLUSTERS, features=FEATURES)
    fields = dict(x=Array("t/features", (2, 3)), cluster=Label("t/cluster"))
    config = data(fields)
    batches = Batches(config, config.select(source), NoTokenizer(), seed=0)
    try:
        for i in range(10):
            batch = batches[i]
            records = batches.order(np.arange(6 * i, 6 * i + 6))
            np.testing.assert_array_equal(batch["x"], FEATURES[records].astype(np.float32))
            np.testing.assert_array_equal(batch["cluster"], CLUSTERS[records])
    finally:
        batches.close()
    assert source.source.reads == source.source.pictures == 0


def test_batches_by_a_table_never_mix_clusters(tmp_path):
    source = tabled(tmp_path, cluster=CLUSTERS)
    order = PerCluster("t", 5).order(source, 0)
    whole = (np.bincount(CLUSTERS) // 5).sum()
    for epoch in order(np.arange(6 * order.epoch)).reshape(6, -1, 5):
        clusters = CLUSTERS[epoch]
        assert (clusters == clusters[:, :1]).all(1).sum() >= whole
    even = np.arange(N, dtype=np.int32) % 4  # 15 records each
    order = PerCluster("t", 5).order(tabled(tmp_path / "even", cluster=even), 0)
    clusters = even[order(np.arange(6 * order.epoch)).reshape(-1, 5)]
    assert (clusters == clusters[:, :1]).all(), "no batch is mixed where all clusters are whole"


def test_few_shot_by_cleaned_labels(tmp_path):
    labels = np.where(np.arange(N) < 10, -1, CLUSTERS)
    chosen = FewShot(4, "t/label").order(
        tabled(tmp_path, label=labels, keep=(labels >= 0).astype(np.int8)), 0
    )
    assert np.bincount(labels[chosen.chosen]).tolist() == [4, 4, 4]


def test_negatives_are_numbers_of_the_records_that_are_left(tmp_path):
    source = tabled(tmp_path, negative=NEGATIVES)
    order = WithNegatives("t").order(source, 0)
    groups = order(np.arange(3 * N)).reshape(-1, 3)
    np.testing.assert_array_equal(groups[:, 1:], NEGATIVES[groups[:, 0]])
    kept = np.flatnonzero(np.arange(N) % 3 > 0)
    some = Selected(source, kept, "some")
    column = some.column("t")
    there = np.isin(NEGATIVES[kept], kept)
    assert there.any() and not there.all()
    np.testing.assert_array_equal(kept[column[there]], NEGATIVES[kept][there])
    assert (column[~there] == -1).all()
    groups = WithNegatives("t").order(some, 0)(np.arange(3 * len(kept))).reshape(-1, 3)
    of_table = np.where(column >= 0, kept[column], -1)[groups[:, 0]]
    found = kept[groups[:, 1:]]
    np.testing.assert_array_equal(found[of_table >= 0], of_table[of_table >= 0])


def test_records_are_left_out_by_a_column(tmp_path):
    keep = (np.arange(N) % 3 > 0).astype(np.int8)
    source = tabled(tmp_path, label=CLUSTERS, keep=keep)
    config = data(dict(y=Label("t/label")), keep="t/keep")
    used = config.select(source)
    assert len(used) == keep.sum() and used.fingerprint != source.fingerprint
    np.testing.assert_array_equal(used.column("t/label"), CLUSTERS[keep > 0])
    with pytest.raises(ConfigError, match=r"^keep: 't/kepe' is no column of integers .*'t/keep'"):
        data(dict(y=Label("t/label")), keep="t/kepe").select(source)
    with pytest.raises(ConfigError, match="^keep: 't' keeps no record"):
        data(dict(y=Label("class_label")), keep="t").select(
            tabled(tmp_path / "none", keep=np.zeros(N, np.int8))
        )
