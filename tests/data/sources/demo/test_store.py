import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data_samples import stored

from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.demo import store
from jaxvl.data.sources.demo.recipe import DemoSource
from jaxvl.data.sources.demo.store import Corpus, build_once, write_corpus

N = 30

# Builds a corpus in another process: `slow` waits in the middle until it is killed or the file `go`
# is there.
PROGRAM = """
import pathlib, sys, time
sys.path[:0] = [{tests!r}]
from test_store import build
from jaxvl.data.sources.demo.store import build_once
cache = pathlib.Path({cache!r})

def slow(folder):
    with open(cache / "builds", "a") as log:
        log.write("x")
    (folder / "half").write_text("half a file")
    while not (cache / "go").exists():
        time.sleep(0.02)
    (folder / "half").unlink()
    return build(folder)

corpus = build_once("tiny-v1", slow, lambda text: print(text, flush=True))
print(corpus.manifest["counts"]["images"])
"""


def build(folder):
    labels = np.arange(N, dtype=np.int32) // 2
    splits = {"train": np.arange(0, N, 2), "test": np.arange(1, N, 2)}
    classes = {"en": [f"name {i}" for i in range(N // 2)], "de": ["eins", *[None] * (N // 2 - 1)]}
    records = ({**stored(i, size=32), "label": i // 2} for i in range(N))
    return write_corpus(folder, records, labels, splits, classes, "# Attribution\n")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    return tmp_path


def make(log=print, **options):
    return build_once("tiny-v1", build, log, **options)


def start(cache):
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.pathsep.join(
        [here, os.path.dirname(os.path.dirname(here)), os.environ.get("PYTHONPATH", "")]
    )
    program = PROGRAM.format(tests=here, cache=str(cache))
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def test_what_is_built_is_found_again(cache):
    corpus = make()
    assert corpus.splits == ["train", "test"] and corpus.folder == cache / "tiny-v1"
    assert [r["key"] for r in corpus.split("test")] == [f"style/{i}" for i in range(1, N, 2)]
    assert (
        corpus.labels("train").tolist() == list(range(N // 2))
        and corpus.labels("train").dtype == np.int32
    )
    classes = corpus.class_set()
    assert classes.names["en"] == tuple(f"name {i}" for i in range(N // 2)) and classes.names["de"][
        :2
    ] == ("eins", None)
    assert classes.names.keys() == {"en", "de"} and len(classes) == N // 2
    with pytest.raises(KeyError):
        corpus.split("validation")
    again = build_once("tiny-v1", lambda folder: pytest.fail("it was there"), print)
    assert again.manifest == corpus.manifest and corpus.manifest["counts"] == {
        "images": N,
        "concepts": N // 2,
        "locales": 2,
        "names": N // 2 + 1,
        "train": N // 2,
        "test": N // 2,
    }
    assert sorted(p.name for p in cache.iterdir()) == ["tiny-v1", "tiny-v1.lock"]


def test_a_split_of_none_is_every_record():
    corpus = make()
    assert [r["key"] for r in corpus.split(None)] == [f"style/{i}" for i in range(N)]
    assert corpus.labels(None).tolist() == [i // 2 for i in range(N)]
    assert corpus.labels_of(np.array([7, 0, 29])).tolist() == [3, 0, 14]


def test_a_damaged_record_is_a_bad_one_and_leaves_the_others_readable():
    corpus = make()
    path = corpus.folder / "records.array_record"
    data = bytearray(path.read_bytes())
    data[data.find(stored(4, size=32)["image"][40:60])] ^= 255
    path.write_bytes(data)
    source = DemoSource(corpus, {}, "train")
    read = set()
    for i in range(len(source)):
        if i == 2:
            with pytest.raises(BadRecord, match="record cannot be read"):
                source[i]
        else:
            read.add(source.read(i, ["name/de"])["name/de"])
    assert read == {f"de {i}" for i in range(0, N, 2) if i != 4}


def test_a_build_that_fails_leaves_nothing(cache):
    def fails(folder):
        (folder / "half").write_text("half a file")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        build_once("tiny-v1", fails, print)
    assert [p.name for p in cache.iterdir()] == ["tiny-v1.lock"]
    assert make().manifest["counts"]["images"] == N


def test_a_build_that_is_killed_leaves_nothing_that_is_used(cache):
    process = start(cache)
    wait_for(cache / "tiny-v1.building" / "half", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cache / "tiny-v1").exists() and (cache / "tiny-v1.building" / "half").exists()
    assert make().manifest["counts"]["images"] == N  # the dead process's lock does not hold it up
    assert not (cache / "tiny-v1.building").exists() and not (cache / "tiny-v1" / "half").exists()


def test_two_processes_build_once(cache):
    first = start(cache)
    wait_for(cache / "tiny-v1.building" / "half", first)
    second = start(cache)
    assert "waiting for another process" in second.stdout.readline()
    (cache / "go").touch()
    assert [p.communicate(timeout=60)[0].split()[-1] for p in (first, second)] == [str(N)] * 2
    assert (cache / "builds").read_text() == "x"


def test_counts_must_be_those_expected(cache):
    with pytest.raises(
        DataError,
        match=(
            "tiny-v1: the sources are not what was expected .images: 31 expected, 30 found; x: 1 "
            "expected, None found"
        ),
    ):
        make(expect={"images": 31, "train": 15, "x": 1})
    assert not (cache / "tiny-v1").exists()


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "no manifest"])
def test_damage_that_a_start_can_see_is_mended(cache, damage):
    folder = make().folder
    said = []
    if damage == "cut":
        data = (folder / "records.array_record").read_bytes()
        (folder / "records.array_record").write_bytes(data[:-1])
    elif damage == "gone":
        (folder / "classes.json").unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text('{"format": 1')
    else:
        (folder / "manifest.json").unlink()
    assert len(make(log=said.append).split("train")) == N // 2
    assert damage == "no manifest" or any(
        "is damaged; the corpus is built anew" in line for line in said
    )


def test_another_format_is_built_anew(monkeypatch):
    make()
    monkeypatch.setattr(store, "FORMAT", 2)
    said = []
    assert make(log=said.append).manifest["format"] == 2 and "older format" in said[0]


def test_damage_that_only_a_checksum_sees():
    corpus = make()
    corpus.verify()
    path = corpus.folder / "records.array_record"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    Corpus(corpus.folder, json.loads((corpus.folder / "manifest.json").read_text()))
    with pytest.raises(DataError, match=r"records\.array_record: content is not what was built"):
        corpus.verify()


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXVL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / ".cache" / "jaxvl"
