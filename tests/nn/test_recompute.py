"""Layers that are computed again a part of the rows at a time, against the gradient of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.config import ConfigError
from jaxvl.nn.recompute import in_chunks, whole_floats
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer
from jaxvl.sharding.mesh import MeshConfig, batch_sharding, make_mesh
from jaxvl.sharding.rules import spec

SIZES = Sizes(16, 3, 2, 32)
ROWS = 32


def gradient_of(remat, scan, causal):
    options = StackOptions(remat=remat, scan=scan)
    stack = Transformer(SIZES, options, rngs=nnx.Rngs(params=0), memory_width=8)
    graph, params = nnx.split(stack)

    def loss(params, x, memory, mask):
        run = nnx.merge(graph, params)
        y = run(x, memory, mask=mask, memory_mask=mask[:, :4], causal=causal, train=True)
        return (y * jnp.cos(y)).mean()

    return jax.value_and_grad(loss, (0, 1, 2)), params


def arguments():
    x = jax.random.normal(jax.random.key(1), (ROWS, 5, 16))
    memory = jax.random.normal(jax.random.key(2), (ROWS, 4, 8))
    mask = jax.random.bernoulli(jax.random.key(3), 0.7, (ROWS, 5)).at[:, 0].set(True)
    return x, memory, mask


def same(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-7), found, wanted)


@pytest.mark.parametrize("scan", [True, False])
def test_masks_and_memories_are_cut_with_the_rows(scan):
    plain, params = gradient_of("none", scan, True)
    cut, _ = gradient_of("chunks", scan, True)
    same(jax.jit(cut)(params, *arguments()), jax.jit(plain)(params, *arguments()))


@pytest.mark.parametrize(
    "mesh", [dict(data=8), dict(data=2, fsdp=4), dict(data=1, fsdp=8), dict(data=2, tensor=4)]
)
def test_gradients_on_a_mesh_are_those_of_one_device(mesh):
    plain, params = gradient_of("none", True, False)
    wanted = jax.jit(plain)(params, *arguments())
    cut, _ = gradient_of("chunks", True, False)
    mesh = make_mesh(MeshConfig(**mesh), jax.devices()[:8])
    with jax.set_mesh(mesh):
        where = jax.tree.map(
            lambda v: jax.sharding.NamedSharding(
                mesh, spec(v.get_metadata()["axes"], shape=v[...].shape, mesh=mesh)
            ),
            params,
            is_leaf=lambda v: isinstance(v, nnx.Variable),
        )
        laid_out = jax.tree.map(
            lambda v, at: v.replace(jax.device_put(v[...], at)),
            params,
            where,
            is_leaf=lambda v: isinstance(v, nnx.Variable),
        )
        rows = jax.device_put(arguments(), batch_sharding(mesh))
        same(jax.jit(cut)(laid_out, *rows), wanted)


def test_rows_that_do_not_divide_are_computed_at_once():
    kernel = jax.random.normal(jax.random.key(0), (3, 3))
    x = jax.random.normal(jax.random.key(1), (6, 3))

    def loss(f):
        return jax.value_and_grad(lambda k, x: f(k, x).sum(), (0, 1))

    def layer(k, x):
        return jnp.sin(x @ k)

    same(loss(in_chunks(layer, 4))(kernel, x), loss(layer)(kernel, x))


def test_sums_of_parts_are_float32():
    """Each of 8 parts gives 1 + 2^-8, which bfloat16 rounds; so is the whole, but only once."""
    rows = 8
    x = jnp.full((rows, 1), 1 + 2**-7, jnp.bfloat16)
    scale = jnp.ones((1,), jnp.float32)

    def loss(scale):
        return in_chunks(lambda s, x: x * s.astype(x.dtype), rows)(scale, x).sum(dtype=jnp.float32)

    assert jax.grad(loss)(scale)[0] == rows * (1 + 2**-7)


def test_floats_pass_through():
    tree = dict(a=jnp.asarray([1.5, -0.0, np.inf]), b=jnp.ones(2, jnp.bfloat16))
    same(whole_floats(tree), tree)
    slope = jax.grad(lambda t: (whole_floats(t)["a"][:1] * 3).sum())(tree)
    same(slope["a"], [3.0, 0.0, 0.0])


@pytest.mark.parametrize("drawn", ["dropout", "hidden_dropout", "attention_dropout", "drop_path"])
def test_layers_that_draw_are_refused(drawn):
    with pytest.raises(ConfigError, match="remat"):
        options = StackOptions(remat="chunks", **{drawn: 0.1})
        Transformer(SIZES, options, rngs=nnx.Rngs(params=0))
