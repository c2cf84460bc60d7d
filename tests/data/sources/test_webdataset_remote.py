"""Tar shards in an object store (moto plays S3) and on a web server, read in ranges."""

import pickle

import boto3
import object_store
import pytest
import tar_cases
import web_server
from tar_cases import tar_bytes

from jaxvl import paths
from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.sources import range_files, tar_shards
from jaxvl.data.sources.webdataset import WebDataset

SHARDS = 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shard(s: int) -> bytes:
    """Five samples of which each has a picture of 100 kB."""
    return tar_bytes(
        [(f"{s}{i}.{ending}", content(s, i, ending)) for i in range(5) for ending in ("jpg", "txt")]
    )


def content(s: int, i: int, ending: str) -> bytes:
    return f"text {s} {i}".encode() if ending == "txt" else bytes([s, i]) * 50_000


def check_records(source) -> None:
    assert len(source) == SHARDS * 5
    for n in (0, 7, 14):
        record = source[n]
        assert (
            record["image"] == content(n // 5, n % 5, "jpg")
            and record["text"] == f"text {n // 5} {n % 5}"
        )


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield object_store.start(monkeypatch)


@pytest.fixture
def stored(bucket, request):
    """A folder of its own in the bucket, with the shards."""
    client = boto3.client("s3")
    name = request.node.name.partition("[")[0]
    for s in range(SHARDS):
        client.put_object(
            Bucket=bucket.removeprefix("s3://"), Key=f"{name}/{s:05d}.tar", Body=shard(s)
        )
    return f"{bucket}/{name}"


@pytest.mark.parametrize("pattern", ["/{00000..00002}.tar", "/*.tar", "/"])
def test_shards_in_a_store(stored, cache, pattern):
    log = []
    source = WebDataset(stored + pattern).open(log.append)
    check_records(source)
    check_records(pickle.loads(pickle.dumps(source)))
    assert source.read(0, ["url"]) == {"url": f"{stored}/00000.tar"}
    assert len(list((cache / "tar_index").glob("*.idx"))) == SHARDS
    assert paths.find_files(f"{stored}/*") == [
        f"{stored}/{s:05d}.tar" for s in range(SHARDS)
    ]  # nothing was written there


def test_only_ranges_are_read(stored, monkeypatch):
    WebDataset(f"{stored}/*.tar").open(print)
    read = []
    read_range = paths.read_range
    monkeypatch.setattr(
        paths,
        "read_range",
        lambda file, start, size: read.append(size) or read_range(file, start, size),
    )
    source = WebDataset(f"{stored}/*.tar").open(print)
    assert read == []  # all is known from the catalogue
    source.read(3, ["text"])
    assert read == [len("text 0 3")]
    source.read(3, ["image", "text"])
    assert len(read) == 2  # members that are near each other are one request


def test_a_remote_cache_is_shared(stored, bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXVL_CACHE", f"{bucket}/cache-of-all")
    source = WebDataset(f"{stored}/*.tar").open(print)
    check_records(source)
    monkeypatch.setattr(tar_shards, "_make", None)
    monkeypatch.setattr(tar_shards, "_read_catalogue", lambda *about: None)
    assert WebDataset(f"{stored}/*.tar").open(print).fingerprint == source.fingerprint


def test_the_fingerprint_is_that_of_the_files_on_a_disk(stored, tmp_path):
    (tmp_path / "local").mkdir()
    for s in range(SHARDS):
        (tmp_path / "local" / f"{s:05d}.tar").write_bytes(shard(s))
    assert (
        WebDataset(f"{stored}/*.tar").open(print).fingerprint
        == WebDataset(str(tmp_path / "local")).open(print).fingerprint
    )


def test_a_shard_that_is_replaced_in_a_store_is_indexed_anew(stored, bucket):
    WebDataset(f"{stored}/*.tar").open(print)
    paths.write_bytes(paths.as_path(f"{stored}/00001.tar"), tar_bytes(tar_cases.PLAIN))
    log = []
    source = WebDataset(f"{stored}/*.tar").open(log.append)
    assert len(source) == 12 and any("has changed since it was indexed" in line for line in log)


@pytest.mark.parametrize("gone", [False, True])
def test_a_shard_of_a_store_that_changes_during_a_run_is_an_error(stored, monkeypatch, gone):
    monkeypatch.setattr(range_files, "LOOK_AGAIN_REMOTE", 0.0)
    source = WebDataset(f"{stored}/*.tar").open(print)
    source.read(6)
    file = paths.as_path(f"{stored}/00001.tar")
    if gone:
        file.unlink()
    else:
        paths.write_bytes(file, tar_bytes(tar_cases.PLAIN))
    with pytest.raises(DataError, match="00001.tar: (is not there any more|was replaced)"):
        source.read(6)


@pytest.mark.parametrize("at_once", [32, 1])  # asked one by one; listed
def test_missing_shards_of_a_store(stored, monkeypatch, at_once):
    monkeypatch.setattr(paths, "ASKED_AT_ONCE", at_once)
    check_records(WebDataset(f"{stored}/{{00000..00002}}.tar").open(print))
    assert paths.file_states([f"{stored}/{{0}}.tar", f"{stored}-none/a", f"{stored}-none/b"]) == [
        None,
        None,
        None,
    ]
    with pytest.raises(DataError, match=r"00003\.tar: is not there \(2 of 5 files are missing\)"):
        WebDataset(f"{stored}/{{00000..00004}}.tar").open(print)
    with pytest.raises(ConfigError, match="no file matches"):
        WebDataset(f"{stored}/none-*.tar").open(print)


def test_counts_beside_shards_in_a_store(stored):
    paths.write_text(paths.as_path(f"{stored}/00001_stats.json"), '{"successes": 6}')
    log = []
    WebDataset(f"{stored}/*.tar").open(log.append)
    assert any("00001.tar: holds 5 samples, but its _stats.json says 6" in line for line in log)


# --------------------------------------------------------------------------------------------------
# A web server

FILES = {f"/data/{s:05d}.tar": shard(s) for s in range(SHARDS)}


def test_shards_of_a_web_server(cache):
    with web_server.serve(FILES) as server:
        source = WebDataset(f"{server.url}/data/{{00000..00002}}.tar").open(print)
        check_records(source)
        check_records(pickle.loads(pickle.dumps(source)))
        server.asked.clear()
        source.read(8, ["text"])
        assert [(path, size(asked)) for _, path, asked in server.asked] == [
            ("/data/00001.tar", len("text 1 3"))
        ]
        server.asked.clear()
        WebDataset(f"{server.url}/data/{{00000..00002}}.tar").open(print)
        assert [asked for _, _, asked in server.asked] == [
            "bytes=0-0"
        ] * SHARDS  # each is asked whether it is what it was


def size(header: str) -> int:
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1


def test_a_web_server_without_ranges_is_an_error():
    with web_server.serve(FILES, ranges=False) as server:
        with pytest.raises(DataError, match="does not read ranges of bytes.*copy it to a folder"):
            WebDataset(f"{server.url}/data/00000.tar").open(print)
        assert len(server.asked) == 1
        with pytest.raises(paths.PathError, match="does not read ranges"):
            paths.read_range(f"{server.url}/data/00000.tar", 10, 20)


def test_missing_shards_of_a_web_server():
    with web_server.serve(FILES) as server:
        with pytest.raises(
            DataError, match=r"00003\.tar: is not there \(1 of 4 files are missing\)"
        ):
            WebDataset(f"{server.url}/data/{{00000..00003}}.tar").open(print)
        with pytest.raises(DataError, match="is not there"):
            WebDataset(f"{server.url}/nothing.tar").open(print)
    with pytest.raises(DataError, match="00000.tar: cannot be reached"):
        WebDataset(f"{server.url}/data/00000.tar").open(print)


@pytest.mark.parametrize("status", [401, 403])
def test_a_file_that_may_not_be_read_is_not_said_to_be_missing(status):
    with web_server.serve({**FILES, "/data/00003.tar": status}) as server:
        with pytest.raises(
            DataError, match=rf"00003\.tar: permission is denied \(HTTP {status}\)$"
        ):
            WebDataset(f"{server.url}/data/{{00000..00003}}.tar").open(print)
        source = WebDataset(f"{server.url}/data/{{00000..00002}}.tar").open(print)
        server.files["/data/00001.tar"] = status
        server.asked.clear()
        with pytest.raises(
            DataError, match=rf"00001\.tar: permission is denied \(HTTP {status}\)$"
        ):
            source.read(8)
        assert len(server.asked) == 1  # it is not asked again


def test_a_server_that_is_busy_is_asked_again():
    with web_server.serve(FILES) as server:
        source = WebDataset(f"{server.url}/data/{{00000..00002}}.tar").open(print)
        server.failures["/data/00001.tar"] = 2
        assert source.read(8, ["text"]) == {"text": "text 1 3"}
        server.failures["/data/00001.tar"] = 100
        with pytest.raises(DataError, match="00001.tar: cannot be read"):
            source.read(8, ["text"])


def test_a_shard_that_vanishes_from_a_web_server():
    with web_server.serve(FILES) as server:
        source = WebDataset(f"{server.url}/data/{{00000..00002}}.tar").open(print)
        del server.files["/data/00001.tar"]
        with pytest.raises(DataError, match="00001.tar: is not there any more"):
            source.read(8)


def test_a_query_is_part_of_an_address():
    with web_server.serve({"/x.tar?key=a": shard(0)}) as server:
        assert len(WebDataset(f"{server.url}/x.tar?key=a").open(print)) == 5


def test_paths_that_are_only_read_are_no_work_folders():
    with pytest.raises(paths.PathError, match="http:// is not known"):
        paths.as_path("http://example.org/run")
    with pytest.raises(DataError, match="ftp:// is not known"):
        WebDataset("ftp://example.org/x.tar").open(print)
