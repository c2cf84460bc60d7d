"""The webdataset source, against webdataset and open_clip; indexes, and shards that change."""

import concurrent.futures
import io
import json
import os
import pathlib
import pickle
import threading

import numpy as np
import pytest
import tar_cases
import webdataset
from PIL import Image
from tar_cases import tar_bytes, write_tar

from jaxvl import paths
from jaxvl.config import ConfigError, resolve
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES, range_files, tar_shards
from jaxvl.data.sources.webdataset import WebDataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quiet(line):
    """No log."""


def open_source(files, log=quiet, **options):
    return WebDataset(files, **options).open(log)


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def write_shards(folder: pathlib.Path, shards=3, rows=10) -> str:
    """Shards as img2dataset names their members; keys of all shards differ."""
    folder.mkdir(exist_ok=True)
    for s in range(shards):
        members = []
        for i in range(rows):
            about = {"caption": f"shard {s} row {i}", "key": f"{s:05d}{i:04d}"}
            members += [
                (f"{s:05d}{i:04d}.jpg", jpeg(s * rows + i)),
                (f"{s:05d}{i:04d}.json", json.dumps(about).encode()),
                (f"{s:05d}{i:04d}.txt", about["caption"].encode()),
            ]
        write_tar(folder / f"{s:05d}.tar", members)
    return f"{folder}/{{00000..{shards - 1:05d}}}.tar"


def test_records_are_those_of_webdataset_and_open_clip(tmp_path):
    files = write_shards(tmp_path / "data")
    source = open_source(files)
    theirs = list(webdataset.WebDataset(files, shardshuffle=False))
    assert len(source) == len(theirs) == 30
    for i, sample in enumerate(theirs):
        record = source[i]
        assert record["image"] == sample["jpg"]
        assert record["text"] == sample["txt"].decode()
        assert record["key"] == sample["__key__"]
        assert record["url"] == sample["__url__"]
    by_open_clip = list(
        tar_cases.open_clip_data().tarfile_to_samples_nothrow(
            {"url": url} for url in source_files(files)
        )
    )
    assert [sample["jpg"] for sample in by_open_clip] == [
        source.read(i, ["image"])["image"] for i in range(30)
    ]
    np.testing.assert_array_equal(source.shards(), [10, 10, 10])


def source_files(files):
    return list(webdataset.shardlists.expand_urls(files))


def test_a_config_chooses_it(tmp_path):
    files = write_shards(tmp_path / "data", shards=1)
    config = resolve(
        SOURCES["webdataset"], {"files": files, "columns": {"image": "jpg"}, "optional": ()}
    )
    assert config == WebDataset(files, {"image": "jpg"})
    assert {name: column.kind for name, column in config.open(quiet).columns.items()} == {
        "image": "image",
        "key": "text",
        "url": "text",
    }


def test_only_the_members_of_the_columns_are_read(tmp_path, monkeypatch):
    source = open_source(write_shards(tmp_path / "data"))
    read = []
    pread = os.pread
    monkeypatch.setattr(
        os,
        "pread",
        lambda descriptor, size, offset: read.append(size) or pread(descriptor, size, offset),
    )
    assert source.read(12, ["text", "key"]) == {"text": "shard 1 row 2", "key": "000010002"}
    assert read == [len("shard 1 row 2")]
    read.clear()
    assert source.read(5, ["key"]) == {"key": "000000005"} and read == []
    assert source.read(5, []) == {}
    source.read(5, ["image", "text"])
    assert len(read) == 1  # they are near each other


def test_a_number_beyond_the_end_is_an_error(tmp_path):
    source = open_source(write_shards(tmp_path / "data", shards=1))
    for i in (10, -1):
        with pytest.raises(IndexError):
            source.read(i)
    assert source.read(0, ["pictures", "key"]) == {"key": "000000000"}
    assert source.column("pictures") is None and source.column("text") is None
    assert source.read(np.int64(3), ["key"]) == {"key": "000000003"}


def test_empty_shards_between_others(tmp_path):
    for name, members in (
        ("a", [("1.txt", b"one")]),
        ("b", []),
        ("c", []),
        ("d", [("2.txt", b"two")]),
    ):
        write_tar(tmp_path / f"{name}.tar", members)
    source = open_source(f"{tmp_path}/{{a..d}}.tar", columns={"text": "txt"})
    assert [source[i]["text"] for i in range(len(source))] == ["one", "two"]
    np.testing.assert_array_equal(source.shards(), [1, 1])
    np.testing.assert_array_equal(source.column("key"), ["1", "2"])
    with pytest.raises(DataError, match="hold no samples"):
        open_source(f"{tmp_path}/b.tar")


