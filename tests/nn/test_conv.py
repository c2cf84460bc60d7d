"""Every form that a convolution can take, against XLA's own, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from jaxvl.hlo import collectives, read
from jaxvl.nn.conv import Conv, convolve, pads, space_to_depth
from jaxvl.sharding.mesh import MeshConfig, make_mesh
from jaxvl.sharding.rules import spec
from jaxvl.sharding.topology import compile_only_devices


def plain(x, kernel, stride, padding, depthwise):
    groups = x.shape[-1] if depthwise else 1
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
    )


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(
    "kernel, stride, depthwise",
    [
        (1, 1, False),
        (1, 2, False),
        (2, 2, False),
        (3, 1, False),
        (3, 2, False),
        (5, 1, False),
        (3, 1, True),
        (3, 2, True),
        (5, 1, True),
        (5, 2, True),
    ],
)
def test_forms_agree(side, kernel, stride, depthwise):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, side, side, 4))
    w = jax.random.normal(keys[1], (kernel, kernel, 1 if depthwise else 4, 4 if depthwise else 6))
    padding = pads((side, side), kernel, stride)
    wanted, pull = jax.vjp(lambda x, w: plain(x, w, stride, padding, depthwise), x, w)
    assert wanted.shape[1] == -(-side // stride)
    cotangent = jax.random.normal(keys[2], wanted.shape)

    @jax.jit
    def ours(x, w, cotangent):
        y, pull = jax.vjp(
            lambda x, w: convolve(x, w, stride=stride, padding=padding, depthwise=depthwise), x, w
        )
        return y, pull(cotangent)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        ours(x, w, cotangent),
        (wanted, pull(cotangent)),
    )


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_the_form_is_chosen_by_the_target_platform(platform):
    """A program compiled ahead of time on a CPU for an accelerator gets the accelerator's form."""
    x = jnp.ones((2, 8, 8, 4))
    w = jnp.ones((3, 3, 1, 4))
    f = jax.jit(lambda x, w: convolve(x, w, padding=pads((8, 8), 3, 1), depthwise=True))
    text = f.trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == (platform != "cpu")


def test_padding_rules():
    assert pads((8, 8), 3, 2) == ((0, 1), (0, 1)) == pads((8, 8), 3, 2, "bottom_right")
    assert pads((7, 7), 3, 2) == ((1, 1), (1, 1)) != pads((7, 7), 3, 2, "bottom_right")
    assert pads((7, 7), 5, 1, "bottom_right") == pads((7, 7), 5, 1, "symmetric") == ((2, 2), (2, 2))


def test_space_to_depth_keeps_blocks_together():
    x = jnp.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    y = space_to_depth(x, 2)
    assert y.shape == (2, 2, 2, 12)
    np.testing.assert_array_equal(y[1, 0, 1], x[1, 0:2, 2:4].reshape(-1))


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("target", ["cpu", "tpu"])
def test_a_sharded_kernel_gathers_no_rows(request, target, depthwise):
    """With kernels sharded over `fsdp` a device receives kernels, never the pictures of others."""
    if target == "tpu":
        request.getfixturevalue("tpu_compiler")
    devices = jax.devices()[:8] if target == "cpu" else compile_only_devices("v5e:2x4")
    mesh = make_mesh(MeshConfig(fsdp=4), devices)
    channels, rows = 128, 64
    conv = Conv(channels, channels, 3, rngs=nnx.Rngs(0), depthwise=depthwise)
    graph, state = nnx.split(conv)

    def loss(state, x):
        return jnp.square(nnx.merge(graph, state)(x)).sum()

    def abstract(shape, *axes):
        return jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, spec(axes, shape=shape, mesh=mesh))
        )

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        axes = ("kernel", "kernel", "conv_in", "conv_out")
        kernels = jax.tree.map(lambda leaf: abstract(leaf.shape, *axes), state)
        lowered = step.lower(kernels, abstract((rows, 16, 16, channels), "batch", None, None, None))
        program = read(lowered.compile())
    sizes = [c.size for c in collectives(program, 8)]
    assert sizes and max(sizes) <= conv.kernel[...].nbytes
