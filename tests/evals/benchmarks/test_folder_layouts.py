"""Layouts of folders and annotations: the readers of torchvision and clip_benchmark say what is in
them."""

import json
import pathlib

import clip_benchmark_oracle  # noqa: F401 (makes torchvision importable)
import numpy as np
import pytest
from clip_benchmark.datasets import builder, crossmodal3600, flickr, objectnet
from clip_benchmark.datasets import sugar_crepe as their_sugar_crepe
from tiny_sets import (
    class_folders,
    coco,
    crossmodal,
    karpathy,
    mmvp,
    number_of,
    numbers_of,
    put,
    sugar_crepe,
    write_json,
    xtd,
)
from tiny_sets import (
    flickr as write_flickr,
)
from tiny_sets import (
    objectnet as write_objectnet,
)
from torchvision.datasets import CocoCaptions, ImageFolder

from jaxvl.data.class_sets import imagenet_classes
from jaxvl.data.records import BadRecord, DataError
from jaxvl.evals.benchmarks import image_folder, imagenet, multilingual
from jaxvl.evals.benchmarks import karpathy as karpathy_layout
from jaxvl.evals.benchmarks import mmvp as mmvp_layout
from jaxvl.evals.benchmarks import objectnet as objectnet_layout
from jaxvl.evals.benchmarks import sugar_crepe as sugar_crepe_layout

WNIDS = [wnid for wnid, _ in imagenet_classes()]
NAMES = dict(imagenet_classes())


def labels_of(benchmark):
    return benchmark.source.column("label").tolist()


def paths_of(source):
    return [str(source._folder / file) for file in source._files]


def only(found):
    assert len(found) == 1
    return found[0]


def same_as_image_folder(benchmark, folder):
    theirs = ImageFolder(str(folder))
    assert paths_of(benchmark.source) == [path for path, _ in theirs.samples]
    assert labels_of(benchmark) == theirs.targets
    return theirs


def test_imagenet_numbers_classes_as_torchvision(tmp_path):
    folder = class_folders(tmp_path / "imagenet" / "val", WNIDS, each=1)
    found = only(imagenet.find(folder))
    assert found.name == "imagenet1k"
    benchmark = found.open()
    same_as_image_folder(benchmark, folder)
    assert (
        benchmark.classes.names["en"] == tuple(NAMES.values())
        and len(benchmark.classes.templates) == 80
    )
    assert benchmark.notes == ()


def test_wnids_are_those_of_clip_benchmark():
    assert builder.all_imagenet_wordnet_ids == WNIDS == sorted(WNIDS)


@pytest.mark.parametrize(
    "folder, name",
    [
        ("imagenet-a", "imagenet-a"),
        ("ImageNet-R", "imagenet-r"),
        ("imagenet_o", "imagenet-o"),
        ("imagenet-r/val", "imagenet-r"),
    ],
)
def test_variants_have_the_classes_that_have_folders(tmp_path, folder, name):
    wnids = WNIDS[3::5]
    assert len(wnids) == 200
    folder = class_folders(tmp_path / folder, wnids, each=1, suffix=".jpg")
    found = only(imagenet.find(folder))
    benchmark = found.open()
    same_as_image_folder(benchmark, folder)
    assert found.name == name and benchmark.classes.names["en"] == tuple(
        NAMES[wnid] for wnid in wnids
    )


def test_a_variant_with_a_class_missing_is_refused_and_a_subset_is_told(tmp_path):
    with pytest.raises(DataError, match="has 3 class folders; imagenet-a has 200"):
        only(imagenet.find(class_folders(tmp_path / "imagenet-a", WNIDS[:3]))).open()
    with pytest.raises(DataError, match="has 3 class folders; imagenet_sketch has 1000"):
        only(imagenet.find(class_folders(tmp_path / "ImageNet-Sketch", WNIDS[:3]))).open()
    found = only(imagenet.find(class_folders(tmp_path / "ten", WNIDS[:10])))
    assert found.name == "ten" and "10 of the 1,000" in found.open().notes[0]
    with pytest.raises(DataError, match="'n99999999' is no class of ImageNet"):
        only(imagenet.find(class_folders(tmp_path / "other", [*WNIDS[:3], "n99999999"]))).open()
    with pytest.raises(DataError, match="is a training split"):
        imagenet.find(class_folders(tmp_path / "imagenet" / "train", WNIDS[:3]))