def test_keys_that_repeat_across_tars_are_different_records(tmp_path):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [("0.txt", name.encode())])
    source = open_source(f"{tmp_path}/{{a,b}}.tar", columns={"text": "txt"})
    assert [source[i]["text"] for i in range(2)] == ["a", "b"]
    assert list(source.column("key")) == ["0", "0"]
    assert list(source.column("url")) == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]


# --------------------------------------------------------------------------------------------------
# Columns


def one(tmp_path, members, **options):
    """A source of one sample, `x`."""
    write_tar(
        tmp_path / "one.tar", [(f"x.{ending}", content) for ending, content in members.items()]
    )
    return open_source(str(tmp_path / "one.tar"), **options)


def npy(array) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    ("ending", "content", "spec", "kind", "expected"),
    [
        ("jpeg", b"\xff\xd8", "jpg;png;jpeg", "image", b"\xff\xd8"),
        ("PNG", b"png", "png", "image", b"png"),
        ("left.webp", b"w", "left.webp", "image", b"w"),
        ("flac", b"fLaC", "flac;wav;mp3;ogg", "audio", b"fLaC"),
        ("txt", "grün\n".encode(), "txt", "text", "grün\n"),
        ("txt", b"\xef\xbb\xbfmarked", "txt", "text", "marked"),
        ("caption", b"c", "txt;caption", "text", "c"),
        ("txt", b"", "txt", "text", ""),
        ("cls", b"7\n", "cls", "class", 7),
        ("json", b'{"caption": "a"}', "json:caption", "text", "a"),
        ("json", b'{"caption": " ", "alt": "b"}', "json:none;caption;alt", "text", "b"),
        ("json", b'{"captions": ["a", "b"]}', "json:captions", "texts", ["a", "b"]),
        ("meta.json", b'{"width": 20}', "meta.json:width", "int", 20),
        ("json", b'{"about": {"alt": ["a", "b"]}}', "json[about][alt][1]", "text", "b"),
        ("json", b'{"similarity": 0.25}', "json:similarity", "float", 0.25),
    ],
)
def test_columns_by_ending(tmp_path, ending, content, spec, kind, expected):
    source = one(tmp_path, {ending: content}, columns={"it": spec})
    assert source.columns["it"].kind == kind and not source.columns["it"].optional
    value = source[0]["it"]
    assert value == expected and type(value) is type(expected)


def test_arrays(tmp_path):
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    source = one(
        tmp_path,
        {"npy": npy(array), "json": b'{"v": [1.5, 2]}'},
        columns={"a": "npy", "v": "json:v"},
    )
    np.testing.assert_array_equal(source[0]["a"], array)
    np.testing.assert_array_equal(source[0]["v"], [1.5, 2])
    assert source.columns["v"].kind == "array"


def test_kinds_say_what_endings_do_not(tmp_path):
    members = {"txt": b"one\ntwo\r\n\nthree", "score": b" 0.5", "cls": b"3", "seg": b"..."}
    source = one(
        tmp_path,
        members,
        columns={"texts": "txt", "score": "score", "number": "cls", "mask": "seg"},
        kinds={"texts": "texts", "score": "float", "number": "int", "mask": "image"},
    )
    record = source[0]
    assert (
        record["texts"] == ["one", "two", "three"]
        and record["score"] == 0.5
        and record["number"] == 3
        and record["mask"] == b"..."
    )


def test_frames_are_all_members_that_match(tmp_path):
    members = [
        ("a.10.jpg", b"10"),
        ("a.2.jpg", b"2"),
        ("a.1.jpg", b"1"),
        ("a.txt", b"t"),
        ("b.7.jpg", b"7"),
        ("c.txt", b"t"),
    ]
    write_tar(tmp_path / "x.tar", members)
    source = open_source(str(tmp_path / "x.tar"), columns={"frames": "*.jpg"})
    assert source.columns["frames"].kind == "frames"
    assert [source.read(i, ["frames"]) for i in range(2)] == [
        {"frames": [b"1", b"2", b"10"]},
        {"frames": [b"7"]},
    ]
    with pytest.raises(BadRecord, match="^no frames: "):
        source.read(2)
    source = open_source(str(tmp_path / "x.tar"), columns={"frames": "*.jpg"}, optional=("frames",))
    np.testing.assert_array_equal(source.present("frames"), [True, True, False])
    assert source.read(2, ["frames"]) == {}


