"""The stack's parameter layout, its slices, and randomness layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.nn.embeddings import PatchEmbedding, sincos_2d
from jaxvl.nn.linear import Embedding, Linear
from jaxvl.nn.random import drop_path, dropout
from jaxvl.nn.stack import unstack
from jaxvl.nn.transformer import Block, Sizes, StackOptions, Transformer

SIZES = Sizes(16, 3, 2, 24)


def test_stack_is_layers_in_order():
    """The stack equals its blocks applied one after the other, and its layers start from different
    weights."""
    stack = Transformer(SIZES, StackOptions(), rngs=nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    graphdef, params = nnx.split(stack.blocks)
    y = x
    for i in range(3):
        y = nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], params))(y)
    np.testing.assert_allclose(jax.jit(lambda x: stack(x))(x), y, atol=1e-5)
    kernel = stack.blocks.mlp.up.kernel
    assert kernel.shape == (3, 16, 24) and kernel.get_metadata()["axes"] == (
        "layers",
        "embed",
        "mlp",
    )
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_order_of_norms(norm):
    block = Block(SIZES, StackOptions(norm=norm), rngs=nnx.Rngs(params=0))
    x = 3 + jax.random.normal(jax.random.key(1), (2, 5, 16))
    if norm == "pre":
        y = x + block.attention(block.attention_norm(x))
        wanted = y + block.mlp(block.mlp_norm(y))
    else:
        y = block.attention_norm(x + block.attention(x))
        wanted = block.mlp_norm(y + block.mlp(y))
    np.testing.assert_allclose(block(x), wanted, atol=1e-5)


def test_unstack_and_its_gradient():
    x = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.arange(3.0)}
    for i, piece in enumerate(unstack(x, 3)):
        jax.tree.map(
            lambda whole, part, i=i: np.testing.assert_array_equal(whole[i], part), x, piece
        )
    loss = lambda x: sum(
        (i + 1) * (p["a"] ** 2).sum() + p["b"] for i, p in enumerate(unstack(x, 3))
    )
    gradient = jax.grad(loss)(x)
    np.testing.assert_allclose(gradient["a"], 2 * x["a"] * jnp.array([[1.0], [2], [3]]))
    assert (
        " add"
        not in jax.jit(jax.grad(lambda x: sum(p["a"].sum() for p in unstack(x, 3))))
        .lower(x)
        .as_text()
    )


def test_layers_draw_differently():
    stack = Transformer(SIZES, StackOptions(drop_path=0.9, dropout=0.1), rngs=nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(1), (8, 5, 16))
    run = jax.jit(lambda key: stack(x, train=True, key=key))
    np.testing.assert_array_equal(run(jax.random.key(0)), run(jax.random.key(0)))
    assert np.abs(run(jax.random.key(0)) - run(jax.random.key(1))).max() > 0.1
    np.testing.assert_array_equal(stack(x), stack(x, key=jax.random.key(0)))


def test_dropout_keeps_the_mean_and_drops_elements_or_rows():
    x = jnp.ones((4000, 5))
    key = jax.random.key(0)
    a = dropout(x, 0.25, key, train=True)
    b = drop_path(x, 0.25, key, train=True)
    for y in (a, b):
        np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
        np.testing.assert_allclose(y.mean(), 1, atol=0.05)
    assert len(np.unique(b.sum(1))) == 2 < len(np.unique(a.sum(1)))
    assert dropout(x, 0.25, None, train=False) is x and drop_path(x, 0.0, None, train=True) is x
    with pytest.raises(ValueError, match="key: None, but dropout is random"):
        dropout(x, 0.25, None, train=True)


def test_linear_over_several_dimensions():
    layer = Linear((2, 3), (4, 5), axes=("heads", "kv", "mlp", "kv"), rngs=nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(0), (7, 2, 3))
    np.testing.assert_allclose(
        layer(x), jnp.einsum("bij,ijkl->bkl", x, layer.kernel[...]), atol=1e-5
    )
    assert layer.bias.shape == (4, 5)
    with pytest.raises(ValueError, match="axes: .* must name each dimension"):
        Linear(2, 3, axes=("embed",), rngs=nnx.Rngs(params=0))


def test_embedding_rows():
    layer = Embedding(10, 4, rngs=nnx.Rngs(params=0))
    np.testing.assert_array_equal(
        layer(jnp.array([[3, 3, 9]])), layer.embedding[jnp.array([[3, 3, 9]])]
    )


def test_patches_are_a_convolution():
    layer = PatchEmbedding(4, 3, 8, rngs=nnx.Rngs(params=0))
    image = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    wanted = jax.lax.conv_general_dilated(
        image, layer.kernel[...], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer(image), wanted.reshape(2, 9, 8), atol=1e-5)


def test_sincos_positions():
    table = sincos_2d(5, 16)
    assert table.shape == (25, 16)
    assert len(np.unique(np.round(table, 6), axis=0)) == 25
    np.testing.assert_allclose(
        (table**2).sum(1), 8, rtol=1e-6
    )  # 4 frequencies x 2 axes of sin² + cos²
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(5, 6)
