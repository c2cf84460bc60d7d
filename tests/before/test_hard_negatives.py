"""The hook `hard_negatives`: what it finds in a batch, and whose pictures the model then sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.before.hard_negatives import HardNegatives
from jaxvl.config import ConfigError, resolve
from jaxvl.data.preprocess import Preprocess
from jaxvl.tasks import Task, TaskConfig

B, D, SIZE = 8, 4, 16
GROUP = np.array([0, 1, 2, 0, 3, 4, 5, 0], np.int32)
KEY = jax.random.key(1)
DATA = dict(
    source=dict(name="shapes", size=SIZE, split="train_a"),
    batch=B,
    fields=dict(
        image=dict(name="picture", size=SIZE, augment=dict(rotate=30.0, hue=30.0)),
        text=dict(name="caption", columns="name/en", length=6),
        group_id=dict(name="group", column="class_label"),
    ),
)


def batch(group=GROUP):
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    return {
        "image": rng.integers(0, 255, (B, SIZE, SIZE, 4), np.uint8),
        "text": rng.integers(2, 60, (B, 6), np.int32),
        "group_id": group,
        "position": np.arange(B, dtype=np.int32) + 100,
        "momentum/image": unit(rng.normal(size=(B, D)).astype(np.float32)),
        "momentum/text": unit(rng.normal(size=(B, D)).astype(np.float32)),
    }


def found(hook, values):
    return jax.device_get(jax.jit(hook.whole)(values, KEY))


def test_a_negative_is_never_of_the_own_group():
    rows = np.arange(B)
    hook = HardNegatives()
    whole = jax.jit(jax.vmap(hook.whole, (None, 0)))
    many = jax.device_get(whole(batch(), jax.random.split(KEY, 50)))
    for name in ("image_index", "text_index"):
        assert (GROUP[many[name]] != GROUP[rows]).all(), name
    assert many["has_image"].all() and many["has_text"].all()
    assert set(many) == {"image_index", "text_index", "has_image", "has_text"}
    alone = dataclasses.replace(hook, group=None)
    many = jax.device_get(
        jax.jit(jax.vmap(alone.whole, (None, 0)))(batch(), jax.random.split(KEY, 50))
    )
    assert (many["image_index"] != rows).all() and (many["text_index"] != rows).all()
    assert (GROUP[many["image_index"]] == GROUP[rows]).any(), "without groups they may be drawn"


def test_texts_are_drawn_for_images_and_images_for_texts():
    """With a large scale the draw is the most similar row of another group."""
    values = batch()
    one = found(HardNegatives(scale=1e4), values)
    cosines = np.where(
        GROUP[:, None] == GROUP[None], -9, values["momentum/image"] @ values["momentum/text"].T
    )
    np.testing.assert_array_equal(one["text_index"], cosines.argmax(1))
    np.testing.assert_array_equal(one["image_index"], cosines.argmax(0))
    assert (one["text_index"] != one["image_index"]).any()


def test_a_batch_of_one_group_gets_itself():
    one = found(HardNegatives(entries="rows"), batch(np.zeros(B, np.int32)))
    assert not one["has_image"].any() and not one["has_text"].any()
    np.testing.assert_array_equal(one["text_index"], np.arange(B))
    np.testing.assert_array_equal(one["image"], batch()["image"])


def task(microbatches=1, **options):
    teach = dict(name="teach", teacher="momentum")
    negatives = dict(dict(name="hard_negatives", entries="rows"), **options)
    node = dict(
        data=DATA,
        objectives=dict(clip=1.0),
        before=dict(negatives=negatives, momentum=teach),
        microbatches=microbatches,
    )
    return Task("pairs", resolve(TaskConfig, node), Preprocess(image_size=SIZE))


def test_copied_rows_are_prepared_as_in_their_own_rows():
    """The picture of a negative is turned and coloured as where it stands itself; in any part of
    the batch."""
    values = batch()
    one = found(HardNegatives(entries="rows"), values)
    np.testing.assert_array_equal(one["text"], values["text"][one["text_index"]])
    np.testing.assert_array_equal(one["image"], values["image"][one["image_index"]])
    rows = {**values, **{f"negatives/{name}": value for name, value in one.items()}}
    given = task()
    inputs = jax.jit(given.inputs)(rows, KEY)
    own = np.asarray(inputs["image"])
    assert own.shape == (B, SIZE, SIZE, 3) and own.dtype == np.float32
    np.testing.assert_array_equal(inputs["negatives/image"], own[one["image_index"]])
    elsewhere = jax.jit(given.prepare)({**values, "image": one["image"]}, KEY)["image"]
    assert np.abs(np.asarray(elsewhere) - own[one["image_index"]]).max() > 0.1, (
        "augmentation must depend on the row, or this test says nothing"
    )
    part = {name: value[3:5] for name, value in rows.items()}
    some = jax.jit(given.inputs)(part, KEY)
    np.testing.assert_allclose(some["negatives/image"], own[one["image_index"][3:5]], atol=1e-6)


def test_objectives_see_the_embeddings_of_pictures_and_no_pictures():
    given = task()
    picture = jnp.zeros((B, SIZE, SIZE, 4), jnp.uint8)
    assert given._is_picture("negatives/image", picture)
    assert not given._is_picture("momentum/image", jnp.zeros((B, D)))


def test_places_do_not_go_with_parts_of_the_batch():
    with pytest.raises(ConfigError, match=r"before\.negatives\.entries.*must be 'rows'"):
        task(microbatches=2, entries="index")
    task(microbatches=2)


def test_it_runs_after_the_hook_whose_embeddings_it_reads():
    assert list(task().hooks) == ["momentum", "negatives"]
    with pytest.raises(ConfigError, match=r"before\.negatives.*'slow/image'"):
        task(embeddings=("slow/image", "slow/text"))
