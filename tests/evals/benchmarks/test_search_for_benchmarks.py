"""What is found below a folder, and what is said of the rest."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_sets import (
    class_folders,
    coco,
    crossmodal,
    flickr,
    karpathy,
    mmvp,
    objectnet,
    png,
    put,
    sugar_crepe,
    write_json,
    xtd,
)

from jaxvl.data.class_sets import imagenet_classes
from jaxvl.data.records import DataError
from jaxvl.evals.benchmarks import search
from jaxvl.evals.benchmarks.search import survey

WNIDS = [wnid for wnid, _ in imagenet_classes()]


def wds(folder, kind=None, label=b"0"):
    """A folder of one tar with one record."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("cat\ndog\n")
    if kind:
        (folder / "dataset_type.txt").write_text(kind)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for name, content in (("a.png", png(0)), ("a.cls", label)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder


def everything(root):
    wds(root / "clip_benchmark" / "wds_vtab-cifar10")
    wds(root / "datacomp" / "wds_fgvc_aircraft_test")
    class_folders(root / "imagenet" / "val", WNIDS[:20], each=1)
    class_folders(root / "imagenet" / "train", WNIDS[:20], each=1)
    class_folders(root / "imagenet-r", WNIDS[::5], each=1)
    class_folders(root / "ImageNetV2-matched-frequency", map(str, range(1000)), each=1)
    objectnet(root / "objectnet")
    class_folders(root / "vtab" / "eurosat" / "test", ["forest", "river"])
    coco(root / "coco")
    sugar_crepe(root / "coco", "swap_att")
    karpathy(root / "karpathy_coco")
    flickr(root / "flickr30k")
    crossmodal(root / "xm3600", ("de", "en"))
    xtd(root / "xtd")
    mmvp(root / "MMVP_VLM")
    put(root, "pictures/a.jpg", 1)
    (root / "nothing" / "deeper").mkdir(parents=True)
    return root


def test_everything_in_one_folder(tmp_path):
    there = survey(everything(tmp_path))
    names = sorted((found.name, found.language) for found in there.found)
    assert names == sorted(
        [
            ("wds/vtab/cifar10", "en"),
            ("wds/fgvc_aircraft", "en"),
            ("imagenet", "en"),
            ("imagenet-r", "en"),
            ("imagenetv2", "en"),
            ("objectnet", "en"),
            ("eurosat", "en"),
            ("mscoco_captions", "en"),
            ("sugar_crepe/swap_att", "en"),
            ("flickr30k", "en"),
            ("crossmodal3600", "de"),
            ("crossmodal3600", "en"),
            ("xtd10", "de"),
            ("xtd10", "es"),
            ("xtd10", "jp"),
            ("mmvp_vlm", "en"),
        ]
    )
    unknown = {folder.relative_to(tmp_path).as_posix(): why for folder, why in there.unknown}
    assert "training split" in unknown["imagenet/train"]
    assert "mscoco_captions was already found in" in unknown["karpathy_coco"]
    assert unknown["pictures"] == "1 pictures without annotations or folders of classes"
    assert "no known layout" in unknown["nothing"]
    assert not any(why.startswith("a folder for each class") for why in unknown.values()), unknown
    assert not any(path.startswith(("coco/", "xm3600", "xtd/XTD10", "wds")) for path in unknown), (
        unknown
    )
    keys = [found.key for found in there.found]
    assert (
        len(set(keys)) == len(keys) and "crossmodal3600_de" in keys and "wds_vtab_cifar10" in keys
    )
    for found in there.found:
        assert len(found.open().source) > 0


def test_what_is_chosen(tmp_path):
    there = survey(everything(tmp_path))
    names = lambda *args: sorted(found.key for found in there.chosen(*args))
    assert names(["imagenet*"], None) == ["imagenet", "imagenet-r", "imagenetv2"]
    assert names(["wds/vtab/*", "flickr30k"], None) == ["flickr30k", "wds_vtab_cifar10"]
    assert names(None, ["de"]) == ["crossmodal3600_de", "xtd10_de"]
    assert names(["cifar"], None) == []


def test_the_root_may_be_the_benchmark_itself(tmp_path):
    assert [found.name for found in survey(wds(tmp_path / "wds_cars")).found] == ["wds/cars"]
    assert [found.name for found in survey(class_folders(tmp_path / "dtd", ["a", "b"])).found] == [
        "dtd"
    ]


def test_nearly_benchmarks_are_told_with_the_reason(tmp_path):
    (wds(tmp_path / "wds_a") / "test" / "nshards.txt").unlink()
    write_json(tmp_path / "xm" / "captions.jsonl", [])
    (tmp_path / "xm" / "images").mkdir()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "00000.tar").write_bytes(b"")
    mmvp(tmp_path / "mmvp")
    (tmp_path / "mmvp" / "MLLM_VLM Images").rename(tmp_path / "mmvp" / "pictures")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "test.parquet").write_bytes(b"PAR1")
    unknown = {folder.name: why for folder, why in survey(tmp_path).unknown}
    assert "test/nshards.txt, which says how many there are, is missing" in unknown["wds_a"]
    assert "line 1 is no JSON object" in unknown["xm"]
    assert "1 tar files without test/nshards.txt" in unknown["tars"]
    assert "has Questions.csv, but no folder 'MLLM_VLM Images'" in unknown["mmvp"]
    assert "test.parquet: cannot be read as parquet" in unknown["hf"]
    assert len(unknown) == len(survey(tmp_path).unknown), "each is told once"


