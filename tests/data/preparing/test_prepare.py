"""The preparation on pairs with planted faults: each goes under the right rule and nothing else
does, whatever the runner."""

import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

pytest.importorskip("apache_beam")
pytest.importorskip("imagehash")

import msgpack  # noqa: E402
import planted as samples  # noqa: E402
from array_record.python import array_record_data_source  # noqa: E402

from jaxvl import paths  # noqa: E402
from jaxvl.config import ConfigError, resolve  # noqa: E402
from jaxvl.data import prepare as prepare_command  # noqa: E402
from jaxvl.data.inspecting.recognise import recognise  # noqa: E402
from jaxvl.data.prepare import main, parse  # noqa: E402
from jaxvl.data.preparing.options import PrepareConfig  # noqa: E402
from jaxvl.data.preparing.run import prepare  # noqa: E402
from jaxvl.data.records import DataError  # noqa: E402

HERE = pathlib.Path(__file__).parent
PLUGIN = str(HERE / "pairs_plugin.py")
SPARK = "beam_pyspark_runner.pyspark_runner.PySparkRunner"


@pytest.fixture(scope="module")
def planted():
    return samples.planted()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, planted):
    folder = tmp_path_factory.mktemp("prepare")
    (folder / "pairs.msgpack").write_bytes(msgpack.packb(planted.records))
    (folder / "tests.msgpack").write_bytes(msgpack.packb(planted.test_pictures))
    np.save(folder / "subset.npy", planted.subset)
    return folder


def options(folder, out, planted, **changes):
    rules = dict(
        uid_subset=str(folder / "subset.npy"),
        max_texts_per_image=4,
        vocabulary=planted.vocabulary,
        score="brightness",
        min_score=0.3,
    )
    node = dict(
        source=dict(name="pairs_in_a_file", path=str(folder / "pairs.msgpack")),
        test_images=dict(seen=dict(name="pairs_in_a_file", path=str(folder / "tests.msgpack"))),
        out=str(out),
        plugins=(PLUGIN,),
        range_records=7,
        rules=rules,
        **samples.OPTIONS,
    )
    return {**node, **changes}


def config(folder, out, planted, **changes):
    return resolve(PrepareConfig, options(folder, out, planted, **changes))


@pytest.fixture(scope="module")
def done(folder, planted):
    return prepare(config(folder, folder / "done", planted), log=lambda _: None)


