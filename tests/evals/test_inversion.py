"""Textual inversion: a batch equals a loop, AdamW step by step in numpy, and mean average precision
by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from known_answers import PREPROCESS, Words, toy, unit

from jaxvl.config import ConfigError
from jaxvl.evals.contract import gives
from jaxvl.evals.differentiable import Functions
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.inversion import Inversion, Search, mean_average_precision
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
RNG = np.random.default_rng(0)
WORDS = RNG.normal(size=(12, 6)).astype(np.float32)
OUT = RNG.normal(size=(6, 5)).astype(np.float32)
PICTURES = unit(64, 5)


def encoders():
    def image(weights, pixels):
        return weights[0]["pictures"][jnp.argmax(pixels[..., 0].reshape(len(pixels), -1), axis=1)]

    def text(weights, tokens):
        there = (tokens != 0)[..., None]
        x = jnp.sum(weights[0]["words"][tokens] * there, 1) @ weights[0]["out"]
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    params = {"words": jnp.asarray(WORDS), "out": jnp.asarray(OUT), "pictures": PICTURES}
    return Encoders(Functions(image, text), (params, {}), Words(), PREPROCESS, 5, MESH, batch=4)


def inverted_in_numpy(target, steps, rate=0.02, decay=0.01):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) on 1 - cos, for "7 w EOS"."""
    fixed = np.float64(WORDS)[[9, 1]].sum(0)
    out = np.float64(OUT)
    w = np.float64(WORDS).mean(0)
    first = np.zeros(6)
    second = np.zeros(6)
    for t in range(1, steps + 1):
        x = (fixed + w) @ out
        size = np.linalg.norm(x)
        y = x / size
        g = -out @ ((target - y * (y @ target)) / size)
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g * g
        update = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        w = w - rate * (update + decay * w)
    x = (fixed + w) @ out
    return x / np.linalg.norm(x)


def test_a_batch_equals_a_loop_in_numpy():
    """Seven queries in batches of four, each with a word of its own."""
    known = encoders()
    evaluator = Inversion(toy(range(3)), template="7 {}", table="words", steps=20)
    search = evaluator.search(known)
    assert search == Search("words", 20, 0.02, 0.01, free=(2, 3, 4, 5))
    tokens = evaluator.tokens(known, 7)
    np.testing.assert_array_equal(tokens[0], [9, -1, 1, 0, 0])
    found = known.apply(search, PICTURES[:7], tokens)
    want = [inverted_in_numpy(np.float64(target), 20) for target in PICTURES[:7]]
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_it_reaches_what_a_text_can_say_and_asks_with_it():
    labels = [3, 5, 3, 5, 9, 9, 3]
    evaluator = Inversion(toy(labels), template="7 {}", table="words")
    evaluator.check(encoders())
    metrics = evaluator.run(encoders()).metrics
    assert all(gives(evaluator, name) for name in metrics)
    assert metrics["cosine"] > 0.9 and metrics["queries"] == 7
    assert metrics["native_map"] == 1.0 and metrics["inverted_map"] > 0.9  # equal pictures
    few = dataclasses.replace(evaluator, steps=1)
    assert few.run(encoders()).metrics["cosine"] < metrics["cosine"] - 0.1


def test_mean_average_precision_by_hand():
    candidates = np.array([[3.0], [2.0], [1.0], [0.0]])
    groups = np.array([0, 1, 0, 1])
    one = np.ones((2, 1))
    # Of 0: 1 (wrong), 2 (right) -> 1/2. Of 1: 0 (wrong), 2 (wrong), 3 (right) -> 1/3.
    found = mean_average_precision(one, candidates, groups, np.array([0, 1]))
    assert found == pytest.approx((1 / 2 + 1 / 3) / 2)
    alone = mean_average_precision(one, candidates, np.arange(4), np.array([0, 1]))
    assert alone == 0.0


def test_what_is_refused():
    for options, why in (
        (dict(template="a {} photo"), "template: 'a {} photo' must end in"),
        (dict(template="a photo"), "template: 'a photo' must hold"),
    ):
        with pytest.raises(ConfigError, match=why):
            Inversion(toy(range(3)), **options)
    known = encoders()
    with pytest.raises(ConfigError, match=r"table: 'text/.*' is no parameter \(near: words\)"):
        Inversion(toy(range(3))).check(known)
    with pytest.raises(ConfigError, match="template: '1 2 3 4 {}' and a word do not fit in 5"):
        Inversion(toy(range(3)), template="1 2 3 4 {}").tokens(known, 1)