@pytest.mark.parametrize("again", [False, True])  # by the indexes, by the catalogue
def test_a_column_that_no_sample_has_is_an_error_at_once(tmp_path, again):
    write_tar(tmp_path / "x.tar", [("a.input.jpg", b"1"), ("a.outputs.txt", b"t")])
    if again:
        open_source(str(tmp_path / "x.tar"), columns={"text": "outputs.txt"})
    with pytest.raises(ConfigError) as caught:
        open_source(str(tmp_path / "x.tar"))
    assert str(caught.value) == (
        "columns.image: no sample has 'jpeg' or 'jpg' or 'png' or 'webp' (members there are: "
        "input.jpg, outputs.txt)"
    )
    assert len(open_source(str(tmp_path / "x.tar"), optional=("image", "text"))) == 1


def test_classes_are_known_without_a_read(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", [("0.cls", b"5"), ("1.cls", b"7")])
    write_tar(tmp_path / "b.tar", [("0.cls", b"6"), ("0.label", b"2")])
    source = open_source(
        f"{tmp_path}/{{a,b}}.tar",
        columns={"c": "cls", "d": "label", "e": "cls;label"},
        optional=("d",),
    )
    monkeypatch.setattr(source, "_files", None)
    np.testing.assert_array_equal(source.column("c"), [5, 7, 6])
    assert source.column("c").dtype == np.int64
    assert source.column("d") is None and source.column("e") is None
    np.testing.assert_array_equal(source.present("d"), [False, False, True])


def test_a_text_member_where_a_key_is_empty(tmp_path):
    contents = [b'{"alt": "a"}', b'{"alt": " "}', b"{}"]
    members = [
        (f"{i}.{ending}", content)
        for i, c in enumerate(contents)
        for ending, content in (("json", c), ("txt", b"t"))
    ]
    write_tar(tmp_path / "x.tar", [*members, ("3.txt", b"u")])
    source = open_source(str(tmp_path / "x.tar"), columns={"c": "json[alt];txt"})
    assert [source[i]["c"] for i in range(4)] == ["a", "t", "t", "u"]


def test_a_json_column_that_holds_texts_and_lists(tmp_path):
    contents = [b'{"c": "a"}', b'{"c": ["b", "c"]}', b'{"c": null}']
    write_tar(tmp_path / "x.tar", [(f"{i}.json", content) for i, content in enumerate(contents)])
    source = open_source(str(tmp_path / "x.tar"), columns={"c": "json:c"})
    assert source.columns["c"].kind == "texts"
    assert [source[i]["c"] for i in range(2)] == [["a"], ["b", "c"]]
    with pytest.raises(BadRecord, match=r"^no c: .*x.tar: 2: has no json\[c\] that is not empty"):
        source.read(2)
    strict = open_source(str(tmp_path / "x.tar"), columns={"c": "json:c"}, kinds={"c": "text"})
    with pytest.raises(BadRecord, match="another kind.*say in kinds"):
        strict.read(1)


@pytest.mark.parametrize(
    ("ending", "content", "spec", "cause"),
    [
        ("txt", b"\xff\xfe", "txt", "text is not UTF-8"),
        ("cls", b"seven", "cls", "number cannot be read"),
        ("cls", b"", "cls", "number cannot be read"),
        ("json", b"{", "json:a", "json cannot be read"),
        ("json", b"[1]", "json:a", "json cannot be read"),
        ("json", b"[" * 100_000, "json:a", "json cannot be read"),
        ("json", b"\xff", "json:a", "json cannot be read"),
        ("npy", b"no array", "npy", "array cannot be read"),
        (
            "npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }",
            "npy",
            "array cannot be read",
        ),
        ("npy", npy(np.array([object()], dtype=object)), "npy", "array cannot be read"),
    ],
)
def test_bad_records_have_a_cause_and_name_the_member(tmp_path, ending, content, spec, cause):
    source = one(
        tmp_path,
        {ending: content},
        columns={"it": spec},
        kinds={"it": "text"} if spec == "json:a" else {},
    )
    with pytest.raises(BadRecord) as caught:
        source.read(0)
    assert caught.value.cause == cause
    assert f"{tmp_path}/one.tar: x" in str(caught.value) and f"x.{ending}" in str(caught.value)


def test_no_pickle_is_loaded(tmp_path):
    bomb = type("Bomb", (), {"__reduce__": lambda self: (os.mkdir, (str(tmp_path / "made"),))})
    source = one(tmp_path, {"npy": npy(np.array([bomb()], dtype=object))}, columns={"a": "npy"})
    with pytest.raises(BadRecord):
        source.read(0)
    assert not (tmp_path / "made").exists()


def test_a_member_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxvl.data.sources.webdataset.MOST_BYTES", 10)
    source = one(tmp_path, {"jpg": b"x" * 11, "txt": b"short"})
    with pytest.raises(BadRecord, match="member is too large"):
        source.read(0)
    assert source.read(0, ["text"]) == {"text": "short"}


def test_a_sample_without_its_column_is_a_cause_that_names_the_members(tmp_path):
    write_tar(
        tmp_path / "x.tar", [("Photo 2.0 (clean).jpg", b"1"), ("a.jpg", b"2"), ("a.txt", b"t")]
    )
    source = open_source(str(tmp_path / "x.tar"))
    with pytest.raises(
        BadRecord, match=r"^no image: .*x\.tar: Photo 2: has only 'Photo 2\.0 \(clean\)\.jpg'"
    ):
        source.read(0)
    assert source.read(1, ["text"]) == {"text": "t"}


def test_optional_columns_may_lack(tmp_path):
    write_tar(
        tmp_path / "x.tar", [("a.jpg", b"1"), ("a.txt", b"t"), ("b.jpg", b"2"), ("c.caption", b"u")]
    )
    source = open_source(str(tmp_path / "x.tar"), optional=("text", "image"))
    assert source.columns["text"].optional
    assert [sorted(source[i]) for i in range(3)] == [
        ["image", "key", "text", "url"],
        ["image", "key", "url"],
        ["key", "text", "url"],
    ]
    np.testing.assert_array_equal(source.present("text"), [True, False, True])
    np.testing.assert_array_equal(source.present("image"), [True, True, False])
    assert (
        source.present("key").all()
        and source.present("nothing") is None
        and source.column("text") is None
    )
    assert (
        one(tmp_path, {"json": b"{}"}, columns={"t": "json:t"}, optional=("t",)).present("t")
        is None
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"columns": {}}, "columns: is empty"),
        ({"columns": {"a": ""}}, "columns.a: '' names no members"),
        ({"columns": {"a": "json:"}}, "columns.a: 'json:' names no members"),
        ({"columns": {"a": "json"}}, "columns.a: 'json': which key of the json?"),
        ({"columns": {"a": "txt:b"}}, "columns.a: 'txt:b': only json members have keys"),
        ({"columns": {"a": "pth"}}, "columns.a: 'pth' members hold pickled objects"),
        ({"columns": {"a": "x.pyd"}}, "columns.a: 'x.pyd' members hold pickled objects"),
        ({"columns": {"a": "jpg;pickle"}}, "columns.a: 'pickle' members hold pickled objects"),
        ({"columns": {"a": "npz"}}, "columns.a: 'npz' members hold several arrays"),
        ({"columns": {"a": "json[b"}}, "columns.a: 'json[b' is no ending of a member"),
        (
            {"columns": {"a": "json[b]:c"}},
            "columns.a: 'json[b]:c' has keys both in brackets and behind a colon",
        ),
        (
            {"columns": {"a": "*.jpg;png"}},
            "columns.a: '*.jpg;png': a pattern must be one of pictures",
        ),
        ({"columns": {"a": "*"}}, "columns.a: '*': a pattern must be one of pictures"),
        (
            {"columns": {"a": "*.jpg"}, "kinds": {"a": "image"}},
            "columns.a: '*.jpg': all members that match are frames, not image",
        ),
        ({"columns": {"a": "txt[b]"}}, "columns.a: 'txt[b]': only json members have keys"),
        (
            {"columns": {"a": "xyz"}},
            "columns.a: what 'xyz' members hold is not known; say it in kinds",
        ),
        ({"columns": {"a": "jpg;txt"}}, "columns.a: 'jpg;txt' mixes image and text"),
        ({"columns": {"a": "__key__;txt"}}, "columns.a: '__key__;txt' must be"),
        ({"columns": {"a": "jpg"}, "kinds": {"b": "text"}}, "kinds.b: is the kind of no column"),
        ({"columns": {"a": "jpg"}, "kinds": {"a": "picture"}}, "kinds.a: 'picture' is not valid"),
        ({"optional": ("texts",)}, "optional: 'texts' is no column; did you mean 'text'?"),
    ],
)
def test_configs_that_cannot_be(options, problem):
    with pytest.raises(ConfigError) as caught:
        WebDataset("x.tar", **options)
    assert problem in str(caught.value)


