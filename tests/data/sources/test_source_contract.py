"""What every source promises, on the same twelve records in every format."""

import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from twelve_records import RECORDS, WRITERS

NAMES = ("image", "text", "class_label")
KINDS = {"image": "image", "text": "text", "class_label": "class"}


@pytest.fixture(scope="module", params=list(WRITERS))
def written(request, tmp_path_factory):
    """(format, folder, config, source) of the records in one format."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        config = WRITERS[request.param](folder)
        yield request.param, folder, config, config.open(log=lambda line: None)


@pytest.fixture
def source(written):
    return written[3]


def test_the_records_are_those_that_were_written(source):
    assert len(source) == len(RECORDS)
    assert [{name: source[i][name] for name in NAMES} for i in range(len(source))] == RECORDS
    assert type(source[0]["class_label"]) is int
    assert source.name and len(source.fingerprint) >= 16


def test_columns_have_their_kinds(source):
    assert {name: source.columns[name].kind for name in NAMES} == KINDS


def test_only_what_is_asked_for_is_read(source):
    for name in NAMES:
        assert source.read(5, [name]) == {name: RECORDS[5][name]}
    assert source.read(5, []) == {}
    assert source.read(5, ["text", "no such column"]) == {"text": RECORDS[5]["text"]}


@pytest.mark.parametrize("i", [-1, len(RECORDS), 10**12])
def test_there_is_no_other_record(source, i):
    with pytest.raises(IndexError):
        source.read(i)


def test_shards_are_all_records_in_order(source):
    shards = source.shards()
    assert shards.dtype == np.int64 and shards.sum() == len(RECORDS) and (shards > 0).all()


def test_cheap_columns_are_what_the_records_hold(source):
    for name in NAMES:
        values = source.column(name)
        present = source.present(name)
        if values is not None:
            assert values.tolist() == [record[name] for record in RECORDS]
        if present is not None:
            assert present.dtype == bool and present.all() and len(present) == len(RECORDS)
    assert source.column("image") is None
    assert source.column("no such column") is None


def test_eight_threads_read_what_one_reads(source):
    order = [int(i) for i in np.random.default_rng(0).permutation(len(RECORDS) * 20) % len(RECORDS)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, order))
    assert [{name: record[name] for name in NAMES} for record in read] == [
        RECORDS[i] for i in order
    ]


def test_another_process_opens_it_anew(source, tmp_path):
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint == source.fingerprint and again.columns.keys() == source.columns.keys()
    assert [again.read(i, ["text"]) for i in range(12)] == [
        source.read(i, ["text"]) for i in range(12)
    ]


def test_equal_content_has_an_equal_fingerprint_wherever_it_lies(written, tmp_path):
    name, folder, _, source = written
    shutil.copytree(folder, tmp_path / "copy")
    config = pickle.loads(pickle.dumps(written[2]))
    for field in ("files", "path", "data_dir", "images"):
        text = getattr(config, field, None)
        if text is not None:
            object.__setattr__(config, field, text.replace(str(folder), str(tmp_path / "copy")))
    copy = config.open(log=lambda line: None)
    assert str(tmp_path) in copy.name or name == "tfds"
    assert copy.fingerprint == source.fingerprint
    assert copy.read(3, NAMES) == source.read(3, NAMES)


def test_a_source_opens_twice_alike(written):
    _, _, config, source = written
    again = config.open(log=lambda line: None)
    assert again.fingerprint == source.fingerprint and again[7] == source[7]


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(written, monkeypatch):
    name, _, config, source = written
    if name == "mds in zstd":
        pytest.skip("a compressed shard is unpacked there")
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", "/dev/null/cache")
    again = config.open(log=lambda line: None)
    assert again[4] == source[4]
    assert pickle.loads(pickle.dumps(again))[4] == source[4]


def test_reading_imports_no_tensorflow_and_no_torch(tmp_path, monkeypatch):
    """In a process of its own, since other tests import them."""
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "cache"))
    sources = []
    for name in (
        "parquet",
        "huggingface",
        "tfds",
        "array_record of Examples",
        "csv",
        "mds in zstd",
    ):
        (tmp_path / name).mkdir()
        sources.append(WRITERS[name](tmp_path / name).open(log=lambda line: None))
    (tmp_path / "sources.pickle").write_bytes(pickle.dumps(sources))
    program = (
        "import pickle, sys; sources = pickle.load(open(sys.argv[1], 'rb')); assert "
        "all(len(source[5]['image']) > 50 for source in sources); "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'torch')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "sources.pickle")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
