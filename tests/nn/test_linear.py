"""The product of rows with a kernel: gradients against float64, and where the compiler meets it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.nn.linear import project

SHAPES = [(5,), (3, 5), (2, 3, 5), (2, 4, 3, 5)]


def arrays(shape, outputs=7):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    kernel = rng.standard_normal((shape[-1], outputs))
    return x, kernel, rng.standard_normal((*shape[:-1], outputs))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("jit", [False, True])
def test_values_and_gradients_are_those_of_float64(shape, jit):
    x, kernel, dy = arrays(shape)
    run = jax.jit(project) if jit else project
    y, pull = jax.vjp(run, jnp.float32(x), jnp.float32(kernel))
    dx, dkernel = pull(jnp.float32(dy))
    np.testing.assert_allclose(y, x @ kernel, atol=1e-5)
    np.testing.assert_allclose(dx, dy @ kernel.T, atol=1e-5)
    rows = np.asarray(x).reshape(-1, shape[-1])
    np.testing.assert_allclose(dkernel, rows.T @ dy.reshape(-1, dy.shape[-1]), atol=1e-5)
    assert dkernel.shape == kernel.shape


def test_a_stack_of_kernels_under_vmap():
    x, kernel, dy = arrays((4, 3, 5))
    kernels = np.stack([kernel, 2 * kernel, -kernel, kernel + 1])
    y, pull = jax.vjp(jax.vmap(project), jnp.float32(x), jnp.float32(kernels))
    np.testing.assert_allclose(y, np.einsum("bti,bio->bto", x, kernels), atol=1e-5)
    np.testing.assert_allclose(
        pull(jnp.float32(dy))[1], np.einsum("bti,bto->bio", x, dy), atol=1e-5
    )


def test_bfloat16_stays_bfloat16():
    x, kernel, dy = (jnp.asarray(a, jnp.bfloat16) for a in arrays((2, 3, 5)))
    y, pull = jax.vjp(project, x, kernel)
    assert [a.dtype for a in (y, *pull(dy))] == [jnp.bfloat16] * 3


def test_the_policy_that_keeps_products_keeps_it():
    """With remat="dots" no product is computed twice: 1 forward, 2 backward."""
    x, kernel, _ = arrays((2, 3, 5))
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    def products(policy):
        layer = jax.checkpoint(lambda x, w: jnp.sin(project(x, w)), policy=policy)
        loss = lambda x, w: layer(x, w).sum()  # noqa: E731
        lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(
            jnp.float32(x), jnp.float32(kernel)
        )
        return lowered.as_text().count("stablehlo.dot_general")

    assert products(policy) == 3
    assert products(jax.checkpoint_policies.nothing_saveable) == 4


def test_the_cpu_compiler_copies_no_activation_for_the_gradient_of_a_kernel():
    """Of a residual stack's program: no transposed array as large as the activations."""
    rows, width = 64, 48

    def loss(kernels, x):
        for kernel in kernels:
            x = x + jnp.tanh(project(x, kernel))
        return (x**2).sum()

    kernels = jnp.zeros((3, width, width))
    x = jnp.zeros((4, rows, width))
    text = jax.jit(jax.grad(loss)).lower(kernels, x).compile().as_text()
    assert f"f32[{width},4,{rows}]" not in text and f"f32[{width},{4 * rows}]" not in text


def test_a_scan_keeps_no_copy_of_its_kernels():
    """In bfloat16: the backward pass reads the stack that is given."""

    def loss(kernels, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(project(x, w)), None), x, kernels)
        return jnp.float32(x).sum()

    kernels = jnp.zeros((3, 16, 16))
    jaxpr = jax.make_jaxpr(jax.grad(loss))(kernels, jnp.zeros((2, 5, 16), jnp.bfloat16))
    assert "bf16[3,2,5,16]" in str(jaxpr) and "bf16[3,16,16]" not in str(jaxpr)


def test_a_kernel_in_float32_has_its_gradient_in_float32():
    x, kernel, dy = arrays((2, 3, 5))
    half = jnp.asarray(x, jnp.bfloat16)
    y, pull = jax.vjp(project, half, jnp.float32(kernel))
    dx, dkernel = pull(jnp.asarray(dy, jnp.bfloat16))
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
