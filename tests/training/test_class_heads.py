"""Class heads on a class column of the source, alone and beside a contrastive loss; over pictures
and over videos."""

import json

import pytest
import tiny

from jaxvl import train
from jaxvl.config import ConfigError

pytestmark = pytest.mark.usefixtures("one_device")

MODEL = dict(
    name="imp",
    variant="small",
    width=32,
    depth=1,
    heads=2,
    hidden=64,
    patch=4,
    most_frames=8,
    most_pixels=16,
    most_words=8,
    embed_dim=16,
    projection_hidden=16,
    scan=False,
    inputs=("image", "video", "text"),
    classes=dict(colour=6),
)
SOURCE = dict(tiny.TRAIN, clips=True)


def config(column="colour"):
    kind = dict(name="classification", head="colour", label="colour")
    heads = dict(encode=dict(classes=dict(colour="vision")), objectives=dict(kind=kind))
    label = dict(name="label", column=column)
    data = tiny.data(
        source=SOURCE, batch=32, fields=tiny.fields(image=dict(augment={}), colour=label)
    )
    images = dict(
        data=data, encode=heads["encode"], objectives=dict(nce=1.0, **heads["objectives"])
    )
    frames = dict(name="frames", size=16, frames=4)
    clips = dict(
        data=tiny.data(
            source=SOURCE, batch=32, fields=dict(video=frames, colour=dict(label, column="colour"))
        ),
        **heads,
    )
    return tiny.experiment(
        model=MODEL,
        tasks=dict(clips=clips, images=images),
        steps=80,
        optim=dict(lr=1e-2, warmup=5),
        checkpoint=dict(every=80),
    )


@pytest.mark.slow  # heads of a step are in test_fields_in_runs.py
def test_it_learns_the_attribute(tmp_path):
    train.train(config(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("clips", "images"):  # chance 1/6
        last = [line for line in lines if line.get("name") == name and "kind/accuracy" in line][-5:]
        assert sum(line["kind/accuracy"] for line in last) / 5 > 0.6, name


def test_heads_and_columns_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"^model\.classes\.colour: 6 classes; must be 8, for 'shape' of shapes-.* \(tasks\.images\.objectives\.kind\)",
    ):
        train.train(config("shape"), tmp_path / "a")
    with pytest.raises(
        ConfigError,
        match=r"^tasks\.images\.data\.fields\.colour\.column: 'color' is no column of shapes-.*; did you mean 'colour'",
    ):
        train.train(config("color"), tmp_path / "b")
    with pytest.raises(
        ConfigError,
        match=r"^tasks\.images\.data\.fields\.colour\.column: 'name/en' of shapes-.* holds text; must be class or int",
    ):
        train.train(config("name/en"), tmp_path / "c")
