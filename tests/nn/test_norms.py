"""Norms against float64 NumPy; statistics stay float32 under low-precision inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.nn.norms import BatchNorm, GroupNorm, LayerNorm, standardize


def sample(shape, offset=5.0):
    return np.random.default_rng(0).normal(offset, 2.0, shape)


def scaled(module, channels):
    module.scale[...] = jnp.linspace(0.5, 2, channels)
    module.bias[...] = jnp.linspace(-1, 1, channels)
    return module


def test_layer_norm():
    x = sample(
        (3, 5, 16), offset=300.0
    )  # a large mean: E[x²] - E[x]² in float32 would lose all digits
    y = scaled(LayerNorm(16, eps=1e-6), 16)(jnp.asarray(x, jnp.float32))
    wanted = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 1e-6
    ) * np.linspace(0.5, 2, 16) + np.linspace(-1, 1, 16)
    np.testing.assert_allclose(y, wanted, atol=1e-3)


def test_batch_norm_training_and_evaluation():
    x = sample((4, 3, 3, 8))
    momentum = 0.9
    norm = scaled(BatchNorm(8, momentum=momentum, eps=1e-3), 8)
    y = norm(jnp.asarray(x, jnp.float32), train=True)
    mean = x.mean((0, 1, 2))
    var = x.var((0, 1, 2))
    affine = lambda x, mean, var: (
        (x - mean) / np.sqrt(var + 1e-3) * np.linspace(0.5, 2, 8) + np.linspace(-1, 1, 8)
    )
    np.testing.assert_allclose(y, affine(x, mean, var), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], (1 - momentum) * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], momentum + (1 - momentum) * var, rtol=1e-5)
    z = norm(jnp.asarray(x, jnp.float32), train=False)
    np.testing.assert_allclose(
        z, affine(x, np.asarray(norm.mean[...]), np.asarray(norm.var[...])), atol=1e-4
    )


def test_group_norm():
    x = sample((2, 3, 3, 16))
    y = scaled(GroupNorm(16, group_width=4), 16)(jnp.asarray(x, jnp.float32))
    groups = x.reshape(2, 9, 4, 4)
    groups = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(
        groups.var((1, 3), keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(
        y, groups.reshape(x.shape) * np.linspace(0.5, 2, 16) + np.linspace(-1, 1, 16), atol=1e-5
    )
    with pytest.raises(ValueError, match="group_width: 5 must divide the 16 channels"):
        GroupNorm(16, group_width=5)


@pytest.mark.parametrize("kind", [LayerNorm, BatchNorm, GroupNorm])
def test_bfloat16_inputs_have_float32_statistics(kind):
    x = jnp.asarray(sample((64, 4, 4, 16), offset=20.0), jnp.bfloat16)
    run = lambda dtype: kind(16, dtype=dtype)(x, **({"train": True} if kind is BatchNorm else {}))
    low = run(jnp.bfloat16)
    high = run(jnp.float32)
    assert (low.dtype, high.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(low, high.astype(jnp.bfloat16))  # rounded once, at the end


def test_statistics_are_not_parameters():
    state = nnx.state(BatchNorm(4), nnx.Param)
    assert {path[0] for path, _ in nnx.to_flat_state(state)} == {"scale", "bias"}
    assert jax.tree.leaves(nnx.state(BatchNorm(4), nnx.BatchStat))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_and_its_gradients_in_float64(bias):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 3, 5, 64))
    x = 3 * x + 7
    scale, shift = rng.standard_normal((2, 64))
    norm = LayerNorm(64, bias=bias)
    norm.scale[...] = jnp.float32(scale)
    if bias:
        norm.bias[...] = jnp.float32(shift)
    graph, state = nnx.split(norm)
    y, pull = jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, jnp.float32(x))
    dstate, dx = pull(jnp.float32(dy))

    centred = x - x.mean(-1, keepdims=True)
    rate = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    wanted = centred * rate
    np.testing.assert_allclose(y, wanted * scale + bias * shift, atol=1e-5)
    np.testing.assert_allclose(dstate["scale"][...], (dy * wanted).sum((0, 1)), atol=2e-5)
    if bias:
        np.testing.assert_allclose(dstate["bias"][...], dy.sum((0, 1)), atol=1e-5)
    g = dy * scale
    # The Jacobian of one row: rate (I - 1/D - y y^T / D).
    jacobian = np.eye(64) - 1 / 64 - wanted[..., :, None] * wanted[..., None, :] / 64
    wanted_dx = rate * np.einsum("abij,abj->abi", jacobian, g)
    np.testing.assert_allclose(dx, wanted_dx, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_keeps_one_array(dtype):
    x = jnp.ones((8, 16, 256), dtype)
    scale = jnp.ones(256)
    _, pull = jax.vjp(lambda x: standardize(x, scale, 1e-6), x)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    assert kept == x.nbytes + 8 * 16 * 4 + scale.nbytes
