"""Folders of tars: CLIP_benchmark's own tool writes them, its own reader says what is in them."""

import contextlib
import io
import pickle
import tarfile

import clip_benchmark_oracle as oracle
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_sets import number_of, numbers_of, png

from jaxvl.data.records import BadRecord, DataError
from jaxvl.evals.benchmarks import wds

NAMES = ["cat", "dog, a large one", "Krähe"]
TEMPLATES = ["a photo of {c}.", "{c}: one {c} among many"]


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "wds_vtab-tiny"
    rows = [(png(k), k % 3) for k in range(11)]
    oracle.write_classification(folder, rows, NAMES, TEMPLATES, max_count=4)
    return folder


def test_a_folder_of_their_tool_is_read_as_they_read_it(classified):
    (found,) = wds.find(classified)
    assert (found.name, found.language) == ("wds/vtab/tiny", "en")
    benchmark = found.open()
    rows, names, templates = oracle.read(classified)
    assert (classified / "test" / "nshards.txt").read_text().strip() == "3"
    assert len(benchmark.source) == len(rows) == 11
    for i, (pixels, label) in enumerate(rows):
        record = benchmark.source[i]
        assert record["label"] == label
        np.testing.assert_array_equal(
            np.asarray(pixels)[..., 0].argmax(), number_of(record["image"])
        )
    assert list(benchmark.classes.names["en"]) == names
    assert [t.replace("{}", "{c}") for t in benchmark.classes.templates] == templates
    assert benchmark.source.column("label").tolist() == [k % 3 for k in range(11)]
    assert benchmark.source.shards().tolist() == [4, 4, 3]


def test_retrieval_and_captions_with_line_breaks(tmp_path):
    folder = tmp_path / "wds_tiny_test"
    captions = [[f"caption {k}", "two\nlines", "a, b\u2028c"] for k in range(5)]
    oracle.write_retrieval(folder, [(png(k), captions[k]) for k in range(5)])
    (found,) = wds.find(folder)
    benchmark = found.open()
    rows, _, _ = oracle.read(folder)
    assert (found.name, benchmark.task) == ("wds/tiny", "retrieval")
    assert [benchmark.source[i]["captions"] for i in range(5)] == [texts for _, texts in rows]
    assert benchmark.source[0]["captions"][1] == r"two\nlines"
    assert numbers_of(benchmark.source) == list(range(5))


def test_multilabel(tmp_path):
    folder = tmp_path / "wds_voc2007_multilabel"
    vectors = np.random.default_rng(0).integers(0, 2, (6, 3))
    oracle.write_classification(
        folder, [(png(k), vectors[k]) for k in range(6)], NAMES, TEMPLATES, multilabel=True
    )
    benchmark = wds.find(folder)[0].open()
    rows, _, _ = oracle.read(folder)
    assert benchmark.task == "multilabel"
    for i, (_, vector) in enumerate(rows):
        np.testing.assert_array_equal(benchmark.source[i]["labels"], vector)


@pytest.mark.parametrize(
    "folder, name",
    [
        ("wds_vtab-cifar10", "vtab/cifar10"),
        ("wds_vtab-cifar10_test", "vtab/cifar10"),
        ("wds_imagenet-a", "imagenet-a"),
        ("wds_wilds-iwildcam_test", "wilds/iwildcam"),
        ("wds_food101", "food101"),
        ("anything", "anything"),
    ],
)
def test_names(folder, name):
    assert wds.name_of(folder) == name


def test_a_source_goes_to_other_processes_and_reads_pictures_only_when_asked(classified):
    source = pickle.loads(pickle.dumps(wds.find(classified)[0].open().source))
    assert numbers_of(source) == list(range(11))
    assert source.read(3, ("label",)) == {"label": 0}
    with pytest.raises(IndexError):
        source.read(11)


def test_the_fingerprint_depends_on_content_and_not_on_the_place(classified, tmp_path):
    same = tmp_path / "elsewhere"
    oracle.write_classification(
        same, [(png(k), k % 3) for k in range(11)], NAMES, TEMPLATES, max_count=4
    )
    other = tmp_path / "other"
    oracle.write_classification(
        other, [(png(k), (k + 1) % 3) for k in range(11)], NAMES, TEMPLATES, max_count=4
    )
    prints = [wds.find(folder)[0].open().source.fingerprint for folder in (classified, same, other)]
    assert prints[0] == prints[1] != prints[2]


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def by_hand(folder, members, nshards="1\n", names="cat\ndog\n", kind=None):
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text(nshards)
    if names:
        (folder / "classnames.txt").write_text(names)
    if kind:
        (folder / "dataset_type.txt").write_text(kind)
    return folder


def test_odd_samples(tmp_path):
    """Members that do not lie together, a dot in a suffix, upper case, links, a sample without
    label, one without picture."""
    members = [
        ("a.png", png(1)),
        ("b.png", png(2)),
        ("b.cls", b"1"),
        ("a.cls", b" 0\n"),
        ("c.PNG", png(3)),
        ("c.cls", b"x"),
        ("d.cls", b"1"),
    ]
    folder = by_hand(tmp_path / "odd", members)
    with tarfile.open(folder / "test" / "0.tar", "a") as tar:
        link = tarfile.TarInfo("e.png")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        tar.addfile(link)
    source = wds.find(folder)[0].open().source
    assert len(source) == 4 and source.column("label").tolist() == [0, 1, None, 1]
    assert [number_of(source[i]["image"]) for i in range(3)] == [1, 2, 3]
    with pytest.raises(BadRecord, match=r"record is incomplete: .*odd, record 3: no picture"):
        source[3]


