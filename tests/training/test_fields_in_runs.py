"""Runs whose rows hold more than a picture and a text: two views of a picture, a class, inputs that
some records lack."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvl import train
from jaxvl.data.feed import Feed
from jaxvl.objectives import OBJECTIVES, Loss, Objective
from jaxvl.training.build import make_tasks

pytestmark = pytest.mark.usefixtures("one_device")


def figures(workdir, kind="train"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture
def batches(monkeypatch):
    """Batches that feeds have given, as numpy."""
    given = []
    take = Feed.take

    def kept(self, **options):
        batch = take(self, **options)
        given.append({name: np.asarray(array) for name, array in batch.items()})
        return batch

    monkeypatch.setattr(Feed, "take", kept)
    return given


@OBJECTIVES.register("views_apart")
@dataclasses.dataclass(frozen=True)
class ViewsApart(Objective):
    """How far other views are from `image`, as the model would see them."""

    reads: ClassVar[tuple[str, ...]] = ()
    batch_keys: ClassVar[tuple[str, ...]] = ("view", "twin")

    def per_row(self, outputs, inputs):
        return {
            name: jnp.abs(inputs["image"] - inputs[name]).mean((1, 2, 3))
            for name in ("view", "twin")
        }

    def __call__(self, outputs, batch, state, context):
        assert "view" not in batch and "image" not in batch, "pictures are not kept for the loss"
        return Loss(
            outputs["view"].mean(), {name: outputs[name].mean() for name in ("view", "twin")}
        ), state


def test_two_views_of_a_picture_reach_the_step(tmp_path, batches):
    """Each is cut on its own; one that is made as `image` is, is the same."""
    plain = dict(name="picture", size=16)
    fields = tiny.fields(image=dict(augment={}), view=dict(plain, crop=(0.2, 0.4)), twin=plain)
    task = dict(
        data=tiny.data(fields=fields),
        objectives=dict(align=1.0, views_apart=dict(weight=0.0)),
        microbatches=2,
    )
    train.train(tiny.experiment(tasks=dict(pairs=task), steps=2), tmp_path)
    for line in figures(tmp_path):
        assert (
            line["views_apart/view"] > 0.05
            and line["views_apart/twin"] == 0
            and np.isfinite(line["loss/align"])
        )
    for batch in batches:
        np.testing.assert_array_equal(batch["twin"], batch["image"])
        assert (batch["view"] != batch["image"]).any((1, 2, 3)).all()


def test_views_are_augmented_apart():
    """Equal options, and draws of their own: one picture turns by other angles in each view."""
    turned = dict(name="picture", size=16, augment=dict(rotate=180.0))
    fields = tiny.fields(image=turned, view=turned, twin=turned)
    task = make_tasks(tiny.experiment(tasks=dict(pairs=tiny.task(fields=fields))))["pairs"]
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 4), np.uint8)
    batch = dict.fromkeys(("image", "view", "twin"), pixels) | {"position": np.arange(16)}
    inputs = jax.jit(task.prepare)(batch, jax.random.key(0))
    apart = ViewsApart().per_row({}, inputs)
    assert apart["view"].mean() > 0.05 and apart["twin"].mean() > 0.05
    assert apart["view"].mean() != apart["twin"].mean()


MODEL = dict(
    name="imp",
    variant="small",
    width=16,
    depth=1,
    heads=2,
    hidden=32,
    patch=8,
    most_pixels=16,
    most_steps=32,
    most_bins=32,
    most_words=8,
    log_mel=dict(frame=1024, step=256, bins=32),
    embed_dim=8,
    projection_hidden=16,
    scan=False,
    inputs=("image", "spectrogram", "text"),
    pairs=("vision-text", "vision-audio"),
    classes=dict(colour=6),
)
SOME_SOUND = dict(
    name="mixture",
    parts=(dict(source=dict(tiny.TRAIN, clips=True)), dict(source=dict(tiny.TRAIN, seed=1))),
)


def masked():
    fields = tiny.fields(waveform=dict(name="waveform", columns="speech/*", seconds=0.256))
    nce = dict(pairs=("vision-text", "vision-audio"))
    data = tiny.data(source=SOME_SOUND, batch=32, fields=fields, missing="mask")
    return dict(data=data, objectives=dict(nce=nce))


def test_rows_that_lack_an_input_are_trained_with_what_they_have(tmp_path, batches):
    """Half of the records have no sound. The loss of pairs with sound is over the others, as if
    these were not there."""
    train.train(
        tiny.experiment(model=MODEL, tasks=dict(pairs=masked()), steps=2, optim=dict(warmup=0)),
        tmp_path,
    )
    for batch in batches:
        has = batch["has_waveform"]
        assert has.dtype == bool and 4 < has.sum() < 28
        assert batch["has_image"].all() and batch["has_text"].all()
        np.testing.assert_array_equal(np.abs(batch["waveform"].astype(int)).max(1) > 0, has)
        np.testing.assert_array_equal(batch["waveform_length"] > 0, has)
    first = figures(tmp_path)[0]
    # A fresh model knows nothing: each loss is near the logarithm of its number of candidates.
    heard = int(batches[0]["has_waveform"].sum())
    assert first["nce/vision-text/loss"] == pytest.approx(np.log(32), abs=0.7)
    assert first["nce/vision-audio/loss"] == pytest.approx(np.log(heard), abs=0.7)
    assert first["nce/vision-audio/loss"] < first["nce/vision-text/loss"]


def test_records_without_a_class_are_left_out(tmp_path, batches):
    """Only what the model reads is masked: those of the part without the class column do not pass
    for class 0."""
    parts = [
        dict(source=dict(tiny.TRAIN, clips=True)),
        dict(source=dict(name="shapes_vqa", size=16, scenes=40, split="train")),
    ]
    label = dict(name="label", column="colour")
    fields = tiny.fields(image=dict(augment={}), group_id=None, colour=label)
    data = tiny.data(
        source=dict(name="mixture", parts=tuple(parts)),
        batch=32,
        fields=fields,
        missing="mask",
        error_budget=1.0,
    )
    kind = dict(name="classification", head="colour", label="colour")
    task = dict(data=data, objectives=dict(kind=kind), encode=dict(classes=dict(colour="vision")))
    train.train(
        tiny.experiment(model=MODEL, tasks=dict(pairs=task), steps=1, optim=dict(warmup=0)),
        tmp_path,
    )
    assert set(np.unique(batches[0]["colour"])) == set(range(6)) and batches[0]["has_image"].all()
    (line,) = figures(tmp_path)
    assert line["kind/accuracy"] <= 1 and line["loss/kind"] == pytest.approx(np.log(6), abs=0.7)