def test_empty_and_missing_roots(tmp_path):
    assert [why for _, why in survey(tmp_path).unknown] == ["empty"]
    with pytest.raises(DataError, match="is no folder"):
        survey(tmp_path / "missing")


def test_a_loop_of_links_ends(tmp_path):
    """And each folder is looked at once, under its own name where it has one here."""
    class_folders(tmp_path / "dtd", ["a", "b"])
    wds(tmp_path / "elsewhere" / "wds_cars")
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "root" / "in" / "again").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "a_link").symlink_to(tmp_path / "root" / "dtd")
    (tmp_path / "dtd").rename(tmp_path / "root" / "dtd")
    (tmp_path / "root" / "wds_linked").symlink_to(tmp_path / "elsewhere" / "wds_cars")
    there = survey(tmp_path / "root")
    assert [found.name for found in there.found] == ["dtd", "wds/linked"]
    assert [folder.name for folder, _ in there.unknown] == ["in"]


def test_pictures_of_mmeb_are_no_folders_of_classes(tmp_path):
    table = pa.table(
        {
            "qry_text": ["a"],
            "qry_img_path": ["A/0.jpg"],
            "tgt_text": [["b", "c"]],
            "tgt_img_path": [["", ""]],
        }
    )
    for name in ("A", "B"):
        put(tmp_path, f"eval_images/{name}/0.jpg", 1)
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "test-00000-of-00001.parquet")
    there = survey(tmp_path)
    assert [found.name for found in there.found] == ["mmeb/A", "mmeb/B"] and there.unknown == ()


def test_folders_of_classes_are_not_looked_through(tmp_path, monkeypatch):
    """A training split has a thousand of them."""
    class_folders(tmp_path / "imagenet" / "train", WNIDS[:30], each=1)
    class_folders(tmp_path / "imagenet" / "val", WNIDS[:30], each=1)
    class_folders(tmp_path / "dtd", ["a", "b", "c"])
    seen = []
    real = search._look
    monkeypatch.setattr(
        search, "_look", lambda folder, *args: seen.append(folder.name) or real(folder, *args)
    )
    assert len(survey(tmp_path).found) == 2
    assert sorted(seen[1:]) == ["dtd", "imagenet", "train", "val"]


def test_a_layout_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    def fail(folder):
        if folder.name == "odd":
            raise KeyError("a bug")
        return []

    monkeypatch.setattr(search, "_WHOLE", (fail, *search._WHOLE))
    (tmp_path / "odd").mkdir()
    wds(tmp_path / "wds_cars")
    there = survey(tmp_path)
    assert [found.name for found in there.found] == ["wds/cars"]
    assert there.unknown == (
        (tmp_path / "odd", f"{tmp_path / 'odd'}: cannot be looked at (KeyError: 'a bug')"),
    )