# --------------------------------------------------------------------------------------------------
# Indexes


def test_an_index_is_made_once_and_lies_beside_its_shard(tmp_path):
    files = write_shards(tmp_path / "data")
    log = []
    open_source(files, log.append)
    assert len(log) == 1 and log[0].startswith("indexed 3 tar shards")
    assert sorted(path.name for path in (tmp_path / "data").glob("*.idx")) == [
        f"{s:05d}.tar.jaxvl.idx" for s in range(3)
    ]
    open_source(files, log.append)
    assert len(log) == 1
    assert len(open_source(str(tmp_path / "data"))) == 30  # a folder means its tars


def test_without_the_catalogue_the_indexes_are_found(tmp_path, cache, monkeypatch):
    files = write_shards(tmp_path / "data")
    fingerprint = open_source(files).fingerprint
    for catalogue in (cache / "tar_index").iterdir():
        catalogue.unlink()
    monkeypatch.setattr(tar_shards, "_make", None)
    assert open_source(files).fingerprint == fingerprint
    for catalogue in (cache / "tar_index").iterdir():
        catalogue.write_bytes(b"\x93\x01damaged")
    assert open_source(files).fingerprint == fingerprint


@pytest.mark.parametrize(
    "damage", [b"", b"jaxvl tar index\n\xff\xff\xff\xff\xff\xff\xff\xff", b"noise" * 99]
)
def test_a_damaged_index_is_made_anew(tmp_path, cache, damage):
    files = write_shards(tmp_path / "data", shards=1)
    first = open_source(files)
    index = tmp_path / "data" / "00000.tar.jaxvl.idx"
    whole = index.read_bytes()
    index.write_bytes(damage)
    source = open_source(files)  # by the catalogue
    log = []
    source._indexes._log = log.append
    assert source[3]["key"] == first[3]["key"]
    assert index.read_bytes() == whole and "index is damaged" in log[0]


