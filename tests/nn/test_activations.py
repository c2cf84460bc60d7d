"""Activations and their gradients against float64, and what their backward pass keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxvl.nn.activations import ACTIVATIONS


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


REFERENCES = {
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": tanh_gelu,
    "quick_gelu": lambda x: x * special.expit(1.702 * x),
    "swish": lambda x: x * special.expit(x),
    "relu": lambda x: np.maximum(x, 0),
}


def test_every_activation_has_a_reference():
    assert set(REFERENCES) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", REFERENCES)
def test_values_and_gradients(name):
    x = np.linspace(-6, 6, 1000)  # without 0, where ReLU has no derivative
    f = REFERENCES[name]
    step = 1e-6
    slope = (f(x + step) - f(x - step)) / (2 * step)
    y, pull = jax.vjp(ACTIVATIONS[name], jnp.float32(x))
    np.testing.assert_allclose(y, f(x), atol=1e-6)
    np.testing.assert_allclose(pull(jnp.full_like(y, 2.0))[0], 2 * slope, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in REFERENCES if n != "relu"])
def test_the_backward_pass_keeps_the_input_alone(name):
    x = jnp.ones((8, 128))
    _, pull = jax.vjp(ACTIVATIONS[name], x)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) == x.nbytes


def test_a_program_holds_no_more_than_the_input():
    """Of layers in a row, beside the parameters' gradients: x and y of each, in rows of the
    width."""
    layers, rows, width = 8, 4096, 64

    def loss(kernels, x):
        for i in range(layers):
            x = ACTIVATIONS["gelu"](x @ kernels[i])
        return x.sum()

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((layers, width, width), (rows, width))]
    program = jax.jit(jax.grad(loss)).lower(*shapes).compile()
    one = rows * width * 4
    assert program.memory_analysis().temp_size_in_bytes < (2 * layers + 3) * one
