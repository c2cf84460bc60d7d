"""Generated questions: each is answered from the picture's pixels again."""

import io

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data.sources.demo.shapes import COLOURS, SHAPES
from jaxvl.data.sources.demo.shapes_vqa import ANSWERS, ShapesVqa, ask, draw, scene


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ShapesVqa(size=24, scenes=60).prepare(log=lambda text: None)


def seen(png):
    """Place -> (colour, number of shapes), from the pixels of a picture in style "filled"."""
    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)
    solid = pixels[..., 3] > 250
    nearest = np.argmin([np.abs(pixels[..., :3] - COLOURS[c][0]).sum(-1) for c in COLOURS], axis=0)
    found = {}
    size = len(pixels)
    for i, colour in enumerate(COLOURS):
        mask = solid & (nearest == i)
        labelled, _ = scipy.ndimage.label(mask, np.ones((3, 3)))
        parts = [p for p in range(1, labelled.max() + 1) if (labelled == p).sum() > 20]
        if parts:
            y, x = np.argwhere(np.isin(labelled, parts)).mean(0) / size - 0.5
            place = (
                ("left", "right")[int(x > 0)] if abs(x) > abs(y) else ("top", "bottom")[int(y > 0)]
            )
            found[place] = colour, len(parts)
    return found


def test_pictures_show_what_is_asked():
    for seed in range(25):
        groups = scene(np.random.default_rng(seed))
        assert seen(draw(groups, "filled", 96, np.random.default_rng(seed + 100))) == {
            g.place: (g.colour, g.count) for g in groups
        }
        one, two = groups
        assert one.colour != two.colour and one.shape != two.shape
        for kind, question, answer in ask(groups, np.random.default_rng(seed)):
            about = [
                g
                for g in groups
                if g.shape in question or SHAPES[g.shape][0] in question or g.colour in question
            ]
            if kind == "count" and answer == "zero":
                assert not about
                continue
            (group,) = about
            expected = dict(
                colour=group.colour,
                shape=group.shape,
                place=group.place,
                count=("one", "two")[group.count - 1],
            )
            assert answer == expected[kind], question


def test_records_and_splits(corpus):
    train = corpus.split("train")
    test = corpus.split("test")
    assert len(train) + len(test) == 4 * 60 and len(test) >= 8
    for source, split in ((train, "train"), (test, "test")):
        for i, label in enumerate(corpus.labels(split)):
            record = source[i]
            assert (
                record["answers"] == [ANSWERS[label]]
                and corpus.class_set().names["en"][label] == ANSWERS[label]
            )
            assert record["captions"]["en"][0] == f"{record['question']} {ANSWERS[label]}"
    numbers = [{r["key"].split("/")[0] for r in s} for s in (train, test)]
    assert not numbers[0] & numbers[1]  # all questions of a picture are in one split
    assert {r["type"] for r in train} == {"colour", "shape", "place", "count"}


def test_the_same_seed_gives_the_same_bytes(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    digest = lambda c: c.manifest["files"]["records.array_record"]["sha256"]
    assert digest(ShapesVqa(size=24, scenes=60).prepare(log=lambda text: None)) == digest(corpus)
    assert digest(ShapesVqa(size=24, scenes=60, seed=1).prepare(log=lambda text: None)) != digest(
        corpus
    )
    with pytest.raises(ConfigError, match="scenes: 3 must be >= 20"):
        ShapesVqa(scenes=3)
