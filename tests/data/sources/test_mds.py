"""MDS shards as mosaicml-streaming 0.13 wrote them (`mds/write_mds.py`), and damaged ones."""

import gzip
import io
import json
import pathlib
import pickle
import shutil
import struct

import numpy as np
import object_store
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from twelve_records import HERE, RECORDS, make_png

from jaxvl import paths
from jaxvl.config import ConfigError
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import mds_values
from jaxvl.data.sources.mds import Mds


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quiet(line):
    pass


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder that has every encoding."""
    return pathlib.Path(shutil.copytree(HERE / "mds" / "all", tmp_path / "all"))


def change_index(folder, change):
    index = json.loads((folder / "index.json").read_text())
    change(index["shards"][0])
    (folder / "index.json").write_text(json.dumps(index))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_every_encoding_of_the_formats_own_writer(folder):
    said = []
    source = Mds(str(folder)).open(said.append)
    kinds = {name: column.kind for name, column in source.columns.items()}
    assert kinds == {
        "photo": "image",
        "drawing": "image",
        "plain": "image",
        "clip": "frames",
        "text": "text",
        "captions": "texts",
        "class_label": "class",
        "small": "int",
        "score": "float",
        "exact": "float",
        "big": "int",
        "fixed": "array",
        "shaped": "array",
        "free": "array",
    }
    assert (
        len(said) == 1
        and "thing (is pickled, and unpickling may run code; write it as json, str or ndarray)"
        in said[0]
        and "code (bytes)" in said[0]
    )
    for i in range(3):
        record = source[i]
        want = pixels(make_png(20 * i))
        assert (pixels(record["drawing"]) == want).all() and (pixels(record["plain"]) == want).all()
        assert np.abs(pixels(record["photo"]).astype(int) - want).max() < 12 and record[
            "photo"
        ].startswith(b"\xff\xd8\xff")
        assert len(record["clip"]) == i + 1 and all(
            (pixels(frame) == want).all() for frame in record["clip"]
        )
        assert record["text"] == f"text {i}" and record["captions"] == [f"a {i}", "ü"]
        assert (
            record["class_label"] == -i
            and record["small"] == 250 + i
            and record["big"] == 10**20 + i
        )
        assert record["score"] == float(np.float32(i / 3)) and record["exact"] == i / 3
        assert record["fixed"].tolist() == [i, i + 1, i + 2] and record["fixed"].dtype == np.float32
        assert (
            record["shaped"].shape == (2, i + 1)
            and record["shaped"].dtype == np.int16
            and (record["shaped"] == i).all()
        )
        assert (
            record["free"].shape == (150 * (i + 1), 2)
            and (record["free"].ravel() == np.arange(300 * (i + 1))).all()
        )
    code = Mds(str(folder), columns={"code": "code"}, kinds={"code": "image"}).open(quiet)
    assert code[2] == {"code": b"\2" * 5}


def test_pickles_are_refused_with_the_reason(folder):
    with pytest.raises(
        ConfigError,
        match=r"^columns.x: 'thing' is pickled, and unpickling may run code; write it as json, str or ndarray$",
    ):
        Mds(str(folder), columns={"x": "thing"}).open(quiet)
    with pytest.raises(ConfigError, match=r"^columns.x: 'thing' is pickled"):
        Mds(str(folder), columns={"x": "thing"}, kinds={"x": "text"}).open(quiet)
    change_index(
        folder,
        lambda shard: shard["column_encodings"].__setitem__(
            shard["column_names"].index("code"), "secret"
        ),
    )
    with pytest.raises(
        ConfigError, match=r"^columns.x: 'code' is encoded as 'secret', which is not read"
    ):
        Mds(str(folder), columns={"x": "code"}).open(quiet)


def test_parts_of_json(tmp_path):
    write(
        tmp_path / "m",
        {"meta": "json"},
        [
            {
                "meta": json.dumps(
                    {"text": f"t{i}", "deep": {"n": i}, "maybe": None if i else "x"}
                ).encode()
            }
            for i in range(3)
        ],
    )
    source = Mds(str(tmp_path / "m"), columns={"text": "meta.text", "n": "meta.n"}).open
    with pytest.raises(ConfigError, match="no column 'meta.n'"):
        source(quiet)
    source = Mds(str(tmp_path / "m"), columns={"text": "meta.text", "maybe": "meta.maybe"}).open(
        quiet
    )
    assert source[0] == {"text": "t0", "maybe": "x"} and source[2] == {"text": "t2"}
    assert source.columns["maybe"].optional


@pytest.mark.parametrize(
    "name", ["../all/shard.00000.mds", "/etc/passwd", "a/../../b", "s3://bucket/shard", "a\\b", ""]
)
def test_a_shard_outside_of_the_folder_is_refused(folder, name):
    change_index(folder, lambda shard: shard["raw_data"].__setitem__("basename", name))
    with pytest.raises(
        DataError, match="index.json: names the shard .*, which is not inside of the folder"
    ):
        Mds(str(folder)).open(quiet)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda shard: shard.__setitem__("version", 3),
            r"holds shards of format 'mds', version 3; must be 'mds', version 2",
        ),
        (lambda shard: shard.__setitem__("format", "json"), r"holds shards of format 'json'"),
        (lambda shard: shard.pop("samples"), r"index.json: is damaged \(KeyError: 'samples'\)"),
        (lambda shard: shard.__setitem__("samples", -1), r"said to have -1 samples"),
        (lambda shard: shard.__setitem__("samples", 4), r"its offsets do not fit 4 samples"),
        (lambda shard: shard.__setitem__("samples", 10**6), r"is too short for 1,000,000 samples"),
        (
            lambda shard: shard["column_sizes"].__setitem__(
                shard["column_names"].index("label"), 4
            ),
            r"column 'label' \(int\) is said to have 4 bytes, not 8",
        ),
        (lambda shard: shard["column_names"].pop(), r"index.json: is damaged \(ValueError"),
        (
            lambda shard: shard["raw_data"].__setitem__("bytes", 5),
            r"shard.00000.mds: has 18,235 bytes, but 5 by index.json; it was cut short or replaced",
        ),
    ],
)
def test_an_index_that_does_not_fit_is_told(folder, change, message):
    change_index(folder, change)
    with pytest.raises(DataError, match=message):
        Mds(str(folder)).open(quiet).read(0)


def test_files_that_are_not_there(folder):
    with pytest.raises(
        ConfigError, match=r"^path: .* has no index.json, so it is no folder of MDS shards"
    ):
        Mds(str(folder.parent)).open(quiet)
    (folder / "index.json").write_bytes(b"{")
    with pytest.raises(DataError, match="index.json: is damaged"):
        Mds(str(folder)).open(quiet)
    shutil.copy(HERE / "mds" / "all" / "index.json", folder)
    (folder / "shard.00000.mds").unlink()
    with pytest.raises(DataError, match="shard.00000.mds: is not there, but index.json names it"):
        Mds(str(folder)).open(quiet)


def test_a_shard_that_changes_during_a_run(folder, monkeypatch):
    monkeypatch.setattr("jaxvl.data.sources.range_files.LOOK_AGAIN", -1.0)
    source = Mds(str(folder), columns={"text": "caption"}).open(quiet)
    assert source[0] == {"text": "text 0"}
    with open(folder / "shard.00000.mds", "ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="was replaced or is still being written"):
        source.read(1)


def test_compressed_shards_are_unpacked_once_into_the_cache(tmp_path, cache):
    shutil.copytree(HERE / "mds" / "zstd", tmp_path / "m")
    before = sorted((tmp_path / "m").iterdir())
    source = Mds(str(tmp_path / "m")).open(quiet)
    assert [source[i]["text"] for i in range(12)] == [r["text"] for r in RECORDS]
    assert sorted((tmp_path / "m").iterdir()) == before, "nothing is written beside the data"
    unpacked = sorted((cache / "unpacked" / "mds").iterdir())
    plain = sorted((HERE / "mds" / "plain").glob("*.mds"))
    assert len(unpacked) == len(plain) and all(file.suffix == ".mds" for file in unpacked)
    stamps = [file.stat().st_mtime_ns for file in unpacked]
    again = pickle.loads(pickle.dumps(source))
    assert again[11] == source[11] and [file.stat().st_mtime_ns for file in unpacked] == stamps


@pytest.mark.parametrize("compression", ["zstd", "gz", "gz:9", "bz2", "br", "snappy"])
def test_compressions(tmp_path, compression):
    import bz2

    packs = {"zstd": zstandard.compress, "gz": gzip.compress, "bz2": bz2.compress}
    name = compression.split(":")[0]
    write(
        tmp_path / "m",
        {"text": "str"},
        [{"text": b"hello"}] * 3,
        packs.get(name, bytes),
        compression,
    )
    if name not in packs:
        with pytest.raises(
            DataError, match=f"is compressed by '{name}'; zstd, gz and bz2 are read"
        ):
            Mds(str(tmp_path / "m")).open(quiet)
        return
    assert Mds(str(tmp_path / "m")).open(quiet)[2] == {"text": "hello"}


@pytest.mark.parametrize(
    "pack, message",
    [
        (
            lambda content: zstandard.compress(content + bytes(10**8)),
            r"unpacks to more than \d+ bytes, must be",
        ),
        (lambda content: zstandard.compress(content[:-3]), r"unpacks to \d+ bytes, must be"),
        (lambda content: zstandard.compress(content)[:-5], r"is damaged|unpacks to"),
        (lambda content: b"no zstd at all", r"is damaged"),
    ],
)
def test_a_compressed_shard_of_another_size_is_refused(tmp_path, cache, pack, message):
    write(tmp_path / "m", {"text": "str"}, [{"text": b"hello"}] * 3, pack, "zstd")
    with pytest.raises(DataError, match=message):
        Mds(str(tmp_path / "m")).open(quiet).read(0)
    assert not list((cache / "unpacked" / "mds").iterdir())


def test_values_that_are_no_whole_ones_are_bad_records(tmp_path):
    bad = {
        "str": [b"\xff\xfe"],
        "json": [b"{", b"[" * 100_000],
        "str_int": [b"x"],
        "str_float": [b""],
        "list[png]": [b"", b"\0\0\0\0\xff\xff\xff\xff"],
        "jpeg_array": [b"\1\0", b"\1\0\0\0\xff\0\0\0"],
        "ndarray": [b"", b"\1\1\1", b"\x22\x04\x03"],
        "ndarray:uint8": [b"", b"\x08\2\2\0"],
        "pil": [
            b"",
            struct.pack("<III", 2**31, 2**31, 3) + b"RGB",
            struct.pack("<III", 1, 1, 3) + b"RGB",
        ],
    }
    for encoding, contents in bad.items():
        for number, content in enumerate(contents):
            place = tmp_path / f"{encoding.replace(':', '-')}-{number}"
            write(place, {"x": encoding, "n": "int"}, [{"x": content, "n": bytes(8)}])
            source = Mds(
                str(place),
                columns={"x": "x", "n": "n"},
                kinds={"x": "text"} if encoding == "json" else {},
            ).open(quiet)
            with pytest.raises(BadRecord) as caught:
                source.read(0)
            assert caught.value.cause in ("record cannot be read", "text is not UTF-8"), encoding
            assert source.read(0, ["n"]) == {"n": 0}


def test_in_an_object_store(monkeypatch):
    bucket = object_store.start(monkeypatch)
    for name in ("plain", "zstd"):
        for file in (HERE / "mds" / name).iterdir():
            paths.upload(file, paths.as_path(f"{bucket}/{name}/{file.name}"))
        source = Mds(f"{bucket}/{name}/").open(quiet)
        assert [source[i]["text"] for i in (0, 5, 11)] == [RECORDS[i]["text"] for i in (0, 5, 11)]
        assert source[6]["image"] == RECORDS[6]["image"]


# --------------------------------------------------------------------------------------------------
# A writer by the layout, and fuzz


def shard_bytes(columns, samples):
    """A shard: samples are column -> bytes. Columns are in the order of their names."""
    names = sorted(columns)
    bodies = []
    for sample in samples:
        sizes = [
            len(sample[name]) for name in names if mds_values.fixed_size(columns[name]) is None
        ]
        bodies.append(np.array(sizes, "<u4").tobytes() + b"".join(sample[name] for name in names))
    config = json.dumps({"column_names": names}).encode()
    first = 4 * (len(samples) + 2) + len(config)
    offsets = first + np.cumsum([0, *map(len, bodies)])
    return np.array([len(samples), *offsets], "<u4").tobytes() + config + b"".join(bodies)


def write(folder, columns, samples, pack=None, compression=None):
    folder.mkdir(parents=True)
    content = shard_bytes(columns, samples)
    names = sorted(columns)
    about = {
        "format": "mds",
        "version": 2,
        "samples": len(samples),
        "column_names": names,
        "column_encodings": [columns[name] for name in names],
        "column_sizes": [mds_values.fixed_size(columns[name]) for name in names],
        "compression": compression,
        "hashes": [],
        "size_limit": 2**26,
        "raw_data": {"basename": "shard.00000.mds", "bytes": len(content), "hashes": {}},
        "zip_data": None,
    }
    if pack is not None:
        packed = pack(content)
        about["zip_data"] = {"basename": "shard.00000.mds.z", "bytes": len(packed), "hashes": {}}
        (folder / "shard.00000.mds.z").write_bytes(packed)
    else:
        (folder / "shard.00000.mds").write_bytes(content)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [about]}))


def test_the_writer_of_these_tests_writes_what_mosaicmls_writes(tmp_path):
    want = (HERE / "mds" / "plain" / "shard.00000.mds").read_bytes()
    count = int.from_bytes(want[:4], "little")
    columns = {"image": "bytes", "caption": "str", "label": "int"}
    samples = [
        {
            "image": r["image"],
            "caption": r["text"].encode(),
            "label": np.int64(r["class_label"]).tobytes(),
        }
        for r in RECORDS[:count]
    ]
    made = shard_bytes(columns, samples)
    start = int.from_bytes(want[4:8], "little")
    assert (
        made[
            made.index(
                np.array(len(samples[0]["caption"]), "<u4").tobytes() + b"", 4 * (count + 2)
            ) :
        ][-100:]
        == want[-100:]
    )
    assert want[start:] == made[int.from_bytes(made[4:8], "little") :]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    st.lists(
        st.tuples(
            st.text(),
            st.binary(),
            st.integers(-(2**63), 2**63 - 1),
            st.lists(st.integers(0, 255), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_is_written_is_read(tmp_path, samples):
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    columns = {"text": "str", "blob": "bytes", "n": "int64", "array": "ndarray:uint8"}
    write(
        tmp_path / "m",
        columns,
        [
            {
                "text": t.encode("utf-8"),
                "blob": b,
                "n": np.int64(n).tobytes(),
                "array": b"\x04" + bytes([len(a)]) + bytes(a),
            }
            for t, b, n, a in samples
        ],
    )
    kinds = {"blob": "image"}
    source = Mds(str(tmp_path / "m"), columns={name: name for name in columns}, kinds=kinds).open(
        quiet
    )
    for i, (text, blob, n, array) in enumerate(samples):
        record = source[i]
        assert (record["text"], record["blob"], record["n"], record["array"].tolist()) == (
            text.removeprefix("\ufeff"),
            blob,
            n,
            array,
        )


def check_damaged(folder, index, shard):
    """Whatever the bytes are: samples, or an error of ours."""
    (folder / "index.json").write_bytes(index)
    (folder / "shard.00000.mds").write_bytes(shard)
    try:
        source = Mds(str(folder)).open(quiet)
        for i in range(min(len(source), 20)):
            try:
                source.read(i)
            except BadRecord:
                continue
    except (DataError, ConfigError):
        pass


def fuzz(folder, examples):
    whole = (HERE / "mds" / "all" / "shard.00000.mds").read_bytes()
    index = (HERE / "mds" / "all" / "index.json").read_bytes()
    heads = 2200  # bytes with the offsets, the config and the first samples' sizes
    edits = st.lists(
        st.tuples(st.integers(0, heads), st.binary(min_size=1, max_size=4)), max_size=4
    )

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=examples < 1000,
    )
    @given(edits, edits, st.booleans(), st.sampled_from([0, 0, 0, 1, 100, 18000]))
    def run(of_shard, of_index, also_index, cut):
        shard = bytearray(whole)
        changed = bytearray(index)
        for at, new in of_shard:
            shard[at : at + len(new)] = new
        for at, new in of_index if also_index else ():
            at = at % len(index)
            changed[at : at + len(new)] = new
        shard = bytes(shard[: len(whole) - cut])
        if cut:
            changed = changed.replace(b'"bytes": 18235', b'"bytes": %d' % len(shard))
        check_damaged(folder, bytes(changed), shard)

    run()


def test_damaged_shards_are_errors_and_never_a_crash(tmp_path):
    fuzz(tmp_path, 80)


@pytest.mark.slow
def test_many_damaged_shards_are_errors_and_never_a_crash(tmp_path):
    fuzz(tmp_path, 5000)
