"""Attention and poolers against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.nn import poolers
from jaxvl.nn.activations import ACTIVATIONS
from jaxvl.nn.attention import Attention, AttentionOptions


def by_hand(module, x, memory, mask, heads):
    """Float64 attention with the module's weights; mask bool [B, T, N]."""
    w = {
        name: {
            k: np.asarray(v[...], np.float64)
            for k, v in (
                ("kernel", getattr(module, name).kernel),
                ("bias", getattr(module, name).bias),
            )
        }
        for name in ("query", "key", "value", "out")
    }
    part = lambda name, y: np.einsum("btd,dhk->bthk", y, w[name]["kernel"]) + w[name]["bias"]
    q = part("query", x)
    k = part("key", memory)
    v = part("value", memory)
    logits = np.einsum("bthk,bnhk->bhtn", q, k) / np.sqrt(q.shape[-1])
    logits = np.where(mask[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhtn,bnhk->bthk", weights, v)
    return np.einsum("bthk,hkd->btd", y, w["out"]["kernel"]) + w["out"]["bias"]


@pytest.fixture(scope="module")
def attention():
    module = Attention(16, 4, rngs=nnx.Rngs(params=0))
    for name in ("query", "key", "value", "out"):
        bias = getattr(module, name).bias
        bias[...] = jax.random.normal(jax.random.key(len(name)), bias.shape)
    return module


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_masks(attention, causal, padded):
    x = np.random.default_rng(0).normal(size=(2, 6, 16))
    padding = np.arange(6) < np.array([[6], [4]]) if padded else np.ones((2, 6), bool)
    mask = np.broadcast_to(padding[:, None, :], (2, 6, 6)) & (
        np.tri(6, dtype=bool) if causal else True
    )
    y = attention(
        jnp.asarray(x, jnp.float32), mask=jnp.asarray(padding) if padded else None, causal=causal
    )
    np.testing.assert_allclose(y, by_hand(attention, x, x, mask, 4), atol=1e-5)


def test_memory(attention):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 16))
    memory = rng.normal(size=(2, 7, 16))
    y = attention(jnp.asarray(x, jnp.float32), jnp.asarray(memory, jnp.float32))
    np.testing.assert_allclose(
        y, by_hand(attention, x, memory, np.ones((2, 3, 7), bool), 4), atol=1e-5
    )


def test_dropout_path_is_the_same_attention():
    """With next to no dropout the explicit weights give what the fused product gives; with dropout,
    the same on average."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 16)), jnp.float32)
    mask = jnp.arange(6) < jnp.array([[6], [4]])
    fused, explicit = (
        Attention(16, 4, rngs=nnx.Rngs(params=0), options=AttentionOptions(dropout=rate))
        for rate in (0.0, 1e-7)
    )
    run = lambda m, key: m(x, mask=mask, causal=True, train=True, key=key)
    np.testing.assert_allclose(run(explicit, jax.random.key(0)), run(fused, None), atol=1e-5)
    half = Attention(16, 4, rngs=nnx.Rngs(params=0), options=AttentionOptions(dropout=0.5))
    many = jax.vmap(lambda key: run(half, key))(jax.random.split(jax.random.key(1), 4000))
    assert np.abs(many.mean(0) - run(fused, None)).max() < 6 * np.asarray(
        many.std(0)
    ).max() / np.sqrt(4000)


def test_qk_norm_bounds_the_logits():
    module = Attention(16, 4, rngs=nnx.Rngs(params=0), options=AttentionOptions(qk_norm=True))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 16)), jnp.float32)
    module.query.bias[...] = module.key.bias[...] = jnp.zeros((4, 4))
    np.testing.assert_allclose(module(x), _with_scaled_query(module, x, 1000.0), atol=1e-4)


def _with_scaled_query(module, x, factor):
    kernel = module.query.kernel[...]
    module.query.kernel[...] = factor * kernel
    y = module(x)
    module.query.kernel[...] = kernel
    return y


def test_heads_must_divide():
    with pytest.raises(ValueError, match="heads: 3 must divide the width of 16"):
        Attention(16, 3, rngs=nnx.Rngs(params=0))


def test_poolers():
    x = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 3)
    mask = jnp.array([[True, True, False, False], [True, True, True, True]])
    np.testing.assert_array_equal(poolers.first(x), x[:, 0])
    np.testing.assert_array_equal(poolers.last(x), x[:, 3])
    np.testing.assert_array_equal(poolers.last(x, mask), jnp.stack([x[0, 1], x[1, 3]]))
    np.testing.assert_allclose(poolers.mean(x, mask), jnp.stack([x[0, :2].mean(0), x[1].mean(0)]))
    tokens = jnp.array([[4, 9, 9, 0], [4, 5, 6, 7]])  # the first of two EOS; a row without one
    np.testing.assert_array_equal(poolers.eos(x, tokens, 9), jnp.stack([x[0, 1], x[1, 3]]))
    assert not np.isnan(poolers.mean(x, jnp.zeros((2, 4), bool))).any()


def test_map_pooler_ignores_what_is_masked():
    pooler = poolers.MapPooler(16, 4, 32, rngs=nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(0), (2, 6, 16))
    mask = jnp.arange(6) < jnp.array([[6], [4]])
    np.testing.assert_allclose(pooler(x, mask)[1], pooler(x[:, :4])[1], atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    special = pytest.importorskip("scipy.special")
    x = np.linspace(-6, 6, 101)
    wanted = {
        "gelu": x * special.ndtr(x),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "quick_gelu": x * special.expit(1.702 * x),
        "swish": x * special.expit(x),
        "relu": np.maximum(x, 0),
    }[name]
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), wanted, atol=2e-6)
