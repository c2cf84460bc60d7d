"""Attention with one array of weights: JAX's numbers, forward and backward, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.nn.dense_attention import dense_attention

QUERIES, KEYS = 5, 7


def drawn(dtype):
    shape = lambda length: (2, length, 3, 8)
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = (QUERIES, KEYS, KEYS, QUERIES)
    return [jax.random.normal(k, shape(n)).astype(dtype) for k, n in zip(keys, lengths)]


def masks():
    by_key = jnp.arange(KEYS) < jnp.array([KEYS, 3])[:, None, None, None]
    drawn_mask = jax.random.bernoulli(jax.random.key(1), 0.6, (2, 1, QUERIES, KEYS))
    by_head = jnp.broadcast_to(drawn_mask, (2, 3, QUERIES, KEYS))
    return {"none": None, "keys": by_key, "heads": by_head.at[..., 0].set(True)}


def of_jax(q, k, v, mask, causal):
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)


def with_gradients(f, dtype, mask, causal):
    q, k, v, dy = drawn(dtype)
    y, pull = jax.vjp(lambda q, k, v: f(q, k, v, mask, causal), q, k, v)
    return [np.asarray(a, np.float64) for a in (y, *pull(dy))]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", masks())
def test_numbers_are_those_of_jax(mask, causal):
    mine = with_gradients(dense_attention, "float32", masks()[mask], causal)
    for a, b in zip(mine, with_gradients(of_jax, "float32", masks()[mask], causal)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_is_as_near_to_float32_as_jax():
    want = with_gradients(of_jax, "float32", None, True)
    errors = [
        max(np.abs(a - b).max() for a, b in zip(with_gradients(f, "bfloat16", None, True), want))
        for f in (dense_attention, of_jax)
    ]
    assert 0 < errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_array_of_weights_is_kept(dtype):
    q, k, v, _ = drawn(dtype)
    kept = jax.tree.leaves(jax.vjp(lambda *a: dense_attention(*a, None, True), q, k, v)[1])
    large = [a for a in kept if a.size == 2 * 3 * QUERIES * KEYS]
    assert [a.dtype for a in large] == [jnp.dtype(dtype)]
