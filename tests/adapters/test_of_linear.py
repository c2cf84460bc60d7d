"""Gated experts and bottlenecks against their equations in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from jaxvl.nn import adapters as modules
from jaxvl.nn.linear import Linear

RNG = np.random.default_rng(0)


def linear(**options):
    axes = ("embed", "heads", "kv")
    return Linear(6, (2, 4), axes=axes, rngs=nnx.Rngs(params=0), **options)


def fill(module):
    """The same module with drawn parameters, and these in float64 by path."""
    values = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        values["/".join(path)] = value = RNG.normal(size=variable.shape)
        variable[...] = jnp.asarray(value, jnp.float32)
        node = module
        for name in path[:-1]:
            node = getattr(node, name)
        getattr(node, path[-1])[...] = jnp.asarray(value, jnp.float32)
    return values


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_gated_experts(gate):
    """y + scale · sum_e g_e(x) B_e A_e x; the last expert is shared, its gate is 1."""
    options = dict(experts=2, shared=1, rank=3, scale=0.5, gate=gate)
    module = modules.GatedExperts(linear(), **options, rngs=nnx.Rngs(params=1))
    assert not np.any(module.b.kernel[...])
    p = fill(module)
    x, y = RNG.normal(size=(5, 6)), RNG.normal(size=(5, 2, 4))
    logits = x @ p["gate/kernel"] + p["gate/bias"]
    squash = {"softmax": lambda z: scipy.special.softmax(z, -1), "sigmoid": scipy.special.expit}
    gates = np.concatenate([squash[gate](logits), np.ones((5, 1))], axis=1)
    want = y.copy()
    for e in range(3):
        change = np.einsum("nd,dr,rhk->nhk", x, p["a/kernel"][:, e], p["b/kernel"][e])
        want += 0.5 * gates[:, e, None, None] * change
    got = module(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_bottleneck_reads_the_output():
    module = modules.Bottleneck(
        linear(), hidden=3, activation="relu", std=0.01, rngs=nnx.Rngs(params=1)
    )
    assert 0 < np.abs(module.up.kernel[...]).max() < 0.05
    p = fill(module)
    x, y = RNG.normal(size=(5, 6)), RNG.normal(size=(5, 2, 4))
    inner = np.maximum(np.einsum("nhk,hkr->nr", y, p["down/kernel"]) + p["down/bias"], 0)
    want = y + np.einsum("nr,rhk->nhk", inner, p["up/kernel"]) + p["up/bias"]
    got = module(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_adapters_of_one_map_come_in_order():
    map_ = linear()
    plain = map_(jnp.ones((1, 6)))
    map_.adapter = nnx.Dict(twice=Twice(), more=More())
    np.testing.assert_allclose(map_(jnp.ones((1, 6))), 2 * plain + 1, rtol=1e-6)


class Twice(nnx.Module):
    def __call__(self, x, y):
        return 2 * y


class More(nnx.Module):
    def __call__(self, x, y):
        return y + x[0, 0]
