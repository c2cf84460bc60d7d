"""SwAV across modalities: the release's Sinkhorn in float64, closed forms, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import compare, embeddings, log_softmax, same_on_a_mesh, value_and_gradients

from jaxvl.config import ConfigError
from jaxvl.objectives.swav import Swav, log_codes

IMAGE = "prototypes/image"
TEXT = "prototypes/text"


def example(b=6, k=9, d=4, seed=0):
    image, text, prototypes = embeddings((b, d), (b, d), (k, d), seed=seed)
    return {IMAGE: image @ prototypes.T, TEXT: text @ prototypes.T}


def sinkhorn(scores, epsilon=0.05, iterations=3):
    """The release's `sinkhorn_knopp`, its matrix [K, B] and all."""
    q = np.exp(scores / epsilon).T
    k, b = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * k
        q /= q.sum(0, keepdims=True) * b
    return (q * b).T


def swapped(o, codes):
    entropy = lambda s, q: -(q * log_softmax(s / 0.1, 1)).sum(1).mean()
    return (entropy(o[IMAGE], codes[TEXT]) + entropy(o[TEXT], codes[IMAGE])) / 2


def test_codes_are_those_of_the_release():
    scores = np.float32(example(b=32)[IMAGE])
    codes = np.exp(log_codes(jnp.asarray(scores), 0.05, 3))
    np.testing.assert_allclose(codes, sinkhorn(np.float64(scores)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-5)
    many = np.exp(log_codes(jnp.asarray(scores), 0.5, 200))
    np.testing.assert_allclose(many.sum(0), 32 / 9, rtol=1e-4)  # balanced


def test_swapped_prediction_and_codes_have_no_gradient():
    o = {name: np.float64(np.float32(x)) for name, x in example().items()}
    codes = {name: sinkhorn(x) for name, x in o.items()}
    compare(Swav(), o, {}, lambda x: swapped(x, codes), tolerance=2e-5)


@pytest.mark.parametrize("b", [2, 8])
def test_orthonormal_rows(b):
    """Every row is a prototype: its code is softmax(1 / epsilon) of its own."""
    eye = np.eye(b, dtype=np.float32)
    value, gradients = value_and_gradients(Swav(), {IMAGE: eye, TEXT: eye}, {})
    own = 1 / (1 + (b - 1) * np.exp(-20.0))
    want = np.log(np.exp(10.0) + b - 1) - 10 * own
    assert value == pytest.approx(want, rel=1e-3, abs=1e-7)
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_equal_rows_have_codes_that_are_spread_evenly():
    """One prototype for all would be the collapse that balance forbids."""
    scores = jnp.broadcast_to(jnp.array([1.0, 0.5, -1.0]), (6, 3))
    np.testing.assert_allclose(np.exp(log_codes(scores, 0.05, 3)), 1 / 3, rtol=1e-5)


def test_a_hard_epsilon_stays_finite():
    codes = jax.jit(lambda s: log_codes(s, 1e-3, 3))(jnp.float32(example(b=16)[IMAGE]))
    assert np.isfinite(codes).all() and np.isfinite(np.exp(codes).sum(1)).all()


def test_codes_are_those_of_the_whole_batch():
    o = example(b=16)
    assert np.abs(sinkhorn(o[IMAGE][:2]) - sinkhorn(o[IMAGE])[:2]).max() > 0.05
    same_on_a_mesh(Swav(), o, {})


def test_refusals():
    with pytest.raises(ConfigError, match="epsilon: 0.0 must be > 0"):
        Swav(epsilon=0.0)
    with pytest.raises(ConfigError, match="iterations: 0 must be >= 1"):
        Swav(iterations=0)