def contents(out):
    """Name -> SHA-256 of every file."""
    files = sorted(path for path in pathlib.Path(out).rglob("*") if path.is_file())
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def members(out):
    """Key -> {suffix: bytes} of all shards, read with tarfile."""
    found = {}
    for shard in sorted(pathlib.Path(out).glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return found


def test_each_planted_fault_goes_under_its_rule_and_nothing_else_does(done, planted):
    texts = {
        "rare_words": 1 + 1,  # one of them is the second text of a record that stays
        "word_count": 2 + 1,
    }
    assert done.records == len(planted.records)
    assert done.bad == {
        cause: len(planted.faults[cause])
        for cause in ("image cannot be decoded", "no caption", "record cannot be read")
    }
    for rule in done.rules:
        expected = len(planted.faults[rule.name])
        assert rule.records_in - rule.records_out == expected, rule
        assert rule.texts_in - rule.texts_out == texts.get(rule.name, expected), rule
    assert done.kept == len(planted.clean)


def test_the_shards_hold_what_is_left_unchanged_in_the_order_of_the_source(done, planted):
    found = members(done.out)
    assert len(found) == len(planted.clean)
    shard = 0
    place = 0
    for position, (key, member) in zip(planted.clean, found.items()):
        record = planted.records[position]
        assert key == f"{shard:05d}{place:04d}"
        place += 1
        if place == samples.OPTIONS["shard_records"]:
            shard = shard + 1
            place = 0
        assert member["png"] == record["image"]
        about = json.loads(member["json"])
        assert about["sha256"] == hashlib.sha256(record["image"]).hexdigest()
        assert (about["uid"], about["class_label"], about["width"]) == (
            record["uid"],
            record["class_label"],
            216,
        )
        assert member["cls"] == str(record["class_label"]).encode()
        assert np.load(io.BytesIO(member["npy"])).tolist() == record["boxes"]
        texts = planted.kept_texts.get(position, {"alt": record["alt"]})
        assert member["txt"].decode() == texts["alt"][0]
        assert about["alt"] == texts["alt"] and "title" not in about
    assert set(member) == {"png", "txt", "json", "cls", "npy"}


def test_counts_beside_the_shards_are_those_of_img2dataset_and_open_clip(done, planted):
    sizes = json.loads((done.out / "sizes.json").read_text())
    n = len(planted.clean)
    assert list(sizes.values()) == [16] * (n // 16) + [n % 16]
    for name, size in sizes.items():
        with tarfile.open(done.out / name) as tar:
            assert sum(member.name.endswith(".txt") for member in tar) == size
        stats = json.loads((done.out / name.replace(".tar", "_stats.json")).read_text())
        assert stats["successes"] == stats["count"] == size
        assert stats["sha256"] == hashlib.sha256((done.out / name).read_bytes()).hexdigest()


def test_webdataset_itself_reads_the_shards(done, planted):
    webdataset = pytest.importorskip("webdataset")
    shards = [str(path) for path in sorted(done.out.glob("*.tar"))]
    rows = list(webdataset.WebDataset(shards, shardshuffle=False).to_tuple("png", "txt", "json"))
    assert [image for image, _, _ in rows] == [
        planted.records[position]["image"] for position in planted.clean
    ]
    assert [json.loads(about)["key"] for _, _, about in rows] == list(members(done.out))


def opened(out):
    """The records of a folder, as `data=OUT` of a config reads them; of a copy, since an index is
    laid beside the shards."""
    copy = shutil.copytree(out, out.with_name(f"{out.name}.read"))
    return resolve(PrepareConfig, dict(source=recognise(str(copy)), out="none")).source.open(
        log=lambda _: None
    )


def test_training_reads_the_shards_as_they_are(done, planted):
    source = opened(done.out)
    assert len(source) == len(planted.clean)
    for i, position in enumerate(planted.clean):
        record = source.read(i)
        assert record["image"] == planted.records[position]["image"]
        assert (
            record["text"] == planted.kept_texts.get(position, planted.records[position])["alt"][0]
        )


def test_the_report_shows_examples_of_each_rule(done, planted):
    report = json.loads((done.out / "report.json").read_text())
    for rule in report["rules"]:
        shown = report["examples"][rule["name"]]
        fitting = set(planted.faults[rule["name"]]) | set(planted.kept_texts)
        assert 0 < len(shown) <= 3 and {one["position"] for one in shown} <= fitting
        page = (done.out / "report" / f"{rule['name']}.html").read_text()
        assert "data:image/jpeg;base64," in page and f"record {shown[0]['position']}" in page
    assert report["examples"]["near_test_images"][0]["why"].startswith("like record 0 of seen")
    why = [one["why"] for one in report["examples"]["rare_words"]]
    assert any("'zyzzyva' occurs 1 times" in one for one in why)
    assert report["kept"] == len(planted.clean)
    assert "image cannot be decoded" in (done.out / "report" / "bad_records.html").read_text()


BEST = dict(
    min_side=None,
    max_aspect=None,
    max_texts_per_image=None,
    test_distance=None,
    max_images_per_text=None,
    vocabulary=None,
    min_words=None,
    max_words=None,
    duplicates="images",
    score="brightness",
    top_share=0.5,
)


def test_a_run_that_failed_goes_on_and_array_records_hold_the_best_share(
    folder, planted, monkeypatch
):
    out = folder / "arrays"
    options = dict(format="array_record", rules=BEST, test_images={})
    expected = best_share(planted)
    monkeypatch.setenv("PAIRS_FAIL_AT", str(expected[-1]))
    with pytest.raises(DataError, match="the disk is gone"):
        prepare(config(folder, out, planted, **options), log=lambda _: None)
    assert not out.exists()
    first = out.with_name("arrays.unfinished") / "00000.array_record"
    written = first.stat().st_mtime_ns
    monkeypatch.delenv("PAIRS_FAIL_AT")
    with pytest.raises(ConfigError, match="unfinished run of other options"):
        prepare(config(folder, out, planted, **options, seed=1), log=lambda _: None)
    done = prepare(config(folder, out, planted, **options), log=lambda _: None)
    assert (out / first.name).stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="is finished; choose another folder"):
        prepare(config(folder, out, planted, **options), log=lambda _: None)

    assert [rule.name for rule in done.rules] == ["duplicates", "score"]
    sources = [
        array_record_data_source.ArrayRecordDataSource(str(path))
        for path in sorted(out.glob("*.array_record"))
    ]
    found = [msgpack.unpackb(source[i]) for source in sources for i in range(len(source))]
    assert [record["image"] for record in found] == [
        planted.records[position]["image"] for position in expected
    ]
    read = opened(out)
    assert [read.read(i)["image"] for i in range(len(read))] == [
        record["image"] for record in found
    ]
    boxes = found[0]["boxes"]
    assert (
        np.frombuffer(boxes["data"], boxes["dtype"]).reshape(boxes["shape"]).tolist()
        == planted.records[expected[0]]["boxes"]
    )


def best_share(planted):
    """Positions, by plain sorting."""
    bad = {position for name, found in planted.faults.items() if " " in name for position in found}
    first = {}
    for position, record in enumerate(planted.records):
        if position not in bad:
            first.setdefault(record["image"], position)
    pairs = []
    for image, position in first.items():
        record = planted.records[position]
        pairs += [(samples.brightness(image), position)] * (
            len(record["alt"]) + ("title" in record)
        )
    best = sorted(pairs, reverse=True)[: len(pairs) // 2]
    return sorted({position for _, position in best})


@pytest.mark.slow
def test_shards_in_an_object_store_are_the_same(done, folder, planted, monkeypatch):
    import object_store

    bucket = object_store.start(monkeypatch)
    out = f"{bucket}/prepared"
    prepare(config(folder, out, planted), log=lambda _: None)
    there = {
        str(path).removeprefix(f"{out}/"): path for path in paths.files_below(paths.as_path(out))
    }
    mine = contents(done.out)
    assert set(there) == set(mine)  # nothing of the work folder is left
    for name, path in there.items():
        assert (
            name == "prepared.json" or hashlib.sha256(path.read_bytes()).hexdigest() == mine[name]
        )
    with pytest.raises(ConfigError, match="is finished; choose another folder"):
        prepare(config(folder, out, planted), log=lambda _: None)


@pytest.mark.slow
def test_other_processes_and_ranges_write_the_same_bytes(done, folder, planted, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[2]))
    workers = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    other = prepare(
        config(folder, folder / "other", planted, range_records=20), workers, log=lambda _: None
    )
    assert same(done.out, other.out)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # two minutes on free cores
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark_writes_the_same_bytes(done, folder, planted, monkeypatch):
    pytest.importorskip("beam_pyspark_runner")
    from pyspark.sql import SparkSession

    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[2]))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    # Without a parallelism every join has as many parts as both of its sides together.
    monkeypatch.setenv(
        "PYSPARK_SUBMIT_ARGS",
        "--master local[2] --conf spark.default.parallelism=2 --conf spark.ui.enabled=false "
        "pyspark-shell",
    )
    other = prepare(
        config(folder, folder / "spark", planted), [f"--runner={SPARK}"], log=lambda _: None
    )
    SparkSession.getActiveSession().stop()
    assert same(done.out, other.out)