def test_folder_names_of_v2_are_numbers(tmp_path):
    folder = class_folders(
        tmp_path / "ImageNetV2-matched-frequency", map(str, range(1000)), each=1, suffix=".jpeg"
    )
    found = only(imagenet.find(folder))
    benchmark = found.open()
    assert found.name == "imagenetv2" and len(benchmark.classes) == 1000
    theirs = {
        path: int(pathlib.Path(path).parent.name) for path in map(str, folder.glob("**/*.jpeg"))
    }  # as their ImageNetV2Dataset
    labels = dict(zip(paths_of(benchmark.source), labels_of(benchmark)))
    assert labels == theirs
    assert labels != dict(ImageFolder(str(folder)).samples), (
        "torchvision numbers these by text, which is wrong for V2"
    )
    other = only(
        imagenet.find(
            class_folders(tmp_path / "imagenetv2-top-images-format-val", ["3"], suffix=".jpeg")
        )
    )
    assert other.name == "imagenetv2-top-images"
    with pytest.raises(
        DataError, match="has 1 class folders; imagenetv2-top-images has 1000, numbered from 0"
    ):
        other.open()


def test_objectnet_as_theirs(tmp_path):
    root = write_objectnet(tmp_path / "objectnet")
    benchmark = only(objectnet_layout.find(root)).open()
    mappings = root / "objectnet-1.0" / "mappings"
    for file in mappings.iterdir():
        (root / file.name).write_bytes(file.read_bytes())
    write_json(root / "pytorch_to_imagenet_2012_id.json", {"0": 0, "1": 1, "2": 2})
    (root / "imagenet_to_label_2012_v2").write_text("backpack, knapsack\nbag\nanalog clock\n")
    theirs = objectnet.ObjectNetDataset(str(root), None)
    assert list(benchmark.classes.names["en"]) == theirs.classes == ["backpack", "alarm clock"]
    assert paths_of(benchmark.source) == [path for path, _ in theirs.samples]
    assert labels_of(benchmark) == [theirs[i][1] for i in range(len(theirs))]
    (mappings / "objectnet_to_imagenet_1k.json").unlink()
    (root / "objectnet_to_imagenet_1k.json").unlink()
    with pytest.raises(
        DataError, match="objectnet_to_imagenet_1k.json of its folder mappings are missing"
    ):
        objectnet_layout.find(root)


def test_a_folder_for_each_class_as_torchvision(tmp_path):
    folder = class_folders(
        tmp_path / "eurosat" / "test", ["b_two", "A", "a", "10", "9"], each=2, suffix=".PNG"
    )
    put(folder, "A/deeper/more.webp", 3)
    (folder / "A" / "readme.txt").write_text("no picture")
    found = only(image_folder.find(folder))
    benchmark = found.open()
    same_as_image_folder(benchmark, folder)
    assert found.name == "eurosat" and benchmark.classes.names["en"] == (
        "10",
        "9",
        "A",
        "a",
        "b two",
    )


def test_names_and_templates_of_class_folders(tmp_path):
    folder = class_folders(tmp_path / "pets" / "test", ["x", "y"])
    benchmark = only(image_folder.find(folder)).open()
    assert benchmark.classes.names["en"] == ("x", "y") and benchmark.classes.templates == ()
    write_json(tmp_path / "en_classnames.json", {"pets": ["cat", "dog"], "dtd": ["a"]})
    write_json(
        tmp_path / "en_zeroshot_classification_templates.json", {"pets": ["a {c}, a type of pet."]}
    )
    benchmark = only(image_folder.find(folder)).open()
    assert benchmark.classes.names["en"] == ("cat", "dog") and benchmark.classes.templates == (
        "a {}, a type of pet.",
    )
    (tmp_path / "pets" / "classnames.txt").write_text("Katze\nHund\n")
    assert only(image_folder.find(folder)).open().classes.names["en"] == ("Katze", "Hund")
    (tmp_path / "pets" / "classnames.txt").write_text("Katze\n")
    with pytest.raises(DataError, match="names 1 classes, but .* has 2 folders"):
        only(image_folder.find(folder)).open()


def test_numbered_class_folders_are_in_the_order_of_their_numbers(tmp_path):
    folder = class_folders(tmp_path / "svhn" / "images", [str(k) for k in range(12)], each=1)
    with pytest.raises(
        DataError, match="are numbers, as '0'; classnames.txt must name the classes"
    ):
        only(image_folder.find(folder)).open()
    (folder / "classnames.txt").write_text("\n".join(f"digit {k}" for k in range(12)))
    found = only(image_folder.find(folder))
    benchmark = found.open()
    assert found.name == "svhn", "the folder that says more than images"
    assert [f"digit {number}" for number in numbers_of(benchmark.source)] == [
        benchmark.classes.names["en"][k] for k in labels_of(benchmark)
    ]


def test_an_empty_class_folder_is_refused(tmp_path):
    folder = class_folders(tmp_path / "dtd", ["a", "b", "c"])
    (folder / "aa").mkdir()
    with pytest.raises(DataError, match="class folder 'aa' holds no picture"):
        only(image_folder.find(folder)).open()


