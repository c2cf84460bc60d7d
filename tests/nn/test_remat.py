"""What the backward pass keeps and computes again: numbers stay, work and memory change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvl.nn.transformer import Sizes, StackOptions, Transformer
from jaxvl.sharding.topology import compile_only_devices

LAYERS = 4
SIZES = Sizes(16, LAYERS, 2, 24)


def stack_of(remat, sizes=SIZES, scan=True):
    return Transformer(sizes, StackOptions(remat=remat, scan=scan), rngs=nnx.Rngs(params=0))


def gradient_of(stack):
    graphdef, params = nnx.split(stack)

    def loss(params, x):
        return (nnx.merge(graphdef, params)(x) ** 2).mean()

    return jax.value_and_grad(loss), params


@pytest.mark.parametrize("remat", ["full", "chunks", "dots", "attention", "offload"])
def test_values_and_gradients_are_those_without(remat):
    x = jax.random.normal(jax.random.key(1), (8, 5, 16))
    plain, params = gradient_of(stack_of("none"))
    kept, _ = gradient_of(stack_of(remat))
    (loss, gradient), (wanted, wanted_gradient) = jax.jit(kept)(params, x), plain(params, x)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, wanted_gradient
    )


def test_products_of_a_layer_that_are_computed():
    """Forward 6 products with parameters (q, k, v, out, up, down) and 2 of the attention, backward
    twice as many. Again are computed: all but the last, which nothing reads (full); the attention's
    first (dots; its second gives what a product with parameters reads); q, k, v, the attention's
    first and up (attention)."""
    x = jnp.zeros((2, 5, 16))

    def products(remat):
        gradient, params = gradient_of(stack_of(remat, Sizes(16, 1, 2, 24), scan=False))
        return jax.jit(gradient).lower(params, x).as_text().count("stablehlo.dot_general")

    none = products("none")
    assert none == 24
    assert products("full") - none == 7
    assert 1 <= products("dots") - none <= 2
    assert products("dots") < products("attention") < products("full")
    assert products("offload") == products("full")


@pytest.mark.slow
def test_a_tpu_keeps_what_is_offloaded_on_its_host(tpu_compiler):
    mesh = Mesh(np.array(compile_only_devices("v5e")[:1]), ("data",))
    whole = NamedSharding(mesh, PartitionSpec())
    rows, tokens, width = 256, 256, 512
    x = jax.ShapeDtypeStruct((rows, tokens, width), jnp.float32, sharding=whole)

    def memory(remat):
        gradient, params = gradient_of(stack_of(remat, Sizes(width, LAYERS, 2, width)))
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), params
        )
        return jax.jit(gradient).lower(shapes, x).compile().memory_analysis()

    full, offload = memory("full"), memory("offload")
    inputs = LAYERS * rows * tokens * width * 4
    assert full.host_temp_size_in_bytes == 0
    assert offload.host_temp_size_in_bytes >= inputs
    assert offload.temp_size_in_bytes < full.temp_size_in_bytes - inputs // 2