def test_one_flipped_byte_in_an_index_is_noticed(tmp_path, cache):
    files = write_shards(tmp_path / "data", shards=1)
    open_source(files)
    index = tmp_path / "data" / "00000.tar.jaxvl.idx"
    whole = index.read_bytes()
    index.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    assert open_source(files).read(0, ["key"]) == {"key": "000000000"}
    assert index.read_bytes() == whole


def test_an_index_of_the_shard_as_it_was_is_made_anew(tmp_path):
    files = write_shards(tmp_path / "data", shards=1)
    first = open_source(files)
    write_tar(tmp_path / "data" / "00000.tar", [("n.jpg", b"new"), ("n.txt", b"new")])
    log = []
    source = open_source(files, log.append)
    assert any("has changed since it was indexed" in line for line in log)
    assert (
        len(source) == 1 and source[0]["text"] == "new" and source.fingerprint != first.fingerprint
    )


def test_of_many_indexes_few_lines_are_said(tmp_path):
    files = write_shards(tmp_path / "data", shards=9, rows=1)
    open_source(files)
    for file in source_files(files):
        os.utime(file, (1, 1))
    log = []
    open_source(files, log.append)
    assert [("has changed" in line, "6 more indexes" in line) for line in log] == [
        (True, False)
    ] * 3 + [(False, True), (False, False)]


def test_in_a_folder_that_may_only_be_read_indexes_go_to_the_cache(tmp_path, cache, monkeypatch):
    files = write_shards(tmp_path / "data")
    write = paths.write_bytes

    def refuse(path, content):
        if path.parent == tmp_path / "data":
            raise PermissionError(13, "Permission denied")
        write(path, content)

    monkeypatch.setattr(paths, "write_bytes", refuse)
    assert len(open_source(files)) == 30
    assert (
        not list((tmp_path / "data").glob("*.idx"))
        and len(list((cache / "tar_index").glob("*.idx"))) == 3
    )
    monkeypatch.setattr(tar_shards, "_make", None)
    assert open_source(files)[29]["text"] == "shard 2 row 9"


