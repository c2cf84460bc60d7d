"""Demo data as sources: columns, classes, what is known without reading."""

import functools
import pickle

import numpy as np
import pytest
from data_samples import encoded, noise, stored

from jaxvl.config import ConfigError, choose, to_dict
from jaxvl.data.records import BadRecord
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.demo.recipe import DemoSource
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.data.sources.demo.shapes_vqa import ShapesVqa
from jaxvl.data.sources.demo.store import Corpus, build_once, write_corpus

N = 10
quiet = dict(log=lambda text: None)


def raw(i):
    """Stored record `i`: every second has frames, every third a French sound; names are in two
    languages, German but for one."""
    record = {**stored(i), "label": i % 5}
    record["captions"] = {"en": [f"name {i % 5}", [f"keyword {i}"]], "de": [f"Name {i % 5}", []]}
    if i == 4:
        del record["captions"]["de"]
    if i % 2 == 0:
        record["frames"] = [encoded(noise(i, 4, 4, 3))] * 2
    sounds = {"fr": b"a French sound"} if i % 3 == 0 else {}
    return {**record, "audio": {"speech": sounds, "sound": {"zxx": b"a noise"} if i == 9 else {}}}


def build(folder):
    number = np.arange(N)
    present = {
        "frames": number % 2 == 0,
        "speech": number % 3 == 0,
        "speech/fr": number % 3 == 0,
        "sound": number == 9,
        "sound/zxx": number == 9,
    }
    splits = {"train": number[number != 5], "test": number[number == 5]}
    classes = {
        "en": [f"name {k}" for k in range(5)],
        "de": [f"Name {k}" for k in range(4)] + [None],
    }
    attributes = {"kind": ["even", "odd", "even", "odd", "even"]}
    return write_corpus(
        folder,
        map(raw, range(N)),
        number % 5,
        splits,
        classes,
        "# Attribution\n",
        attributes,
        present,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return build_once("small-v1", build, lambda text: None)


@pytest.fixture
def source(corpus):
    return DemoSource(corpus, {})


def test_columns_and_their_kinds(source):
    assert {name: (column.kind, column.optional) for name, column in source.columns.items()} == {
        "key": ("text", False),
        "image": ("image", False),
        "style": ("text", False),
        "class_label": ("class", False),
        "name/en": ("text", True),
        "keywords/en": ("texts", True),
        "name/de": ("text", True),
        "keywords/de": ("texts", True),
        "frames": ("frames", True),
        "speech/fr": ("audio", True),
        "sound/zxx": ("audio", True),
        "kind": ("class", False),
    }


def test_records_are_flat(source):
    assert source[9] == {
        "key": "style/9",
        "image": raw(9)["image"],
        "style": "style",
        "class_label": 4,
        "name/en": "name 4",
        "keywords/en": ["keyword 9"],
        "name/de": "Name 4",
        "speech/fr": b"a French sound",
        "sound/zxx": b"a noise",
        "kind": 0,
    }
    assert set(source[4]) == {
        "key",
        "image",
        "style",
        "class_label",
        "name/en",
        "keywords/en",
        "frames",
        "kind",
    }
    assert source.read(6, ["speech/fr", "name/de"]) == {
        "speech/fr": b"a French sound",
        "name/de": "Name 1",
    }
    assert source.read(1, ["speech/fr", "keywords/de", "none"]) == {} == source.read(1, [])
    assert source.read(1, ["captions", "label", "audio"]) == {}  # names of the file's, not columns


@pytest.mark.parametrize("i", [-1, N, 10**12])
def test_there_is_no_other_record(source, i):
    with pytest.raises(IndexError):
        source.read(i)


def test_class_sets_have_names_in_every_language(source):
    classes = source.columns["class_label"].classes
    assert classes.names == {
        "en": tuple(f"name {k}" for k in range(5)),
        "de": ("Name 0", "Name 1", "Name 2", "Name 3", None),
    }
    assert source.columns["kind"].classes.names == {"en": ("even", "odd")}


def test_whole_columns_are_those_of_the_records(source):
    for name in ("class_label", "kind"):
        assert source.column(name).tolist() == [source[i][name] for i in range(N)]
    assert source.column("name/en") is None and source.column("none") is None


def test_what_is_present_is_known_without_reading(source, monkeypatch):
    read = [source[i] for i in range(N)]
    monkeypatch.setattr(DemoSource, "read", None)
    for name in ("frames", "speech/fr", "sound/zxx"):
        assert source.present(name).tolist() == [name in record for record in read]
    assert source.present("image").all() and source.present("image").shape == (N,)
    assert source.present("name/de") is None and source.present("none") is None


def test_a_split_is_some_of_the_records(corpus, source):
    train, test = (DemoSource(corpus, {}, split) for split in ("train", "test"))
    assert [train[i]["key"] for i in range(9)] == [f"style/{i}" for i in range(N) if i != 5]
    assert len(test) == 1 and test[0] == source[5]
    assert train.column("class_label").tolist() == [i % 5 for i in range(N) if i != 5]
    assert train.present("frames").tolist() == [i % 2 == 0 for i in range(N) if i != 5]
    assert len({train.fingerprint, test.fingerprint, source.fingerprint}) == 3
    assert (source.name, train.name) == ("small-v1", "small-v1, split 'train'")
    assert train.shards().tolist() == [9]


def test_the_fingerprint_is_of_the_content(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    elsewhere = build_once("of-another-name", build, lambda text: None)
    assert (
        DemoSource(elsewhere, {}, "train").fingerprint
        == DemoSource(corpus, {}, "train").fingerprint
    )

    def other(folder):
        return write_corpus(
            folder,
            map(raw, range(9)),
            np.arange(9) % 5,
            {"train": np.arange(9)},
            {"en": ["x"] * 5},
            "",
        )

    assert (
        DemoSource(build_once("less", other, lambda text: None), {}).fingerprint
        != DemoSource(corpus, {}).fingerprint
    )


def test_it_may_be_pickled_before_and_after_reading(source):
    fresh = pickle.loads(pickle.dumps(source))
    source[0]
    for again in (fresh, pickle.loads(pickle.dumps(source))):
        assert (
            again[9] == source[9]
            and again.fingerprint == source.fingerprint
            and again.columns.keys() == source.columns.keys()
        )


def test_a_damaged_record_is_a_bad_one(corpus, tmp_path):
    import shutil

    shutil.copytree(corpus.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "records.array_record"
    data = bytearray(path.read_bytes())
    data[data.find(raw(3)["image"][40:60])] ^= 255
    path.write_bytes(data)
    source = DemoSource(Corpus(tmp_path / "copy", corpus.manifest), {})
    with pytest.raises(BadRecord, match="record cannot be read"):
        source[3]
    assert source[4]["key"] == "style/4"


# --------------------------------------------------------------------------------------------------
# Recipes


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_a_recipe_opens_a_split(built):
    recipe = functools.partial(Shapes, size=8, variants=1)
    train = recipe(split="train_a").open(**quiet)
    every = recipe().open(**quiet)
    assert (
        len(train)
        == every.corpus.manifest["counts"]["train_a"]
        < len(every)
        == every.corpus.manifest["counts"]["images"]
    )
    assert {"colour", "shape", "count", "name/en", "name/de", "name/fr", "keywords/en"} <= set(
        train.columns
    )
    assert not {"frames", "speech/en", "sketch"} & set(train.columns)
    red = train.columns["colour"].classes.names["en"].index("red")
    for i in range(0, len(train), 37):
        record = train[i]
        assert (record["colour"] == red) == (" red " in record["name/en"])
        assert (
            record["name/de"]
            == train.columns["class_label"].classes.names["de"][record["class_label"]]
        )
    with pytest.raises(
        ConfigError,
        match=r"split: 'train' is none; did you mean 'train_[ab]'\? \(splits: train_a, test_a, ",
    ):
        recipe(split="train").open(**quiet)


def test_questions_are_columns(built):
    source = ShapesVqa(size=8, scenes=20, split="train").open(**quiet)
    record = source[0]
    assert {name: source.columns[name].kind for name in ("question", "answers", "type")} == {
        "question": "text",
        "answers": "texts",
        "type": "text",
    }
    answer = source.columns["class_label"].classes.names["en"][record["class_label"]]
    assert record["answers"] == [answer] and record["name/en"] == f"{record['question']} {answer}"
    assert source.read(0, ["question"]) == {"question": record["question"]}
    assert pickle.loads(pickle.dumps(source))[0] == record


def test_clips_are_columns(built):
    pytest.importorskip("soundfile", reason="clips need jaxvl[audio]")
    from jaxvl.data.sources.demo import shapes

    with pytest.MonkeyPatch.context() as patch:  # a few shapes; all take half a minute
        patch.setattr(shapes, "COLOURS", dict(list(shapes.COLOURS.items())[:1]))
        patch.setattr(shapes, "SHAPES", dict(list(shapes.SHAPES.items())[:1]))
        source = Shapes(size=8, variants=1, clips=True, seed=5).open(**quiet)
    assert {
        name: column.kind
        for name, column in source.columns.items()
        if column.kind in ("frames", "audio")
    } == {"frames": "frames", "speech/en": "audio", "speech/de": "audio", "speech/fr": "audio"}
    record = source[0]
    assert len(record["frames"]) == shapes.FRAMES and record["speech/de"][:4] == b"fLaC"
    assert source.present("frames").all() and source.present("speech/fr").all()


@pytest.mark.parametrize("name", ["shapes", "shapes_vqa", "emoji", "stamps", "motion"])
def test_recipes_are_sources_by_name(name):
    config = choose(SOURCES, dict(name=name, split="train"), "source")
    assert (
        config.split == "train"
        and to_dict(config)["name"] == name
        and choose(SOURCES, to_dict(config), "source") == config
    )
    assert hash(config) == hash(choose(SOURCES, to_dict(config), "source"))