def test_pickled_arrays_are_not_loaded(tmp_path):
    content = io.BytesIO()
    np.save(content, np.array([{"a": 1}], object), allow_pickle=True)
    folder = by_hand(
        tmp_path / "bad", [("a.png", png(1)), ("a.npy", content.getvalue())], kind="multilabel"
    )
    assert wds.find(folder)[0].open().source.column("labels").tolist() == [None]


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(nshards="many"), r"nshards.txt: 'many' must be the number of shards"),
        (dict(nshards="0"), r"nshards.txt: '0' must be the number of shards"),
        (dict(nshards="2"), r"1.tar: is missing"),
        (dict(names=None), r"classnames.txt: is missing; classification needs it"),
        (dict(names="cat\n"), r"label 1 has no name; classnames.txt names 1 classes"),
        (dict(names="\n\n"), r"classnames.txt: holds no class name"),
        (
            dict(kind="segmentation"),
            r"dataset_type.txt: 'segmentation' must be classification, multilabel or retrieval",
        ),
        (dict(kind="multilabel", members=[("a.png", png(1)), ("a.npy", b"")]), None),
        (dict(members=[("a.png", png(1))]), r"no record has a label"),
    ],
)
def test_damaged_folders_say_what_is_wrong(tmp_path, change, says):
    folder = by_hand(
        tmp_path / "set", **{"members": [("a.png", png(1)), ("a.cls", b"1")], **change}
    )
    (found,) = wds.find(folder)
    if says is None:
        assert found.open().source.column("labels").tolist() == [None]
        return
    with pytest.raises(DataError, match=says):
        found.open()


def test_a_tar_that_is_cut_short(tmp_path):
    folder = by_hand(
        tmp_path / "set",
        [(f"{k}.{s}", c) for k in range(9) for s, c in (("png", png(k)), ("cls", b"0"))],
    )
    path = folder / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="set: .*(member is cut short|no end mark)"):
        wds.find(folder)[0].open()


def test_shards_without_their_number_are_told(tmp_path):
    folder = by_hand(tmp_path / "set", [("a.png", png(1)), ("a.cls", b"1")])
    (folder / "test" / "nshards.txt").unlink()
    with pytest.raises(DataError, match="has test/0.tar, but test/nshards.txt, .* is missing"):
        wds.find(folder)


def test_metadata_of_datacomp(tmp_path):
    """A member .npy beside the label: region, year and class of FMoW."""
    content = io.BytesIO()
    np.save(content, np.array([3, 2016, 1]))
    folder = by_hand(
        tmp_path / "wds_wilds-fmow_test",
        [("a.png", png(1)), ("a.cls", b"1"), ("a.npy", content.getvalue())],
    )
    benchmark = wds.find(folder)[0].open()
    assert (benchmark.name, benchmark.main_metric) == ("wds/wilds/fmow", "acc_worst_region")
    assert (
        benchmark.source[0]["metadata"].tolist() == [3, 2016, 1]
        and benchmark.columns["metadata"] == "metadata"
    )
    other = by_hand(tmp_path / "wds_fairface_test", [("a.png", png(1))])
    with pytest.raises(DataError, match="fairface asks several questions of each image"):
        wds.find(other)[0].open()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32 - 1))
def test_any_damage_of_a_tar_is_one_kind_of_error(tmp_path, seed):
    """Bytes changed, cut, repeated or put in: it is opened and read, or a DataError or BadRecord
    says why not."""
    rng = np.random.default_rng(seed)
    folder = tmp_path / "wds_damaged"
    if not folder.exists():
        by_hand(
            folder,
            [
                (f"{k}.{suffix}", content)
                for k in range(4)
                for suffix, content in (("png", png(k)), ("cls", b"1"), ("txt", b"a\nb"))
            ],
        )
        (folder / "whole").write_bytes((folder / "test" / "0.tar").read_bytes())
    content = bytearray((folder / "whole").read_bytes())
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, len(content)))
        kind = rng.integers(0, 4)
        if kind == 0:
            content[at] = rng.integers(0, 256)
        elif kind == 1:
            content = content[:at] or content
        elif kind == 2:
            content[at:at] = bytes(rng.integers(0, 256, rng.integers(1, 600), dtype=np.uint8))
        else:
            content[at:at] = content[at // 512 * 512 : at // 512 * 512 + 512]
    (folder / "test" / "0.tar").write_bytes(bytes(content))
    try:
        source = wds.find(folder)[0].open().source
        assert len(source.fingerprint) == 64
    except DataError as error:
        assert "0.tar" in str(error) or "label" in str(error)
        return
    for i in range(len(source)):
        with contextlib.suppress(BadRecord):
            source[i]
