"""Encoders: padding, sharding, order, bad records."""

import jax
import numpy as np
import pytest
from known_answers import (
    PREPROCESS,
    SIZE,
    Records,
    bigram_logits,
    encoders,
    picture,
    scorer,
    toy,
    unit,
)

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.evals.attentional_probe import AttentionalProbe
from jaxvl.evals.captioning import Captioning
from jaxvl.evals.columns import all_texts
from jaxvl.evals.likelihood import Likelihood
from jaxvl.evals.linear_probe import LinearProbe
from jaxvl.evals.result import EvaluatorError
from jaxvl.evals.retrieval import Retrieval
from jaxvl.evals.zero_shot import ZeroShot
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
ONE = make_mesh(devices=jax.devices()[:1])
TABLE = unit(64, 8)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 50])
@pytest.mark.parametrize("mesh", [MESH, ONE], ids=["8 devices", "1 device"])
def test_rows_come_in_order_whatever_the_batch(mesh, n):
    labels = [(7 * i) % 64 for i in range(n)]
    got = encoders(mesh, TABLE, TABLE).images(Records([(k, {}) for k in labels]))
    assert got.rows.dtype == np.float32 and got.skipped == {}
    np.testing.assert_array_equal(got.index, np.arange(n))
    if n:
        np.testing.assert_array_equal(got.rows, TABLE[labels])


def test_arrays_of_pictures():
    pixels = np.stack([picture(k) for k in range(20)])
    np.testing.assert_array_equal(encoders(MESH, TABLE, TABLE).images(pixels).rows, TABLE[:20])
    with_alpha = np.stack([picture(k, 4) for k in range(20)])
    np.testing.assert_array_equal(encoders(MESH, TABLE, TABLE).images(with_alpha).rows, TABLE[:20])


def test_pictures_reach_the_model_composited_and_normalised():
    from jaxvl.evals.differentiable import Functions
    from jaxvl.evals.encoders import Encoders

    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 4)).astype(np.uint8)
    flat = (
        Encoders(
            Functions(lambda w, x: x.reshape(len(x), -1), None),
            (),
            None,
            PREPROCESS,
            4,
            ONE,
            batch=2,
        )
        .images(pixels)
        .rows
    )
    alpha = pixels[..., 3:].astype(np.float64) / 255
    colours = pixels[..., :3] / 255.0 * alpha + np.array(PREPROCESS.background) * (1 - alpha)
    expected = (colours - PREPROCESS.mean) / np.array(PREPROCESS.std)
    np.testing.assert_allclose(flat, expected.reshape(3, -1), atol=1e-5)


def test_bad_records_are_left_out_and_counted():
    source = toy(list(range(40)), broken=(3, 17), unreadable=(0, 39, 20)).records
    got = encoders(MESH, TABLE, TABLE).images(source)
    assert got.skipped == {"record cannot be read": 3, "image cannot be decoded": 2}
    kept = [i for i in range(40) if i not in (0, 3, 17, 20, 39)]
    np.testing.assert_array_equal(got.index, kept)
    np.testing.assert_array_equal(got.rows, TABLE[kept])


def test_pictures_are_left_out_by_cause():
    files = (
        b"<svg/>",
        b"P5 60000 60000 255\n" + bytes(9),
        b"Pf 1 1 -1.0\n" + np.float32(0.5).tobytes(),
    )
    records = [{"image": data} for data in files] + [{}]
    source = toy(range(4)).records
    source.read = lambda i, columns: records[i]
    got = encoders(MESH, TABLE, TABLE).images(source)
    causes = (
        "record is incomplete",
        "image cannot be decoded",
        "image is too large",
        "image has no range of values",
    )
    assert got.skipped == dict.fromkeys(causes, 1)


def test_a_split_is_encoded_once_for_all_evaluators_and_again_for_new_weights():
    source = Records([(k, {}) for k in range(20)])
    first = encoders(MESH, TABLE, TABLE)
    first.images(source, memo="split")
    assert (
        first.images(source, memo="split").rows is first.images(source, memo="split").rows
        and source.reads == 20
    )
    assert set(source.asked) == {("image",)}
    other = first.with_weights({"image": 2 * first.weights["image"], "text": first.weights["text"]})
    np.testing.assert_array_equal(other.images(source, memo="split").rows, 2 * TABLE[:20])
    np.testing.assert_array_equal(first.images(source, memo="split").rows, TABLE[:20])
    assert first._image is other._image and first._image._cache_size() == 1


