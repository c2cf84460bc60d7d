"""`gs://`, as gcp-storage-emulator plays it. Skipped where it or gcsfs is not installed."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tar_cases import write_tar
from twelve_records import make_png

from jaxvl import paths
from jaxvl.data.records import DataError
from jaxvl.data.sources.folder import Folder
from jaxvl.data.sources.jsonl import JsonLines
from jaxvl.data.sources.parquet import Parquet
from jaxvl.data.sources.webdataset import WebDataset

pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")


def quiet(line):
    """No log."""


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    import gcsfs

    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    monkeypatch.setenv(
        "STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_port}"
    )
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "cache"))
    gcsfs.GCSFileSystem.clear_instance_cache()
    gcsfs.GCSFileSystem().mkdir("bucket")
    yield "gs://bucket"
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.stop()


def put(name, content):
    paths.write_bytes(paths.as_path(name), content)


def test_tars(bucket, tmp_path):
    for s in range(2):
        members = [
            (f"{s}{i}.{e}", content)
            for i in range(3)
            for e, content in (("jpg", make_png(i)), ("txt", f"t {s} {i}".encode()))
        ]
        write_tar(tmp_path / f"{s:05d}.tar", members)
        paths.upload(tmp_path / f"{s:05d}.tar", paths.as_path(f"{bucket}/d/{s:05d}.tar"))
    local = WebDataset(str(tmp_path / "*.tar")).open(quiet)
    for files in ("{00000..00001}.tar", "*.tar", "", f"00000.tar::{bucket}/d/00001.tar"):
        source = WebDataset(f"{bucket}/d/{files}").open(quiet)
        assert source.fingerprint == local.fingerprint
        source = pickle.loads(pickle.dumps(source))
        assert [source.read(i, ["image", "text"]) for i in range(6)] == [
            local.read(i, ["image", "text"]) for i in range(6)
        ]
    with pytest.raises(
        DataError, match=rf"^{bucket}/d/00002.tar: is not there \(2 of 4 files are missing\)"
    ):
        WebDataset(f"{bucket}/d/{{00000..00003}}.tar").open(quiet)
    with pytest.raises(DataError, match="^gs://nothing/0.tar: is not there"):
        WebDataset("gs://nothing/0.tar").open(quiet)


def test_tables_and_folders(bucket, tmp_path):
    table = pa.table(
        {"jpg": [make_png(i) for i in range(9)], "caption": [str(i) for i in range(9)]}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    paths.upload(tmp_path / "a.parquet", paths.as_path(f"{bucket}/p/a.parquet"))
    assert Parquet(f"{bucket}/p/*.parquet").open(quiet)[7] == {"image": make_png(7), "text": "7"}
    for name, content in (
        ("0/a.png", make_png(0)),
        ("1/b.png", make_png(1)),
        ("1/b.txt", b"bee"),
        ("a.jsonl", b'{"image":"0/a.png","text":"x"}'),
    ):
        put(f"{bucket}/f/{name}", content)
    folder = Folder(f"{bucket}/f", classes="integer").open(quiet)
    assert folder[1] == {"image": make_png(1), "text": "bee", "class_label": 1, "file": "1/b.png"}
    before = folder.fingerprint
    put(f"{bucket}/f/0/a.png", make_png(0) + b"more")
    assert Folder(f"{bucket}/f", classes="integer").open(quiet).fingerprint != before, (
        "sizes are known there as well"
    )
    put(f"{bucket}/f/0/a.png", make_png(0))
    assert JsonLines(f"{bucket}/f/a.jsonl").open(quiet)[0] == {"image": make_png(0), "text": "x"}
