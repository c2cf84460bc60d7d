import io

import numpy as np
import pytest
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data.clips import decode_clip
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.demo.shapes import (
    COLOURS,
    FRAMES,
    NOTE,
    SHAPES,
    STYLES,
    Shapes,
    draw,
    names,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Shapes(size=24, variants=1).prepare(log=lambda text: None)


def pixels(record):
    return np.array(Image.open(io.BytesIO(record["image"])))


def test_counts_and_splits(corpus):
    concepts = len(COLOURS) * len(SHAPES) * 3
    counts = corpus.manifest["counts"]
    assert (counts["images"], counts["concepts"], counts["locales"]) == (
        concepts * len(STYLES),
        concepts,
        3,
    )
    train = set(corpus.labels("train_b").tolist())
    new = set(corpus.labels("test_b_new").tolist())
    assert new and not train & new and train | new == set(range(concepts))
    assert {r["style"] for r in corpus.split("test_a")} == {"sketch"} and len(
        corpus.split("test_a")
    ) == concepts
    assert "sketch" not in {r["style"] for r in corpus.split("train_a")}
    for whole, *parts in (
        ("train_a", "train_b", "test_b_train_styles"),
        ("test_a", "test_b_new", "test_b_seen"),
    ):
        assert sorted(corpus.labels(whole)) == sorted(
            np.concatenate([corpus.labels(p) for p in parts])
        )


def test_attributes_are_those_in_the_names(corpus):
    assert corpus.attributes == ["colour", "shape", "count"]
    for name, of in (("colour", 0), ("shape", 1)):
        of_labels, names = corpus.attribute_of_labels(name)
        for r in corpus.split("test_a"):
            assert names[of_labels[r["label"]]] == r["captions"]["en"][1][of]
    of_labels, names = corpus.attribute_of_labels("count")
    for label in corpus.labels("train_b"):
        word = corpus.class_set().names["en"][label].split()[0]
        assert ("one", "two", "three")[int(names[of_labels[label]]) - 1] == word


def test_the_same_seed_gives_the_same_bytes(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    again = Shapes(size=24, variants=1).prepare(log=lambda text: None)
    digest = lambda c: c.manifest["files"]["records.array_record"]["sha256"]
    assert digest(again) == digest(corpus)
    assert digest(Shapes(size=24, variants=1, seed=1).prepare(log=lambda text: None)) != digest(
        corpus
    )


def test_names_in_three_languages(corpus):
    assert names(("red", "star", 1)) == {
        "en": "one red star",
        "de": "ein roter Stern",
        "fr": "une étoile rouge",
    }
    assert names(("green", "arrow", 3)) == {
        "en": "three green arrows",
        "de": "drei grüne Pfeile",
        "fr": "trois flèches vertes",
    }
    assert names(("grey", "cross", 2)) == {
        "en": "two grey crosses",
        "de": "zwei graue Kreuze",
        "fr": "deux croix grises",
    }
    assert names(("blue", "triangle", 1)) == {
        "en": "one blue triangle",
        "de": "ein blaues Dreieck",
        "fr": "un triangle bleu",
    }
    found = corpus.class_set().names
    assert found.keys() == {"en", "de", "fr"}
    assert all(len(set(of)) == len(found["en"]) for of in found.values())


def test_pictures_have_the_named_colour_and_number():
    from scipy import ndimage

    for style in ("filled", "shaded"):
        for count in (1, 2, 3):
            rng = np.random.Generator(np.random.Philox(key=[0, count]))
            image = np.array(
                Image.open(io.BytesIO(draw(("blue", "square", count), style, 64, rng)))
            )
            assert ndimage.label(image[..., 3] > 128)[1] == count
            solid = image[image[..., 3] == 255][:, :3]
            assert (np.abs(solid.astype(int) - COLOURS["blue"][0]).max(1) < 8).mean() > 0.5


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_style_is_drawn_and_stays_inside(shape, style):
    for count in (1, 3):
        rng = np.random.Generator(np.random.Philox(key=[1, count]))
        alpha = np.array(Image.open(io.BytesIO(draw(("red", shape, count), style, 48, rng))))[
            ..., 3
        ]
        assert 0.02 < (alpha > 128).mean() < 0.8
        assert max(alpha[0].max(), alpha[-1].max(), alpha[:, 0].max(), alpha[:, -1].max()) == 0


def test_a_ring_has_a_hole():
    for style in STYLES:
        image = np.array(
            Image.open(io.BytesIO(draw(("red", "ring", 1), style, 48, np.random.default_rng(0))))
        )
        assert image[22:26, 22:26, 3].max() == 0, style


def test_registry_and_refusals():
    assert SOURCES["shapes"] is Shapes
    with pytest.raises(ConfigError, match="variants: 0 must be >= 1"):
        Shapes(variants=0)
    with pytest.raises(ConfigError, match="size: 4 must be in 8 … 512 pixels"):
        Shapes(size=4)


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    pytest.importorskip("soundfile", reason="clips need jaxvl[audio]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield (
            Shapes(size=24, variants=1, clips=True).prepare(),
            Shapes(size=24, variants=1).prepare(),
        )


def test_with_clips_the_pictures_are_the_same_and_the_first_frames(moving):
    with_clips, without = moving
    a = with_clips.split("test_b_new")[3]
    b = without.split("test_b_new")[3]
    assert a["image"] == b["image"] == a["frames"][0]
    assert len(set(a["frames"])) == len(a["frames"]) == FRAMES


def test_a_name_has_as_many_notes_as_shapes_and_each_colour_its_pitch(moving):
    source = moving[0].split("train_a")
    labels = moving[0].labels("train_a")
    names = moving[0].class_set().names["en"]
    pitches = {}
    for i in range(0, len(source), 7):
        count, colour, _ = names[labels[i]].split()
        sound = decode_clip(source[i]["audio"]["speech"]["en"]) / 32768
        notes = [np.abs(sound[k * NOTE : (k + 1) * NOTE]).max() > 0.1 for k in range(3)]
        assert sum(notes) == ("one", "two", "three").index(count) + 1
        spectrum = np.abs(np.fft.rfft(sound[:NOTE], 16000))
        pitches.setdefault(colour, []).append(int(np.argmax(spectrum[:480])))
    means = sorted(np.mean(v) for v in pitches.values())
    assert (
        len(means) == 6
        and all(b / a > 1.1 for a, b in zip(means, means[1:]))
        and max(np.std(v) for v in pitches.values()) < 8
    )
