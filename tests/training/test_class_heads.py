"""Class heads on an attribute of the corpus, alone and beside a contrastive loss; over pictures and over videos."""

import json

import pytest
import tiny

from jaxvl import train
from jaxvl.config import ConfigError

pytestmark = pytest.mark.usefixtures("one_device")

MODEL = dict(
    name="imp", variant="small", width=32, depth=1, heads=2, hidden=64, patch=4, most_frames=8, most_pixels=16, most_words=8, embed_dim=16,
    projection_hidden=16, scan=False, inputs=("image", "video", "text"), classes=dict(colour=6),
)  # fmt: skip
CORPUS = dict(tiny.CORPUS, clips=True)


def config(**data):
    common = dict(corpus=CORPUS, split="train_a", batch=32, image_size=16, text_length=6, threads=2, attribute="colour")
    heads = dict(encode=dict(classes=dict(colour="vision")), objectives=dict(kind=dict(name="classification", head="colour")))
    images = dict(data={**common, **data}, encode=heads["encode"], objectives=dict(nce=1.0, **heads["objectives"]))
    clips = dict(data=dict(common, modalities=("video",), video=dict(frames=4)), **heads)
    return tiny.experiment(
        model=MODEL, tasks=dict(clips=clips, images=images), steps=80, optim=dict(lr=1e-2, warmup=5), checkpoint=dict(every=80)
    )


def test_it_learns_the_attribute(tmp_path):
    train.train(config(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("clips", "images"):  # chance 1/6
        last = [line for line in lines if line.get("name") == name and "kind/accuracy" in line][-5:]
        assert sum(line["kind/accuracy"] for line in last) / 5 > 0.6, name


def test_heads_and_attributes_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="model.classes.colour: 6 classes; must be 8, for 'shape' of the corpus"):
        train.train(config(attribute="shape"), tmp_path / "a")
    with pytest.raises(ConfigError, match="tasks.images.data.attribute: 'color' is not an attribute of the corpus; did you mean 'colour'"):
        train.train(config(attribute="color"), tmp_path / "b")