def same(one, other):
    """Whether two folders hold the same bytes, but for the options in `prepared.json`."""
    first = contents(one)
    second = contents(other)
    assert first.pop("prepared.json") and second.pop("prepared.json")
    return first == second


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_looks_whole_and_goes_on(done, folder, planted):
    out = folder / "killed"
    file = folder / "killed.py"
    node = options(folder, out, planted)
    file.write_text(
        f"import ml_collections\ndef get_config():\n    return "
        f"ml_collections.ConfigDict({node!r})\n"
    )
    command = [sys.executable, "-m", "jaxvl.data.prepare", f"--config={file}"]
    victim = planted.clean[16 + 3]  # in the second shard
    environment = os.environ | {"PAIRS_DIE_AT": str(victim), "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=HERE.parents[2]
    )
    assert killed.returncode == 9, killed.stderr[-2000:]
    assert not out.exists()
    unfinished = out.with_name("killed.unfinished")
    assert not (unfinished / "sizes.json").exists() and not (unfinished / "prepared.json").exists()
    first = unfinished / "00000.tar"
    written = first.stat().st_mtime_ns
    assert not (unfinished / "00001.tar").exists()
    prepare(config(folder, out, planted), log=lambda _: None)
    assert not unfinished.exists()
    assert (out / "00000.tar").stat().st_mtime_ns == written
    assert same(done.out, out)


