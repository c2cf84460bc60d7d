"""What is found below a folder, and what is said of the rest."""

import io
import tarfile

import pytest
from tiny_sets import class_folders, coco, crossmodal, flickr, karpathy, mmvp, objectnet, png, put, sugar_crepe, write_json, xtd

from jaxvl.data.class_sets import imagenet_classes
from jaxvl.data.records import DataError
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
    put(root, "ImageNetV2-matched-frequency/10/a.jpeg", 1)
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
    assert names == sorted([
        ("wds/vtab/cifar10", "en"), ("wds/fgvc_aircraft", "en"), ("imagenet", "en"), ("imagenet-r", "en"), ("imagenetv2", "en"),
        ("objectnet", "en"), ("eurosat", "en"), ("mscoco_captions", "en"), ("sugar_crepe/swap_att", "en"), ("flickr30k", "en"),
        ("crossmodal3600", "de"), ("crossmodal3600", "en"), ("xtd10", "de"), ("xtd10", "es"), ("xtd10", "jp"), ("mmvp_vlm", "en"),
    ])  # fmt: skip
    unknown = {folder.relative_to(tmp_path).as_posix(): why for folder, why in there.unknown}
    assert "training split" in unknown["imagenet/train"]
    assert "mscoco_captions was already found in" in unknown["karpathy_coco"]
    assert unknown["pictures"] == "1 pictures without annotations or folders of classes"
    assert "no known layout" in unknown["nothing"]
    assert not any(why.startswith("a folder for each class") for why in unknown.values()), unknown
    assert not any(path.startswith(("coco/", "xm3600", "xtd/XTD10", "wds")) for path in unknown), unknown
    keys = [found.key for found in there.found]
    assert len(set(keys)) == len(keys) and "crossmodal3600_de" in keys and "wds_vtab_cifar10" in keys
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
    assert [found.name for found in survey(class_folders(tmp_path / "dtd", ["a", "b"])).found] == ["dtd"]


def test_nearly_benchmarks_are_told_with_the_reason(tmp_path):
    (wds(tmp_path / "wds_a") / "test" / "nshards.txt").unlink()
    write_json(tmp_path / "xm" / "captions.jsonl", [])
    (tmp_path / "xm" / "images").mkdir()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "00000.tar").write_bytes(b"")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "test.parquet").write_bytes(b"PAR1")
    unknown = {folder.name: why for folder, why in survey(tmp_path).unknown}
    assert "test/nshards.txt, which says how many there are, is missing" in unknown["wds_a"]
    assert "line 1 is no JSON object" in unknown["xm"]
    assert "1 tar files without test/nshards.txt" in unknown["tars"]
    assert "test.parquet: cannot be read as parquet" in unknown["hf"]


def test_empty_and_missing_roots(tmp_path):
    assert [why for _, why in survey(tmp_path).unknown] == ["empty"]
    with pytest.raises(DataError, match="is no folder"):
        survey(tmp_path / "missing")


def test_a_loop_of_links_ends(tmp_path):
    class_folders(tmp_path / "dtd", ["a", "b"])
    (tmp_path / "again").symlink_to(tmp_path)
    assert {found.name for found in survey(tmp_path).found} == {"dtd"}