def captions_of(benchmark):
    return benchmark.source.column("captions").tolist()


def test_coco_captions_as_torchvision(tmp_path, capsys):
    path = coco(tmp_path)
    found = only(karpathy_layout.find(tmp_path))
    benchmark = found.open()
    theirs = CocoCaptions(str(tmp_path / "val2014"), str(path))
    assert found.name == "mscoco_captions" and len(benchmark.source) == len(theirs) == 4
    for i in range(4):
        image, captions = theirs[i]
        assert captions_of(benchmark)[i] == captions
        assert number_of(benchmark.source[i]["image"]) == int(np.asarray(image)[..., 0].argmax())


@pytest.mark.parametrize(
    "name, language, of",
    [
        ("flickr30k_test_karpathy.txt", "en", "flickr30k"),
        ("flickr8k_test_zh.txt", "zh", "flickr8k"),
    ],
)
def test_flickr_as_theirs(tmp_path, name, language, of):
    path = write_flickr(tmp_path, name)
    found = only(karpathy_layout.find(tmp_path))
    benchmark = found.open()
    theirs = flickr.Flickr(str(tmp_path), str(path))
    assert (found.name, found.language) == (of, language)
    assert [
        (p.name, c)
        for p, c in zip(map(pathlib.Path, paths_of(benchmark.source)), captions_of(benchmark))
    ] == theirs.data


def test_karpathy_json(tmp_path):
    karpathy(tmp_path)
    benchmark = only(karpathy_layout.find(tmp_path)).open()
    assert numbers_of(benchmark.source) == [0, 1, 3, 4]
    assert captions_of(benchmark)[2] == [f"word 3, number {j} of 3" for j in range(5)]
    other = tmp_path / "flickr"
    karpathy(other, "dataset_flickr30k.json", filepath="")
    found = only(karpathy_layout.find(other))
    assert found.name == "flickr30k" and numbers_of(found.open().source) == [0, 1, 3, 4]


def test_crossmodal_3600_as_theirs(tmp_path, monkeypatch):
    folder = crossmodal(tmp_path / "xm3600")
    found = multilingual.find(folder)
    assert [(one.name, one.language) for one in found] == [
        ("crossmodal3600", lang) for lang in ("de", "en", "quz")
    ]
    crossmodal3600.create_annotation_file(str(tmp_path), "de")
    theirs = crossmodal3600.Crossmodal3600(
        str(tmp_path), str(tmp_path / "crossmodal3600_captions-de.json")
    )
    (file,) = multilingual.find(tmp_path)
    assert (file.name, file.language) == ("crossmodal3600", "de")
    for benchmark in (found[0].open(), file.open()):
        assert (
            captions_of(benchmark)
            == [theirs[i][1] for i in range(3)]
            == [["de 0"], ["de 1"], ["de 2"]]
        )
        assert numbers_of(benchmark.source) == [0, 1, 2]
    assert found[0].open().pictures == found[1].open().pictures, "languages share their pictures"


def test_their_json_of_another_machine(tmp_path):
    """Its paths lead nowhere here; the pictures lie below the file."""
    for i in range(3):
        put(tmp_path, f"xtd10/images/{i}.jpg", i)
    paths = [f"/home/someone/data/xtd10/images/{i}.jpg" for i in range(3)]
    write_json(
        tmp_path / "xtd10-ko.json",
        {"image_paths": paths, "annotations": ["a", "b", "c"], "indices": [0, 1, 2]},
    )
    benchmark = only(multilingual.find(tmp_path)).open()
    assert numbers_of(benchmark.source) == [0, 1, 2] and captions_of(benchmark) == [
        ["a"],
        ["b"],
        ["c"],
    ]


def test_xtd10(tmp_path):
    xtd(tmp_path)
    found = multilingual.find(tmp_path / "XTD10")
    assert [one.language for one in found] == ["de", "es", "jp"]
    assert captions_of(found[0].open()) == [["de 0"], ["de 1"], ["de 2"]] and numbers_of(
        found[2].open().source
    ) == [0, 1, 2]
    (tmp_path / "MIC" / "test_1kcaptions_de.txt").write_text("only one\n")
    with pytest.raises(DataError, match="has 1 captions, but test_image_names.txt 3 images"):
        found[0].open()


def test_sugar_crepe_as_theirs(tmp_path):
    path = sugar_crepe(tmp_path)
    found = only(sugar_crepe_layout.find(tmp_path))
    theirs = their_sugar_crepe.SugarCrepe(str(tmp_path / "val2017"), str(path))
    benchmark = found.open()
    assert found.name == "sugar_crepe/add_att" and len(theirs) == len(benchmark.source)
    for i in range(len(theirs)):
        image, captions = theirs[i]
        assert captions_of(benchmark)[i] == captions
        assert number_of(benchmark.source[i]["image"]) == int(np.asarray(image)[..., 0].argmax())