def test_indexes_in_a_folder_of_their_own(tmp_path):
    files = write_shards(tmp_path / "data")
    source = open_source(files, index=str(tmp_path / "elsewhere"))
    assert source[29]["text"] == "shard 2 row 9"
    assert (
        not list((tmp_path / "data").glob("*.idx"))
        and len(list((tmp_path / "elsewhere").iterdir())) == 3
    )


def test_where_nothing_can_be_written_it_still_reads(tmp_path, monkeypatch):
    def refuse(path, content):
        raise OSError(30, "Read-only file system")

    files = write_shards(tmp_path / "data", shards=1)
    monkeypatch.setattr(paths, "write_bytes", refuse)
    log = []
    source = open_source(files, log.append)
    assert source[9]["text"] == "shard 0 row 9"
    assert any("cannot be kept" in line for line in log)


def test_fingerprints_follow_the_content_not_the_place(tmp_path):
    files = write_shards(tmp_path / "data")
    source = open_source(files)
    (tmp_path / "copy").mkdir()
    for file in source_files(files):
        (tmp_path / "copy" / pathlib.Path(file).name).write_bytes(pathlib.Path(file).read_bytes())
    copy = open_source(files.replace("/data/", "/copy/"))
    assert copy.fingerprint == source.fingerprint
    assert open_source(tuple(source_files(files)[:2])).fingerprint != source.fingerprint
    assert open_source(files, columns={"image": "jpg"}).fingerprint != source.fingerprint


# --------------------------------------------------------------------------------------------------
# Shards that are missing or change


def test_missing_shards_are_counted_and_the_first_is_named(tmp_path):
    files = write_shards(tmp_path / "data")
    with pytest.raises(DataError, match=r"00003\.tar: is not there \(2 of 5 files are missing\)"):
        open_source(files.replace("00002", "00004"))


def test_one_shard_that_is_no_tar_is_named(tmp_path):
    files = write_shards(tmp_path / "data")
    (tmp_path / "data" / "00001.tar").write_bytes(b"\x1f\x8b" + bytes(range(256)) * 4)
    with pytest.raises(DataError, match=r"00001\.tar: is compressed with gzip, .*gunzip"):
        open_source(files)


def grow(file):
    with open(file, "ab") as out:
        out.write(tar_bytes(tar_cases.PLAIN))


def cut(file):
    os.truncate(file, 2000)


def replace(file):
    write_tar(file + ".new", tar_cases.PLAIN)
    os.replace(file + ".new", file)


def rewrite(file):
    content = pathlib.Path(file).read_bytes()
    pathlib.Path(file).write_bytes(content[::-1])


def remove(file):
    os.unlink(file)


@pytest.mark.parametrize("change", [grow, cut, replace, rewrite, remove])
@pytest.mark.parametrize("opened", [False, True])
def test_a_shard_that_changes_during_a_run_is_an_error(tmp_path, monkeypatch, change, opened):
    monkeypatch.setattr(range_files, "LOOK_AGAIN", 0.0)
    source = open_source(write_shards(tmp_path / "data"))
    if opened:
        source.read(15)
    change(str(tmp_path / "data" / "00001.tar"))
    with pytest.raises(DataError, match=r"00001\.tar"):
        source.read(19)
    assert source.read(3, ["text"]) == {"text": "shard 0 row 3"}


# --------------------------------------------------------------------------------------------------
# Threads, processes, files


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_open_files_are_bounded(tmp_path, monkeypatch):
    files = write_shards(tmp_path / "data", shards=40, rows=2)
    source = open_source(files)
    source._files = range_files.RangeFiles(most_open=4)
    monkeypatch.setattr(tar_shards, "MOST_HELD", 2000)
    before = descriptors()
    texts = [
        source.read(i, ["text"])["text"]
        for i in np.random.default_rng(0).permutation(80).tolist() * 2
    ]
    assert len(set(texts)) == 80
    assert descriptors() - before <= 4
    assert len(source._indexes._held) < 40
    del source
    assert descriptors() - before <= 0