class Killed(BaseException):
    """As a signal would end the process at that line."""


WHERE = [
    (paths, "write_text", "prepared.json"),
    (paths, "move", "move.unfinished"),
    (shutil, "rmtree", "work"),
]


@pytest.mark.parametrize("module, function, name", WHERE, ids=["manifest", "rename", "clean up"])
def test_a_run_that_is_killed_while_it_finishes_is_whole_or_goes_on(
    module, function, name, done, folder, planted
):
    out = folder / function
    real = getattr(module, function)

    def killed(path, *rest, **options):
        if pathlib.Path(path).name == name:
            raise Killed
        return real(path, *rest, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, function, killed)
        prepare(config(folder, out, planted), log=lambda _: None)
    assert out.exists() == (function == "rmtree")
    if not out.exists():
        prepare(config(folder, out, planted), log=lambda _: None)
        assert same(done.out, out)
    with pytest.raises(ConfigError, match="is finished; choose another folder"):
        prepare(config(folder, out, planted), log=lambda _: None)
    assert len(opened(out)) == len(planted.clean)


def test_options_of_beam_in_the_help_are_known():
    options = re.findall(
        r"--[a-z_]+=[\w:/.]*\w", prepare_command.__doc__.partition("Where it runs")[2]
    )
    assert len(options) > 10
    parse(
        ["--source=pairs_in_a_file", f"--plugins={PLUGIN}", "--source.path=x", "--out=x", *options]
    )


def test_wrong_options_are_one_sentence(folder, planted, capsys):
    base = [
        f"--plugins={PLUGIN}",
        "--source=pairs_in_a_file",
        f"--source.path={folder / 'pairs.msgpack'}",
        f"--out={folder / 'x'}",
    ]
    assert parse([*base, "--rules.min_side=None", "--runner=FlinkRunner"])[1] == [
        "--runner=FlinkRunner"
    ]
    for more, said in (
        (["--texts=('nothing',)"], "'nothing' is no column of pairs.msgpack"),
        (["--texts=('image',)"], "is of kind image; must be text or texts"),
        (["--rules.minside=3"], "did you mean 'min_side'"),
        (["--runer=DirectRunner"], "did you mean 'runner'"),
        (["--rules.min_words=30", "--texts=('alt',)"], "is more than max_words"),
        (["--rules.min_score=0.3", "--texts=('alt',)"], "needs a scorer"),
        ([f"--rules.uid_subset={PLUGIN}", "--texts=('alt',)"], "cannot be read"),
        ([f"--out={folder}", "--texts=('alt',)"], "is there already"),
    ):
        assert main([*base, *more]) == 2
        assert said in " ".join(capsys.readouterr().err.split()), more
