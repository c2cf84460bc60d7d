"""FLOP counted from a jaxpr, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.nn.conv import convolve
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer
from jaxvl.training.cost import count_flops, recomputes_layers

f32 = jnp.float32


def flops(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, f32) for s in shapes)))


def test_products_and_their_gradients():
    product = lambda x, w: jnp.sum(x @ w)
    assert flops(product, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert (
        flops(jax.grad(product, (0, 1)), (3, 5), (5, 7)) == 3 * 2 * 3 * 5 * 7
        or flops(jax.grad(product, (0, 1)), (3, 5), (5, 7)) == 2 * 2 * 3 * 5 * 7
    )  # the value itself is not needed, and may be left out
    assert (
        flops(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (4, 3, 5), (4, 5, 7))
        == 4 * 2 * 3 * 5 * 7
    )


def test_a_scan_counts_every_round():
    assert (
        flops(lambda x, ws: lax.scan(lambda h, w: (h @ w, None), x, ws)[0], (3, 5), (6, 5, 5))
        == 6 * 2 * 3 * 5 * 5
    )
    remat = jax.checkpoint(lambda h, w: jnp.tanh(h @ w))
    both = functools.partial(jax.value_and_grad, argnums=(0, 1))
    once = flops(both(lambda h, w: jnp.sum(jnp.tanh(h @ w))), (3, 5), (5, 5))
    again = flops(both(lambda h, w: jnp.sum(remat(h, w))), (3, 5), (5, 5))
    assert again == once + 2 * 3 * 5 * 5


def test_what_nothing_reads_does_not_count():
    assert flops(lambda x, w: (x @ w, x @ x)[0], (5, 5), (5, 7)) == 2 * 5 * 5 * 7
    inside = lambda x, ws: lax.scan(lambda h, w: (h @ w, h @ h)[:1] + (None,), x, ws)[0]
    assert flops(inside, (5, 5), (6, 5, 5)) == 6 * 2 * 5**3


@pytest.mark.parametrize("remat", ["full", "chunks"])
def test_layers_computed_again_count_as_often(remat):
    """All but the last product of a layer, 16 to 32 to 16: q, k, v, out; up; two of the
    attention's."""
    counts = {}
    for policy in ("none", "full", remat):
        options = StackOptions(remat=policy)
        stack = Transformer(Sizes(16, 3, 2, 32), options, rngs=nnx.Rngs(params=0))
        graph, params = nnx.split(stack)
        loss = lambda p, x, graph=graph: jnp.square(nnx.merge(graph, p)(x)).sum()
        traced = jax.jit(jax.grad(loss)).trace(params, jnp.zeros((8, 5, 16)))
        counts[policy] = count_flops(traced.jaxpr)
        assert recomputes_layers(traced.jaxpr) == (policy != "none")
    rows = 8 * 5
    layer = 2 * rows * (4 * 16 * 16 + 16 * 32 + 2 * 5 * 16)
    assert counts[remat] == counts["full"] == counts["none"] + 3 * layer


def test_convolutions():
    assert (
        flops(lambda x, k: lax.conv(x, k, (2, 2), "SAME"), (2, 3, 8, 8), (16, 3, 3, 3))
        == 2 * 2 * 16 * 4 * 4 * 3 * 9
    )
    depthwise = lambda x, k: lax.conv_general_dilated(
        x, k, (1, 1), "SAME", feature_group_count=8, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops(depthwise, (2, 6, 6, 8), (3, 3, 1, 8)) == 2 * 2 * 6 * 6 * 8 * 9
    forward = flops(
        lambda x, k: convolve(x, k, stride=2, padding=((0, 1), (0, 1))), (2, 8, 8, 4), (3, 3, 4, 16)
    )
    both = flops(
        jax.grad(lambda x, k: jnp.sum(convolve(x, k, stride=2, padding=((0, 1), (0, 1)))), (0, 1)),
        (2, 8, 8, 4),
        (3, 3, 4, 16),
    )
    assert 2 * forward <= both <= 3.5 * forward  # the products with padding count in the gradients


def test_a_conditional_counts_its_dearest_branch_and_a_mesh_all_devices():
    assert (
        flops(lambda c, x: lax.cond(c[0] > 0, lambda x: x @ x, lambda x: x, x), (1,), (4, 4))
        == 2 * 4**3
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    local = jax.shard_map(
        lambda x, w: x @ w,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec("data"),
    )
    with jax.set_mesh(mesh):
        assert flops(local, (16, 5), (5, 7)) == 2 * 16 * 5 * 7


def test_the_ring_counts_as_much_as_one_device():
    loss = jax.grad(lambda u, v: contrastive_loss(u, v, 1.0), (0, 1))
    one = flops(loss, (64, 16), (64, 16))
    assert one >= 4 * 2 * 64 * 64 * 16
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        many = flops(lambda u, v: loss(u, v), (64, 16), (64, 16))
    assert abs(many / one - 1) < 0.01