def test_threads_read_what_one_reads(tmp_path):
    source = open_source(write_shards(tmp_path / "data", shards=12, rows=5))
    source._files = range_files.RangeFiles(most_open=2)
    expected = [source[i] for i in range(60)]
    wrong = []

    def work(seed):
        for i in np.random.default_rng(seed).integers(0, 60, 150):
            if source[i] != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_several_open_and_index_the_same_shards_at_once(tmp_path):
    files = write_shards(tmp_path / "data", shards=6, rows=5)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        sources = list(pool.map(open_source, [files] * 4))
    assert len({source.fingerprint for source in sources}) == 1
    assert [source[29]["text"] for source in sources] == ["shard 5 row 4"] * 4
    assert len(list((tmp_path / "data").iterdir())) == 12  # shards and indexes, no parts


def test_it_is_pickled_without_open_files(tmp_path):
    source = open_source(
        write_shards(tmp_path / "data"),
        columns={"text": "json:caption", "image": "jpg"},
        optional=("image",),
    )
    source.read(0)
    again = pickle.loads(pickle.dumps(source))
    assert (again.fingerprint, again.columns, len(again), again.name) == (
        source.fingerprint,
        source.columns,
        30,
        source.name,
    )
    assert [again[i] for i in range(30)] == [source[i] for i in range(30)]


def test_large_indexes_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_shards, "MAPPED", 64)
    source = open_source(write_shards(tmp_path / "data"))
    assert source[17]["text"] == "shard 1 row 7"


def test_nothing_is_written_but_the_index(tmp_path):
    members = [
        *tar_cases.PLAIN,
        ("../../out.jpg", b"x"),
        (str(tmp_path / "absolute.jpg"), b"x"),
        ("deep/x.txt", b"t"),
    ]
    members.append(tar_cases.special("link.jpg", b"2", linkname=str(tmp_path)))
    (tmp_path / "data").mkdir()
    file = write_tar(tmp_path / "data" / "x.tar", members)
    log = []
    source = open_source(file, log.append)
    for i in range(len(source)):
        source.read(i, ["key"])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "x.tar",
        "x.tar.jaxvl.idx",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]
    assert [line for line in log if "link: 1" in line] and [
        line for line in log if "unsafe name: 2" in line
    ]


# --------------------------------------------------------------------------------------------------
# Counts that are noted beside shards


def test_counts_that_differ_are_said_at_every_start(tmp_path):
    files = write_shards(tmp_path / "data")
    for s, successes in enumerate((10, 12, 10)):
        (tmp_path / "data" / f"{s:05d}_stats.json").write_text(
            json.dumps({"count": 20, "successes": successes})
        )
    (tmp_path / "data" / "sizes.json").write_text(
        json.dumps({"00000.tar": 10, "00001.tar": 10, "00002.tar": 9})
    )
    (tmp_path / "data" / "__len__").write_text("31")
    for _ in range(2):
        log = []
        open_source(files, log.append)
        notes = [line for line in log if not line.startswith("indexed")]
        assert len(notes) == 3
        assert "00001.tar: holds 10 samples, but its _stats.json says 12" in notes[0]
        assert "00002.tar: holds 10 samples, but" in notes[1] and "sizes.json says 9" in notes[1]
        assert "__len__: says 31 samples, but the 3 shards" in notes[2]


def test_counts_that_agree_are_not_said(tmp_path):
    files = write_shards(tmp_path / "data")
    for s in range(3):
        (tmp_path / "data" / f"{s:05d}_stats.json").write_text(json.dumps({"successes": 10}))
        (tmp_path / "data" / f"{s:05d}.parquet").write_bytes(b"PAR1")
    (tmp_path / "data" / "sizes.json").write_text(
        json.dumps({f"{s:05d}.tar": 10 for s in range(3)})
    )
    (tmp_path / "data" / "__len__").write_text("30")
    log = []
    open_source(files, log.append)
    assert [line for line in log if not line.startswith("indexed")] == []


def test_a_shard_whose_download_is_not_complete_is_said(tmp_path):
    files = write_shards(tmp_path / "data")
    (tmp_path / "data" / "00000_stats.json").write_text(json.dumps({"successes": 10}))
    (tmp_path / "data" / "00001_stats.json").write_text("{")
    log = []
    open_source(files, log.append)
    assert any("00002.tar: has no _stats.json beside it" in line for line in log)