def test_mmvp_vlm(tmp_path):
    found = only(mmvp_layout.find(mmvp(tmp_path)))
    benchmark = found.open()
    assert numbers_of(benchmark.source) == list(range(6))
    assert captions_of(benchmark)[1] == ["statement, 1"]
    assert benchmark.source.column("group").tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(set(benchmark.source.column("kind"))) == ["Orientation and Direction", "Text"]
    (tmp_path / "Questions.csv").write_text("Question ID,Type,Statement\n1,Text,a\n")
    with pytest.raises(DataError, match="has 1 rows; must be pairs"):
        found.open()


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "", "a\0b"])
def test_annotations_do_not_lead_out_of_their_folder(tmp_path, name):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    rows = {"0": {"filename": "0.jpg", "caption": "a", "negative_caption": "b"}}
    rows["1"] = {"filename": name, "caption": "a", "negative_caption": "b"}
    put(tmp_path, "sets/val2017/0.jpg", 0)
    write_json(tmp_path / "sets" / "add_obj.json", rows)
    source = only(sugar_crepe_layout.find(tmp_path / "sets")).open().source
    assert len(source.fingerprint) == 64 and number_of(source[0]["image"]) == 0
    with pytest.raises(BadRecord, match="record cannot be read"):
        source[1]


BROKEN = {
    "dataset_coco.json": karpathy_layout,
    "coco_test_karpathy.json": karpathy_layout,
    "flickr30k_test_karpathy.txt": karpathy_layout,
    "xtd10-de.json": multilingual,
    "swap_obj.json": sugar_crepe_layout,
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'{"images": 3}',
        b'{"images": [3]}',
        b'{"images": [{"split": "test"}]}',
        b"\xff\xfe{",
        b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [7]}',
        b'{"image_paths": ["a"], "annotations": []}',
        b'{"0": 3}',
        b'{"image_paths": [1], "annotations": [2]}',
        b'{"images": [{"split": "test", "filename": "a", "sentences": [{}]}]}',
        b"image,caption\nno picture here\n",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("name", BROKEN)
def test_damaged_annotations_are_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = only(BROKEN[name].find(tmp_path))
    with pytest.raises(DataError) as error:
        found.open()
    assert name in str(error.value) or "pictures of its annotations" in str(error.value)
    assert "\n" not in str(error.value).strip()


def test_pictures_that_are_not_there(tmp_path):
    karpathy(tmp_path)
    for picture in (tmp_path / "val2014").iterdir():
        picture.unlink()
    with pytest.raises(
        DataError,
        match="the pictures of its annotations, as 'val2014/COCO_000.jpg', are in none of",
    ):
        only(karpathy_layout.find(tmp_path)).open()


def test_imagenet_in_other_languages(tmp_path):
    """CLIP_benchmark's own lists, copied above the pictures; Babel-ImageNet leaves out pictures of
    classes without a name."""
    folder = class_folders(tmp_path / "imagenet" / "val", WNIDS, each=1)
    ship = pathlib.Path(builder.__file__).parent
    files = (
        "it_classnames.json",
        "it_zeroshot_classification_templates.json",
        "babel_imagenet.json",
        "nllb_dist13b_prompts.json",
    )
    for name in files:
        (tmp_path / name).write_bytes((ship / name).read_bytes())
    found = {(one.name, one.language): one for one in imagenet.find(folder)}
    babel = json.loads((ship / "babel_imagenet.json").read_text())
    assert len(found) == 2 + len(babel)
    english, italian, german = (
        found[key].open()
        for key in (("imagenet1k", "en"), ("imagenet1k", "it"), ("babel_imagenet", "de"))
    )
    theirs = json.loads((ship / "it_classnames.json").read_text())["imagenet1k"]
    assert list(italian.classes.names["it"]) == theirs and labels_of(italian) == labels_of(english)
    assert (
        all("{}" in template for template in italian.classes.templates) and italian.language == "it"
    )
    numbers, names = babel["DE"]
    assert german.classes.names["de"] == tuple(names)
    assert [numbers[label] for label in labels_of(german) if label is not None] == sorted(numbers)
    assert (
        list(german.classes.templates)
        == json.loads((ship / "nllb_dist13b_prompts.json").read_text())["DE"]
    )
    assert english.pictures == italian.pictures == german.pictures, (
        "pictures are encoded once for all languages"
    )
    write_json(tmp_path / "babel_imagenet.json", {"XX": [[0, 0], ["a", "b"]]})
    with pytest.raises(
        DataError, match="'xx' must name classes of ImageNet, by numbers from 0 to 999"
    ):
        imagenet.find(folder)[-1].open()