def test_texts_repeated_and_padded():
    texts = [f"word {k}" for k in (5, 3, 5, 5, 9, 3)] * 7
    np.testing.assert_array_equal(
        encoders(MESH, TABLE, TABLE).texts(texts), TABLE[[5, 3, 5, 5, 9, 3] * 7]
    )
    assert encoders(MESH, TABLE, TABLE).texts([]).shape[0] == 0


def test_batch_is_rounded_up_to_the_mesh():
    assert (
        encoders(MESH, TABLE, TABLE, batch=5).batch == 8
        and encoders(ONE, TABLE, TABLE, batch=5).batch == 5
    )


def test_an_error_that_is_no_bad_record_ends_the_evaluator():
    """142 of 144 records that failed with a KeyError once gave acc@1 of two images."""
    source = toy([k % 10 for k in range(40)], bugs=range(2, 40))
    known = encoders(MESH, TABLE, TABLE)
    with pytest.raises(
        EvaluatorError, match=r"record 2: KeyError: 'no such column' \(a source raises BadRecord"
    ) as met:
        known.images(source.records)
    assert isinstance(met.value.__cause__, KeyError)
    with pytest.raises(EvaluatorError, match="record 2: KeyError"):
        ZeroShot(source).run(known)
    with pytest.raises(EvaluatorError, match="record 2: KeyError"):
        all_texts(source.records, ("name/en",))
    good = toy([k % 10 for k in range(40)]).records
    assert len(known.images(good).index) == 40  # the encoders are as good as before


def test_a_decoder_that_is_broken_ends_the_evaluator(monkeypatch):
    def decode(self, data):
        raise TypeError("a bug of a decoder")

    monkeypatch.setattr(type(PREPROCESS), "decode", decode)
    with pytest.raises(EvaluatorError, match="record 0: TypeError: a bug of a decoder"):
        encoders(MESH, TABLE, TABLE).images(toy(range(20)).records)


@pytest.mark.parametrize(
    "bad, options",
    [
        (9, {}),
        (12, dict(error_budget=0.3)),
        (12, dict(error_minimum=13)),
        (0, dict(error_budget=0.0)),
    ],
)
def test_bad_records_within_the_budget_are_left_out(bad, options):
    source = toy([k % 10 for k in range(40)], unreadable=range(bad))
    got = ZeroShot(source, gallery=0, **options).run(encoders(MESH, TABLE, TABLE)).metrics
    assert got["images"] == 40 - bad and got.get("skipped/record cannot be read", 0) == bad


@pytest.mark.parametrize(
    "evaluator",
    [
        lambda both: ZeroShot(both["source"]),
        lambda both: Retrieval(both["source"], text="name/en"),
        lambda both: Likelihood(both["source"], text="name/en"),
        lambda both: Captioning(both["source"], references="name/en"),
        lambda both: LinearProbe(**both),
        lambda both: AttentionalProbe(**both),
    ],
    ids=["zero_shot", "retrieval", "likelihood", "captioning", "linear_probe", "attentional_probe"],
)
def test_more_bad_records_than_the_budget_allows_end_the_evaluator(evaluator):
    labels = [k % 10 for k in range(40)]
    both = dict(
        train=toy(labels, name="train"),
        source=toy(labels, name="test", unreadable=range(6), broken=range(30, 36)),
    )
    made = evaluator(both)
    writes = isinstance(made, (Likelihood, Captioning))
    known = scorer(MESH, bigram_logits("uniform")) if writes else encoders(MESH, TABLE, TABLE)
    causes = r"\(record cannot be read: 6, image cannot be decoded: 6\)"
    with pytest.raises(
        DataError, match=rf"test: 12 of 40 records are bad {causes}, more than error_budget 0.01"
    ):
        made.run(known)


def test_wrong_budgets():
    for options, field in (
        (dict(error_budget=1.5), "error_budget"),
        (dict(error_minimum=0), "error_minimum"),
    ):
        with pytest.raises(ConfigError, match=f"{field}: "):
            ZeroShot(toy(range(3)), **options)
