"""An evaluator's own functions on the mesh, their gradients, and embeddings by named output."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_answers import PREPROCESS, SIZE, Tokenizer, picture

from jaxvl.config import ConfigError
from jaxvl.evals.differentiable import Functions
from jaxvl.evals.encoders import Encoders
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
RNG = np.random.default_rng(0)
PIXELS = RNG.normal(size=(13, SIZE, SIZE, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 8, (13, 4)).astype(np.int32)
WEIGHTS = {
    "image": (0.1 * RNG.normal(size=(SIZE * SIZE * 3, 5))).astype(np.float32),
    "text": RNG.normal(size=(8, 5)).astype(np.float32),
}


def image(weights, pixels):
    return jnp.tanh(pixels.reshape(len(pixels), -1) @ weights["image"])


def text(weights, tokens):
    return weights["text"][tokens].mean(1)


def outputs(weights, batch):
    a = image(weights, batch["image"])
    b = text(weights, batch["text"])
    return {"common": 2 * a, "words": 3 * b, "both": a * b, "scale": jnp.float32(1)}


def encoders(outputs=outputs, batch=4):
    weights = {name: jnp.asarray(w) for name, w in WEIGHTS.items()}
    more = weights, Tokenizer(), PREPROCESS, 4, MESH
    return Encoders(Functions(image, text, outputs), *more, batch=batch)


def saliency(model, pixels, tokens):
    def score(pixels):
        return jnp.sum(model.image(pixels) * model.text(tokens))

    return dict(map=jax.grad(score)(pixels).sum(-1), text=model.text(tokens))


def test_a_function_of_the_model_with_a_gradient_inside():
    """13 rows in batches of 4 over the mesh; new weights compile nothing."""
    known = encoders()
    found = known.apply(saliency, PIXELS, TOKENS)
    w = np.float64(WEIGHTS["image"])
    y = np.tanh(np.float64(PIXELS).reshape(13, -1) @ w)
    words = np.float64(WEIGHTS["text"])[TOKENS].mean(1)
    want = (((1 - y**2) * words) @ w.T).reshape(PIXELS.shape).sum(-1)
    assert isinstance(found["map"], np.ndarray)
    np.testing.assert_allclose(found["map"], want, atol=1e-5)
    np.testing.assert_allclose(found["text"], words, atol=1e-6)
    other = known.with_weights({**known.weights, "text": 2 * known.weights["text"]})
    again = other.apply(saliency, PIXELS, TOKENS)
    np.testing.assert_allclose(again["map"], 2 * want, atol=1e-5)
    assert other.applied is known.applied and known.applied[saliency]._cache_size() == 1


def both(model, pixels, tokens):
    return jnp.sum(model.image(pixels) * model.text(tokens), -1)


def test_jax_arrays_have_a_derivative_from_outside():
    known = encoders()

    def loss(pixels):
        return jnp.sum(known.apply(both, pixels, jnp.asarray(TOKENS)) ** 2)

    grad = jax.grad(loss)(jnp.asarray(PIXELS))
    y = np.tanh(np.float64(PIXELS).reshape(13, -1) @ np.float64(WEIGHTS["image"]))
    words = np.float64(WEIGHTS["text"])[TOKENS].mean(1)
    of_y = 2 * (y * words).sum(-1, keepdims=True) * words * (1 - y**2)
    want = (of_y @ np.float64(WEIGHTS["image"]).T).reshape(PIXELS.shape)
    np.testing.assert_allclose(grad, want, atol=1e-5)
    value = known.apply(both, jnp.asarray(PIXELS[:8]), jnp.asarray(TOKENS[:8]))
    assert isinstance(value, jax.Array)
    np.testing.assert_allclose(value, (y * words).sum(-1)[:8], atol=1e-5)


def invert(model, pixels):
    """A word vector, at token 7, whose text is near each picture (textual inversion)."""
    tokens = jnp.full((1, 4), 7)

    def one(target):
        def distance(vector):
            table = model.weights["text"].at[7].set(vector)
            row = dataclasses.replace(model, weights={**model.weights, "text": table}).text(tokens)
            return jnp.sum(jnp.square(row[0] - target))

        def step(i, vector):
            return vector - 0.2 * jax.grad(distance)(vector)

        return jax.lax.fori_loop(0, 40, step, model.weights["text"][7])

    return jax.vmap(one)(model.image(pixels))


def test_an_evaluator_may_optimise_what_a_text_reads():
    known = encoders()
    found = known.apply(invert, PIXELS)
    np.testing.assert_allclose(found, np.asarray(image(known.weights, PIXELS)), atol=1e-3)


def test_rows_by_a_named_output():
    known = encoders()
    pixels = np.stack([picture(k) for k in range(6)])
    words = [f"word {k}" for k in (5, 3, 5)]
    plain = known.images(pixels).rows
    np.testing.assert_allclose(known.images(pixels, output="common").rows, 2 * plain, atol=1e-6)
    np.testing.assert_allclose(
        known.texts(words, output="words"), 3 * known.texts(words), atol=1e-6
    )
    doubled = known.with_weights({**known.weights, "text": 2 * known.weights["text"]})
    np.testing.assert_allclose(
        doubled.texts(words, output="words"), 2 * known.texts(words, output="words"), atol=1e-6
    )
    first = known.images(pixels, memo="split", output="common").rows
    assert known.images(pixels, memo="split", output="common").rows is first
    np.testing.assert_array_equal(known.images(pixels, memo="split").rows, plain)


def test_what_is_refused():
    known = encoders()
    for call, why in (
        (lambda: known.texts(["a"], output="common"), "'common' depends on image, not on text"),
        (lambda: known.texts(["a"], output="both"), "'both' depends on image, not on text alone"),
        (lambda: known.texts(["a"], output="none"), r"'none' is not among .* \(both, common, sc"),
        (lambda: known.texts(["a"], output="scale"), r"'scale' has shape \(\); must be one row"),
        (lambda: encoders(outputs=None).texts(["a"], output="words"), "gives named outputs"),
    ):
        with pytest.raises(ConfigError, match=f"output: .*{why}"):
            call()
    for rows, why in (
        ((PIXELS, TOKENS[:3]), "rows: lengths"),
        ((PIXELS[:0], TOKENS[:0]), "rows: lengths"),
    ):
        with pytest.raises(ValueError, match=why):
            known.apply(both, *rows)
    with pytest.raises(ValueError, match=r"function: a result of shape \(\) for 4 rows"):
        known.apply(lambda model, tokens: model.text(tokens).sum(), TOKENS)
